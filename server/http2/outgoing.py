"""One connection's way out: what is to be sent, within the client's windows, and the socket's end of it.

A small answer whose client has room is written at once, head, message and trailers together. Everything else waits in
its call's outbox; calls take turns, a chunk each. Plaintext lies in one buffer until the end of the loop's turn; then
it is encrypted, overwritten, and sent with one system call, for all answers of the turn.
"""

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from hermetic.enclave.zero_on_free import (
    wipe,
    wipe_bytes_about_to_be_freed,
    wipe_immutable_bytes_that_nobody_else_holds,
)
from hermetic.server.http2 import answers
from hermetic.server.http2.discards import Discards
from hermetic.server.http2.frames import (
    DATA,
    DEFAULT_FRAME,
    DEFAULT_TABLE,
    DEFAULT_WINDOW,
    END_HEADERS,
    HEADER,
    HEADERS,
    LARGEST_FRAME,
    WINDOW_LIMIT,
    ConnectionFaultError,
    ErrorCode,
    Setting,
    reset,
)
from hermetic.server.http2.messages import PREFIX_BYTES
from hermetic.server.http2.tls import Place, TlsSession

CHUNK_BYTES: Final = 64 * 1024  # of one call's message before the next one's turn
TURN_BYTES: Final = 256 * 1024  # of waiting messages that are encrypted at a time: no more than this waits in TLS
MOST_WAITING: Final = 1 << 20  # bytes for the socket: refusals and acknowledgements, which no window holds back
_PREFIX: Final = struct.Struct(">IBIBI")  # a DATA frame's header, and a message's prefix
# Headers of HEADERS, an indexed head of three octets, and the same.
_HEAD: Final = struct.Struct(">IBI3sIBIBI")
_TRAILERS: Final = struct.Struct(">IBI1s")
_INDEXED_HEAD: Final = answers.INDEXED.head
_INDEXED_TRAILERS: Final = answers.INDEXED.trailers
_HEADERS_OF_HEAD: Final = len(_INDEXED_HEAD) << 8 | HEADERS
_HEADERS_OF_TRAILERS: Final = len(_INDEXED_TRAILERS) << 8 | HEADERS


class Message:
    """A message in an outbox, sent up to `at`. `last`: the status OK follows it."""

    __slots__ = ("at", "data", "last", "secret")

    def __init__(self, data: bytes, *, secret: bool, last: bool) -> None:
        self.data, self.secret, self.last = data, secret, last
        self.at = -PREFIX_BYTES


class Sender(Protocol):
    """A call as its connection's way out sees it. `outbox`: messages, and None for the end of a stream."""

    id: int
    window: int
    head_sent: bool
    half_closed: bool
    outbox: deque[Message | None] | None

    def left(self) -> None:
        """Take note that the call's status is in the buffer."""

    def delivered(self) -> None:
        """Take note that the call's status has left."""

    def undelivered(self) -> None:
        """Take note that the call's status will never leave."""

    def delivered_one(self) -> None:
        """Take note that a message of a stream has left."""


