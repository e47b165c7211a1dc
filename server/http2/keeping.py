"""What time does to connections: handshakes and frames that do not end, silence, idleness, age. Judged once a tick.

Moments are of time.monotonic(), limits those of `[limits]`.
"""

import random
from typing import Final

from hermetic.server.config import Limits
from hermetic.server.http2.connection import Connection
from hermetic.server.http2.frames import ErrorCode

AGE_SPREAD: Final = 0.1  # of `connection_age_s`, either way: clients that came together need not come again together
REST_S: Final = 0.1  # seconds without a word, and no call open: nothing passes
GOAWAY_PATIENCE_S: Final = 1.0  # seconds for a client to answer the first GOAWAY's PING
MILLISECONDS: Final = 1000
_random: Final = random.SystemRandom()  # one that nobody else's use of random moves


class Keeping:
    """The judge of one loop's connections."""

    def __init__(self, limits: Limits) -> None:
        self._handshake_s = limits.handshake_timeout_ms / MILLISECONDS
        self._message_s = limits.message_timeout_s
        self._write_s = limits.reply_timeout_s
        self._idle_s = limits.connection_idle_s
        self._age_s = limits.connection_age_s
        self._grace_s = limits.reply_timeout_s
        self._keepalive_s = limits.keepalive_s
        self._answer_s = limits.keepalive_timeout_s

    def lifetime_s(self) -> float:
        """Return how long a new connection may live before it is drained."""
        return self._age_s * _random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)

    def judge(self, connection: Connection, now: float) -> None:
        """Look at one connection."""
        if connection.ready and not connection.streams and connection.heard < now - REST_S:
            connection.shed()
        if not connection.reception.control.greeted:
            if now - connection.opened > self._handshake_s:
                connection.lost() if not connection.ready else connection.close()
        elif connection.waiting_since and now - connection.waiting_since > self._message_s:
            connection.end(ErrorCode.ENHANCE_YOUR_CALM, "a frame or header block without end")
        elif connection.stuck_since and now - connection.stuck_since > self._write_s:
            connection.lost()
        elif connection.drained_since:
            self._judge_draining(connection, now)
        elif now > connection.until or (not connection.streams and now - connection.reception.used > self._idle_s):
            connection.drain(self._grace_s)
        else:
            self._judge_silence(connection, now)

    def _judge_draining(self, connection: Connection, now: float) -> None:
        if now - connection.drained_since > GOAWAY_PATIENCE_S:
            connection.finish_draining()
        if now > connection.served_until:
            connection.end(ErrorCode.NO_ERROR, "the connection's age")

    def _judge_silence(self, connection: Connection, now: float) -> None:
        if connection.pinged:
            if now - connection.pinged > self._answer_s:
                connection.lost()
        elif now - connection.heard > self._keepalive_s:
            connection.ping(now)
