"""A server on a thread of this process, and the application above it."""

import threading
import time
from collections.abc import Callable
from typing import Self

from hermetic.server.config import Limits
from hermetic.server.http2.server import Http2Server
from hermetic.server.http2.tls import ServingCredentials
from tests.server.http2.application import Application
from tests.server.http2.wire import Peer

GRACE_S = 0.2
PAUSE_S = 0.5
"""Half of the shortest time that a test gives a server to judge its client by."""


class Serving:
    """It ends with `close`; whether it did is checked."""

    def __init__(self, limits: Limits | None = None, credentials: ServingCredentials | None = None) -> None:
        """Without credentials it speaks plaintext."""
        self.application = Application()
        self.server = Http2Server("127.0.0.1:0", credentials, limits or Limits(), self.application)
        self.port = self.server.port
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def peer(self, *pairs: tuple[int, int], shy: bool = False) -> Peer:
        """A new connection that has said these settings."""
        return Peer(self.port, *pairs, shy=shy)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Begin to stop."""
        self.server.post(lambda: self.server.stop(grace_s))

    def join(self, timeout_s: float = 60.0) -> None:
        """Wait for the end of `run`."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the server did not stop"

    def close(self) -> None:
        """Stop and wait."""
        if self._thread.is_alive():
            self.stop()
        self.join()


class Pauses:
    """How long a client was silent at most, by the machine's doing: it looks at the clock again and again."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last = time.monotonic()

    def look(self) -> None:
        """It is here still."""
        now = time.monotonic()
        self.longest_s, self._last = max(self.longest_s, now - self._last), now


def without_a_pause(talk: Callable[[Pauses], None]) -> None:
    """Have a talk with a server that ends silent clients, again where the machine made this one silent."""
    while True:
        pauses = Pauses()
        try:
            talk(pauses)
        except (AssertionError, ConnectionError):
            pauses.look()
            if pauses.longest_s < PAUSE_S:
                raise
        else:
            return