class Outgoing:
    """Everything of one connection that is to be sent. Windows are in octets."""

    __slots__ = (
        "_blocks",
        "_discards",
        "_left",
        "_sealed",
        "_settled",
        "_table_update",
        "_waiting",
        "caught_up",
        "first_window",
        "frame_limit",
        "mark",
        "plain",
        "window",
    )

    def __init__(self, mark: Callable[[], None], discards: Discards) -> None:
        """`mark` is called when something is to be sent; again and again, so it must be cheap."""
        self.mark = mark
        self._discards = discards
        self.plain = bytearray()
        self._left = bytearray()  # ciphertext that the socket did not take
        self._settled: deque[tuple[Sender, bool]] = deque()  # whose message is in `plain`, or whose status is, too
        self._sealed = 0  # the first of those: what they wait for is encrypted
        self.caught_up = False  # the last flush has sent all that waited for the socket before it
        self._waiting: dict[Sender, None] = {}  # have something in their outbox
        self.window = DEFAULT_WINDOW  # of the connection, octets
        self.first_window = DEFAULT_WINDOW  # of each new stream
        self.frame_limit = DEFAULT_FRAME
        self._blocks = answers.FIRST
        self._table_update = b""

    @property
    def choked(self) -> bool:
        """Whether so much waits for the socket that nothing is to be read that would be answered with more."""
        return len(self._left) + len(self.plain) > MOST_WAITING

    @property
    def waiting(self) -> int:
        """How many calls have something in their outbox."""
        return len(self._waiting)

    def control(self, frame: bytes) -> None:
        """Send a frame that flow control does not govern."""
        self.plain += frame
        self.mark()

    def answer(self, call: Sender, message: bytes, *, secret: bool) -> None:
        """Send a unary call's message and status OK: at once where there is room, else as room comes."""
        size = len(message) + PREFIX_BYTES
        if size > call.window or size > self.window or size > self.frame_limit:
            self.put(call, Message(message, secret=secret, last=True))
            return
        self.window -= size
        plain, stream = self.plain, call.id
        if self._blocks is answers.INDEXED:
            plain += _HEAD.pack(
                _HEADERS_OF_HEAD, END_HEADERS, stream, _INDEXED_HEAD, size << 8, 0, stream, 0, size - PREFIX_BYTES
            )
            plain += message
            plain += _TRAILERS.pack(_HEADERS_OF_TRAILERS, 5, stream, _INDEXED_TRAILERS)
        else:
            blocks = self._blocks
            plain += self._headers(stream, blocks.head, last=False)
            plain += _PREFIX.pack(size << 8 | DATA, 0, stream, 0, size - PREFIX_BYTES)
            plain += message
            plain += self._headers(stream, blocks.trailers, last=True)
            if blocks is answers.FIRST:
                self._blocks = answers.INDEXED
        if secret:
            wipe_bytes_about_to_be_freed(message)
        self._end(call)

    def put(self, call: Sender, message: Message | None) -> None:
        """Send a message of `call`, or None for status OK, when what was put before it has gone."""
        if call.outbox is None:
            call.outbox = deque()
        call.outbox.append(message)
        self._waiting[call] = None
        self.mark()

    def fail(self, call: Sender, block: bytes, *, alone: bool) -> None:
        """End `call` with this block; what it has not sent is dropped."""
        self.forget(call)
        self.plain += self._headers(call.id, block, last=True)
        call.head_sent = call.head_sent or alone
        self._end(call)

    def forget(self, call: Sender) -> None:
        """Drop what waits in the outbox of `call`; secrets are overwritten, large ones in later turns."""
        self._waiting.pop(call, None)
        for message in call.outbox or ():
            if message is not None and message.secret:
                self._discards.add(message.data)
        call.outbox = None

    def widen(self, increment: int) -> None:
        """Take note that the client has opened the connection's window."""
        self.window += increment
        if self.window > WINDOW_LIMIT:
            raise ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too wide")
        if self._waiting:
            self.mark()

    def _shrink_table(self) -> None:
        """Use the client's dynamic table no more: it is to be smaller than what may stand in it."""
        self._table_update, self._blocks = b"\x20", answers.LITERAL  # RFC 7541 section 6.3: size 0

    def obey(self, name: int, value: int, calls: Iterable[Sender]) -> None:
        """Obey one of the client's settings (section 6.5.2); `ConnectionFaultError` where it is none."""
        if name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH of neither 0 nor 1")
        if name == Setting.INITIAL_WINDOW_SIZE:
            if value > WINDOW_LIMIT:
                raise ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too wide")
            change = value - self.first_window
            self.first_window = value
            for call in calls:
                call.window += change
                if call.window > WINDOW_LIMIT:
                    raise ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too wide")
        elif name == Setting.MAX_FRAME_SIZE:
            if not DEFAULT_FRAME <= value <= LARGEST_FRAME:
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")
            self.frame_limit = value
        elif name == Setting.HEADER_TABLE_SIZE and value < DEFAULT_TABLE:
            self._shrink_table()

    def flush(self, session: TlsSession | None, connection: socket.socket, cipher: Place) -> bool:
        """Send what can be sent; False where the socket takes no more. `OSError` where it is gone.

        At most about `TURN_BYTES` of waiting messages: whoever has more comes again.
        """
        self.caught_up = False
        if self._left:
            with memoryview(self._left) as left:  # an error must not keep it: what is exported cannot be emptied
                sent = _send(connection, left)
            del self._left[:sent]
            if self._left:
                return False
        self.caught_up = True
        self._tell_sealed()
        self._fill()
        if self.plain:
            self._encrypt(session, connection, cipher)
            self._sealed = len(self._settled)
            if self._left:
                return False
        self._tell_sealed()
        return True

    def _tell_sealed(self) -> None:
        """Tell those whose answer has left, though the socket may never be without more of others."""
        while self._sealed:
            self._sealed -= 1
            call, ended = self._settled.popleft()
            if ended:
                call.delivered()
            else:
                call.delivered_one()

    @property
    def more(self) -> bool:
        """Whether something could be sent at once."""
        return bool(self.plain) or any(self._can_go(call) for call in self._waiting)

    def close(self) -> None:
        """Overwrite everything that was not sent, and know the connection no more: it would keep itself alive."""
        self.mark = _nothing
        wipe(self.plain)
        self.plain.clear()
        for call in list(self._waiting):
            self.forget(call)
        settled, self._settled, self._sealed = self._settled, deque(), 0
        for call, ended in settled:
            if ended:
                call.undelivered()

    def _encrypt(self, session: TlsSession | None, connection: socket.socket, cipher: Place) -> None:
        plain = self.plain
        if session is None:  # tests only: nobody serves without TLS
            with memoryview(plain) as view:
                sent = _send(connection, view)
            self._left += plain[sent:]
        else:
            session.write(plain)
            self.send_records(session, connection, cipher)
        wipe(plain)
        plain.clear()

    def send_records(self, session: TlsSession, connection: socket.socket, cipher: Place) -> None:
        """Send what TLS has ready: what was encrypted, and its own words (handshakes, alerts, key updates)."""
        while size := session.take(cipher):
            sent = 0 if self._left else _send(connection, cipher.view[:size])
            if sent < size:
                self._left += cipher.view[sent:size]

    def _fill(self) -> None:
        """Move what the windows let go from the outboxes into the buffer, in turns."""
        while self._waiting and len(self.plain) < TURN_BYTES:
            moved = False
            for call in list(self._waiting):
                if self._move(call):
                    moved = True
                    if self._waiting.pop(call, call) is None:  # whoever has had a turn is the last to have the next
                        self._waiting[call] = None
            if not moved:
                return

    def _move(self, call: Sender) -> bool:
        """Move one chunk of the call's next message; whether anything could be."""
        outbox = call.outbox
        if not outbox:
            self._waiting.pop(call, None)
            return False
        message = outbox[0]
        if message is not None and not self._move_chunk(call, message):
            return False
        if message is None or message.at == len(message.data):
            outbox.popleft()
            self._finish(call, message)
            if not outbox:
                self._waiting.pop(call, None)
        return True

    def _finish(self, call: Sender, message: Message | None) -> None:
        """What follows a message that is in the buffer as a whole: the status, or word that it is."""
        if message is not None and message.secret:
            wipe_immutable_bytes_that_nobody_else_holds(message.data)
        if message is not None and not message.last:
            self._settled.append((call, False))
            return
        self._begin(call)
        self.plain += self._headers(call.id, answers.LITERAL.trailers, last=True)
        self._end(call)

    def _move_chunk(self, call: Sender, message: Message) -> bool:
        """Move as much of a message as windows and turns allow; False where that is nothing."""
        room = min(self.window, call.window, CHUNK_BYTES)
        if room <= 0:
            return False
        self._begin(call)
        size_of_all = len(message.data)
        while room > 0 and message.at < size_of_all:
            at, size = message.at, min(room, self.frame_limit, size_of_all - message.at)
            self.plain += HEADER.pack(size << 8 | DATA, 0, call.id)
            if at < 0:  # a window may be narrower than the prefix
                self.plain += (b"\0" + size_of_all.to_bytes(4, "big"))[at:][:size]
            self.plain += memoryview(message.data)[max(at, 0) : max(at + size, 0)]
            message.at = at + size
            room -= size
            self.window -= size
            call.window -= size
        return True

    def _can_go(self, call: Sender) -> bool:
        outbox = call.outbox
        if not outbox:
            return False
        return outbox[0] is None or (call.window > 0 and self.window > 0)

    def _begin(self, call: Sender) -> None:
        if not call.head_sent:
            call.head_sent = True
            self.plain += self._headers(call.id, answers.LITERAL.head, last=False)

    def _headers(self, stream: int, block: bytes, *, last: bool) -> bytes:
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
        return answers.headers_frame(stream, block, last=last)

    def _end(self, call: Sender) -> None:
        """The status is in the buffer: whatever the client still sends for this call is of no use."""
        if not call.half_closed:
            self.plain += reset(call.id, ErrorCode.NO_ERROR)  # RFC 9113 section 8.1
        call.left()
        self._settled.append((call, True))
        self.mark()


def _nothing() -> None:
    """Mark nothing: the connection is over."""


def _send(connection: socket.socket, data: memoryview) -> int:
    try:
        return connection.send(data)
    except BlockingIOError:
        return 0
