"""One connection: a socket, its TLS, its turns, and its end.

A read of the socket is one turn: everything that has come is decrypted into one buffer, which all connections of the
process share, taken apart there (reception.py), and overwritten. What is incomplete at the end of a turn is kept for
the next.
"""

import logging
import math
import select
import socket
import time
from collections.abc import Callable, Container
from typing import Final, NamedTuple, Protocol

from hermetic.enclave.zero_on_free import wipe
from hermetic.server.config import Limits
from hermetic.server.http2 import frames
from hermetic.server.http2.call import Http2Call
from hermetic.server.http2.discards import Discards
from hermetic.server.http2.frames import ConnectionFaultError, ErrorCode, Setting
from hermetic.server.http2.outgoing import Outgoing
from hermetic.server.http2.reception import LARGEST_FRAME, Reception
from hermetic.server.http2.tls import Place, TlsClosedError, TlsSession
from hermetic.server.status import Code
from hermetic.server.transport import Peer

READS: Final = select.EPOLLIN | select.EPOLLRDHUP
READ_BYTES: Final = 256 * 1024  # of ciphertext in one turn, at most
PLAIN_BYTES: Final = READ_BYTES + LARGEST_FRAME + 64 * 1024  # what a turn can decrypt, and what the last one left
WORTH: Final = 4  # bytes of ciphertext that a byte of plaintext pays for; eight in a record of their own are enough
HOLLOW_BYTES: Final = 20 * 1024  # of ciphertext that brought nothing yet: a record that is not whole
HOLLOW_RECORD_BYTES: Final = 27  # a key update, which costs as much as a frame

_KEEPALIVE_PING: Final = b"hermetic"
_DRAIN_PING: Final = b"draining"
_log: Final = logging.getLogger(__name__)


class Buffers(NamedTuple):
    """What all connections of a loop read into, in turn: ciphertext and plaintext."""

    cipher: Place
    plain: Place

    @classmethod
    def new(cls) -> "Buffers":
        """Return new ones."""
        return cls(Place.of(READ_BYTES), Place.of(PLAIN_BYTES))


class Loop(Protocol):
    """The loop, as its connections see it."""

    buffers: Buffers
    discards: Discards
    limits: Limits
    metadata_read: Container[str]

    def accept(self, call: Http2Call) -> None:
        """Take a new call."""

    def expect(self, call: Http2Call) -> None:
        """Have `call.expire` called when its deadline has passed."""

    def unexpect(self, call: Http2Call) -> None:
        """Forget that."""

    def identified(self, connection: "Connection") -> None:
        """Take note that it is known whose connection this is."""

    def mark(self, connection: "Connection") -> None:
        """Have `connection.flush` called at the end of the turn."""

    def soon(self, action: Callable[[], None]) -> None:
        """Have `action` run later in this turn."""

    def guard(self, action: Callable[[], object]) -> None:
        """Run `action`; whatever it raises is logged."""

    def closed(self, connection: "Connection", *, linger: bool) -> None:
        """Take note that the connection is closed; its socket is open. `linger`: the client may not have read all."""


class Connection:
    """One client's connection. Moments are of time.monotonic()."""

    def __init__(self, loop: Loop, own: socket.socket, address: str, session: TlsSession | None) -> None:
        """`session` None is plaintext, for tests."""
        self._loop = loop
        self.socket = own
        self.address = address
        self._session = session
        self.peer = Peer(None, None)
        self.opened = self.heard = self.used = time.monotonic()
        self.ready = False  # TLS is
        self._started = False  # the preface has come
        self.over = False
        self.drained_since = 0.0  # or 0: it is not being drained
        self.served_until = math.inf  # while it is being drained
        self.until = math.inf  # when it is old
        self.interest = READS  # what the loop waits for
        self._marked = False
        self.out = Outgoing(self._mark, loop.discards)
        self.streams: dict[int, Http2Call] = {}
        self.stream_window = loop.limits.stream_window_bytes
        self.reception = Reception(self, loop, loop.limits)
        self._rest = bytearray()  # of a frame that is not whole
        self._hollow = 0  # bytes of ciphertext beyond what its plaintext pays for
        self.waiting_since = 0.0  # for the rest of a frame or header block, or 0
        self.pinged = 0.0  # when we asked whether the client lives, or 0
        self.stuck_since = 0.0  # the socket takes nothing, or 0
        if session is None:
            self._greet()

    # -- the loop's side ------------------------------------------------------------------------------------------

    def readable(self, most: int = READ_BYTES) -> None:
        """Take what has come, up to `most` bytes of ciphertext (at most READ_BYTES); the rest stays with the kernel."""
        plain = self._loop.buffers.plain
        end = 0
        try:
            end = self._receive(most)
            if end and not self.over:
                self._take(plain, end)
            if self._session is not None and self._session.ended:
                self.close()  # with a close_notify of our own (RFC 8446 section 6.1)
        except BlockingIOError:
            pass
        except ConnectionFaultError as fault:
            _log.debug("connection from %s: %s", self.address, fault)
            if not end:  # it came while records were counted
                wipe(plain.buffer)
            self.end(fault.code, str(fault))
        except (OSError, TlsClosedError):
            wipe(plain.buffer)  # it is not known how much of it was written
            self.lost()
        except Exception:  # noqa: BLE001 - what has come is lost: the client and we would not mean the same any more
            _log.exception("connection from %s", self.address)
            self.end(ErrorCode.INTERNAL_ERROR, "internal error")
        finally:
            if end:
                wipe(plain.view[:end])

    def flush(self) -> bool:
        """Send what can be sent; False where the socket takes no more now."""
        self._marked = False
        if self.over:
            return True
        try:
            done = self.out.flush(self._session, self.socket, self._loop.buffers.cipher)
        except (OSError, TlsClosedError):
            self.lost()
            return True
        except Exception:  # noqa: BLE001 - an answer is lost, or half of it: nothing more can be said
            _log.exception("connection from %s", self.address)
            self.lost()
            return True
        now = time.monotonic()
        if done:
            self.stuck_since = 0.0
        elif self.out.caught_up or not self.stuck_since:
            self.stuck_since = now
        if done and self.out.more:
            self._mark()
        elif done and self.reception.control.refusing and not self.streams:
            self.close()
        return done

    def lost(self, *, linger: bool = False) -> None:
        """The connection is gone, and its calls with it."""
        if not self.over:
            self.over = True
            try:
                self._let_go()
            finally:
                self._loop.closed(self, linger=linger)

    def end(self, code: ErrorCode, text: str = "") -> None:
        """Say why, and close at once; calls that are open are lost."""
        if self.over:
            return
        self.out.control(frames.goaway(self.reception.highest, code, text))
        self.close()

    def close(self) -> None:
        """Close, with what is in the buffer as the last word."""
        if self.over:
            return
        try:
            self.out.flush(self._session, self.socket, self._loop.buffers.cipher)
            if self._session is not None and self.ready:
                self._session.shut()
                self.out.send_records(self._session, self.socket, self._loop.buffers.cipher)
            self.socket.shutdown(socket.SHUT_WR)
        except (OSError, TlsClosedError):
            self.lost()
        self.lost(linger=True)

    def cancel_all(self) -> None:
        """End the calls that are open: the server goes away."""
        for call in list(self.streams.values()):
            call.end(Code.UNAVAILABLE, "the server is shutting down")
        self.finish_draining()

    def drain(self, grace_s: float) -> None:
        """Take no new calls; close when those that are open have ended (RFC 9113 section 6.8: in two steps).

        That is after `grace_s` seconds at the latest.
        """
        if self.over or self.drained_since:
            return
        self.drained_since = time.monotonic()
        self.served_until = self.drained_since + grace_s
        if not self.reception.control.greeted:
            self.close()
            return
        self.out.control(frames.goaway(frames.STREAM_BITS, ErrorCode.NO_ERROR))
        self.out.control(frames.frame(frames.PING, 0, 0, _DRAIN_PING))

    def finish_draining(self) -> None:
        """The client has seen the first GOAWAY, or had time enough: calls that it begins from now on are not taken."""
        if self.drained_since and not self.reception.control.refusing:
            self.reception.control.refusing = True
            self.out.control(frames.goaway(self.reception.highest, ErrorCode.NO_ERROR))

    def shed(self) -> None:
        """Give back what is needed only while something passes; nothing does."""
        if self._session is not None:
            self._session.shed()

    def ping(self, now: float) -> None:
        """Ask whether the client lives."""
        self.pinged = now
        self.out.control(frames.frame(frames.PING, 0, 0, _KEEPALIVE_PING))

    # -- what frames mean for the whole connection ------------------------------------------------------------------

    def ponged(self, payload: bytes) -> None:
        """Take note of the answer to a PING of ours."""
        if payload == _DRAIN_PING:
            self.finish_draining()
        else:
            self.pinged = 0.0

    def left(self) -> None:
        """Take note that the client opens no more streams; what is open is answered."""
        if not self.drained_since:
            self.drained_since = self.heard
            self.served_until = self.heard + self._loop.limits.reply_timeout_s
        self._mark()

    # -- the calls' side ------------------------------------------------------------------------------------------

    def soon(self, action: Callable[[], None]) -> None:
        """Have `action` run later in this turn."""
        self._loop.soon(action)

    def unexpect(self, call: Http2Call) -> None:
        """Forget the deadline of `call`: it has ended."""
        self._loop.unexpect(call)

    def cut_off(self) -> None:
        """Close the connection, later in this turn."""
        self._loop.soon(lambda: self.end(ErrorCode.ENHANCE_YOUR_CALM, "too many calls were cancelled"))

    # -- bytes ----------------------------------------------------------------------------------------------------

    def _receive(self, most: int) -> int:
        """Read and decrypt; return where the plaintext in the buffer ends, 0 where there is none."""
        cipher, plain = self._loop.buffers
        session = self._session
        start = len(self._rest)
        if session is None:
            got = self.socket.recv_into(plain.view[start : start + most])
            if not got:
                raise TlsClosedError("the client has closed")
        else:
            got = self.socket.recv_into(cipher.buffer, most)
            if not got:
                raise TlsClosedError("the client has closed")
            session.feed(cipher, got)
            if not self.ready and not self._shake_hands(session):
                return 0
            came, got = got, session.read(plain, start) - start
            self._charge_for_records(came, got)
            self.out.send_records(session, self.socket, cipher)  # an answer to a key update, if there is one
        if start and got:
            plain.view[:start] = self._rest
            wipe(self._rest)
            self._rest.clear()
        return start + got if got else 0

    def _charge_for_records(self, came: int, got: int) -> None:
        """Have records paid for that bring nothing (key updates), or a byte or two: to us they are no cheaper."""
        self._hollow = max(0, self._hollow + came - WORTH * got)
        if self._hollow > HOLLOW_BYTES:
            self.reception.charge((self._hollow - HOLLOW_BYTES) // HOLLOW_RECORD_BYTES)
            self._hollow = HOLLOW_BYTES

    def _shake_hands(self, session: TlsSession) -> bool:
        try:
            self.ready = session.handshake()
        finally:
            self.out.send_records(session, self.socket, self._loop.buffers.cipher)
        if self.ready:
            self.peer = session.peer
            self._greet()
            self._loop.identified(self)
        return self.ready

    def _greet(self) -> None:
        """Send our half of the preface."""
        limits = self._loop.limits
        self.ready = True
        self.out.control(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.streams_per_connection,
                    Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    Setting.MAX_FRAME_SIZE: LARGEST_FRAME,
                    Setting.MAX_HEADER_LIST_SIZE: limits.metadata_bytes,
                }
            )
            + frames.window_update(0, frames.WINDOW_LIMIT - frames.DEFAULT_WINDOW)
        )

    def _mark(self) -> None:
        if not self._marked:
            self._marked = True
            self._loop.mark(self)

    def _take(self, plain: Place, end: int) -> None:
        """Take what a turn has brought; keep the beginning of a frame, and know since when we wait for the rest."""
        self.heard = time.monotonic()
        start = self._skip_preface(plain.buffer, end)
        if self._started:
            start = self.reception.take(plain, start, end)
        if self.over:
            return
        self._rest += plain.view[start:end]
        if not self._rest and not self.reception.in_block:
            self.waiting_since = 0.0
        elif start or not self.waiting_since:
            self.waiting_since = self.heard

    def _skip_preface(self, buffer: bytearray, end: int) -> int:
        """Return where frames begin: behind the preface, if it is still to come and whole."""
        if self._started:
            return 0
        size = len(frames.PREFACE)
        if buffer[: min(end, size)] != frames.PREFACE[:end]:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "wanted HTTP/2's preface")
        self._started = end >= size
        return size if self._started else 0

    def _let_go(self) -> None:
        """End every call, and overwrite what is left of them."""
        self.reception.forget()
        for call in list(self.streams.values()):
            self._loop.guard(call.broken)
        self._loop.guard(self.out.close)
        self._session = None  # with its keys
        wipe(self._rest)
        self._rest.clear()
