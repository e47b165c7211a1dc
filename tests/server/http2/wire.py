"""A client of HTTP/2 made by hand: it says what it is told to, sound or not, and reads what comes (RFC 9113, RFC 7541).

Nothing of the server is imported here. Header blocks are literals without Huffman unless a test makes its own; what the
server sends is decoded by the `hpack` package, as strictly as that does.
"""

import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
(
    NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR,
    REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM,
) = range(12)  # fmt: skip
TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_LIST = range(1, 7)
FRAME_BYTES = 16384  # what either side takes before it has said otherwise
WINDOW = 65535  # the same for windows
LARGEST_WINDOW = 2**31 - 1
TIMEOUT_S = 60.0

Fields = Sequence[tuple[str, str]]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == RST_STREAM else self.payload[4:8], "big")


class ClosedError(ConnectionError):
    """The server has closed the connection. `goaway` is the last one that it sent."""

    def __init__(self, goaway: Frame | None) -> None:
        super().__init__(f"closed after {goaway}")
        self.goaway = goaway

    @property
    def code(self) -> int | None:
        """The code of the last GOAWAY; None where the server closed without a word."""
        return None if self.goaway is None else self.goaway.code


@dataclass
class Answer:
    """What came on one stream. `reset` is a code; with `ended` it came after END_STREAM."""

    head: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The gRPC status."""
        fields = self.trailers or self.head
        return int(fields["grpc-status"]) if "grpc-status" in fields else None

    @property
    def messages(self) -> list[bytes]:
        """The messages, all of them whole."""
        return messages(self.data)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def padded(data: bytes, padding: int) -> bytes:
    return bytes((padding,)) + data + bytes(padding)


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """One message as gRPC frames it, whose length may be a lie."""
    return bytes((flag,)) + struct.pack(">I", len(data) if length is None else length) + data


def messages(data: bytes) -> list[bytes]:
    found = []
    while data:
        flag, length = data[0], int.from_bytes(data[1:5], "big")
        assert flag == 0
        assert len(data) >= 5 + length
        found.append(data[5 : 5 + length])
        data = data[5 + length :]
    return found


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """An integer with a prefix of so many bits (RFC 7541 section 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes((*out, value))


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return integer(len(raw), 7) + raw


def literal(name: str | bytes, value: str | bytes, first: int = 0) -> bytes:
    """A field with a new name. `first`: 0 is not indexed, 0x10 never indexed, 0x40 put into the dynamic table."""
    return bytes((first,)) + text(name) + text(value)


def indexed(index: int) -> bytes:
    return integer(index, 7, 0x80)


def block(fields: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(literal(name, value) for name, value in fields)


def fields(
    path: str = "/test/Echo", /, *more: tuple[str, str], without: str = "", **instead: str
) -> list[tuple[str, str]]:
    """The fields of a gRPC request. `instead`: `method="GET"` stands for `:method`, `te` for itself."""
    sound = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for name, value in instead.items():
        sound[f":{name}" if f":{name}" in sound else name.replace("_", "-")] = value
    return [(name, value) for name, value in sound.items() if name != without] + list(more)


class Peer:
    """One connection. Unless `shy`, it answers SETTINGS and PING of the server by itself while it reads."""

    def __init__(
        self,
        port: int,
        *pairs: tuple[int, int],
        connection: socket.socket | None = None,
        begin: bool = True,
        shy: bool = False,
    ) -> None:
        """`pairs` are settings of ours; `connection` stands for a new one to `port`; not `begin`: no preface."""
        self.socket = connection or socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(TIMEOUT_S)
        self.shy = shy
        self.settings: dict[int, int] = {}  # the server's
        self.windows: dict[int, int] = {0: WINDOW}  # how much we may send; of streams, beyond what SETTINGS say
        self.acknowledged = 0  # SETTINGS of ours
        self.goaways: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self.decoder = Decoder()
        self._sizes = [value for key, value in pairs if key == TABLE_SIZE]
        self._smallest: int | None = None  # of the sizes acknowledged since the last block
        self._block: tuple[Frame, bytes] | None = None
        self._next = 1
        self._pending = bytearray()
        if begin:
            self.send(PREFACE + settings(*pairs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def stream(self) -> int:
        """A number that no stream has had."""
        self._next += 2
        return self._next - 2

    def opening(self, stream: int, method: str = "/test/Echo", *more: tuple[str, str], end: bool = False) -> bytes:
        """The frame that opens a sound call."""
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream, block(fields(method, *more)))

    def call(self, method: str = "/test/Echo", data: bytes | None = b"", *more: tuple[str, str]) -> int:
        """Send a whole request with one message, or none, in one go; return its stream."""
        stream = self.stream()
        body = b"" if data is None else message(data)
        opening = self.opening(stream, method, *more, end=data is None)
        self.send(opening, b"" if data is None else frame(DATA, END_STREAM, stream, body))
        return stream

    def echo(self, data: bytes = b"hello") -> None:
        """A call that must be answered well."""
        answer = self.answer(self.call("/test/Echo", data))
        assert (answer.status, answer.messages) == (0, [data]), answer

    def read(self) -> Frame:
        """The next frame; what it says is noted."""
        header = self._take(9)
        got = Frame(
            header[3], header[4], int.from_bytes(header[5:], "big"), self._take(int.from_bytes(header[:3], "big"))
        )
        self._note(got)
        return got

    def read_until(self, kind: int, stream: int = 0, *, flags: int = 0) -> Frame:
        """The next frame of a kind on a stream."""
        while True:
            got = self.read()
            if (got.kind, got.stream) == (kind, stream) and got.flags & flags == flags:
                return got

    def answer(self, stream: int) -> Answer:
        """What has come on `stream`, when it has ended."""
        while not (self.heard(stream).ended or self.heard(stream).reset is not None):
            self.read()
        return self.heard(stream)

    def heard(self, stream: int) -> Answer:
        """What has come on `stream` so far."""
        return self.answers.setdefault(stream, Answer())

    def has_word(self) -> bool:
        """Whether there is something to read at once."""
        return bool(self._pending or select.select([self.socket], [], [], 0)[0])

    def settle(self) -> None:
        """Return when the server has handled all that was sent, and said what it had to: it answers a PING, twice."""
        for _ in range(2):  # what it said of what came before the first stands before its answer to the second
            mark = struct.pack(">d", time.monotonic())
            self.send(frame(PING, 0, 0, mark))
            while self.read_until(PING, flags=ACK).payload != mark:
                pass

    def end(self) -> Frame | None:
        """Read to the end of the connection; the last GOAWAY, if any."""
        try:
            while True:
                self.read()
        except ClosedError as closed:
            return closed.goaway

    def _note(self, got: Frame) -> None:
        if self._block is not None or got.kind in (HEADERS, CONTINUATION):
            self._headers(got)
        elif got.kind == SETTINGS:
            self._settings(got)
        elif got.kind == PING and not got.flags & ACK and not self.shy:
            self.send(frame(PING, ACK, 0, got.payload))
        elif got.kind == GOAWAY:
            self.goaways.append(got)
        elif got.kind == WINDOW_UPDATE:
            self.windows[got.stream] = self.windows.get(got.stream, 0) + int.from_bytes(got.payload, "big")
        elif got.kind == RST_STREAM:
            answer = self.heard(got.stream)
            assert answer.reset is None or got.code == STREAM_CLOSED, got  # to what came later still
            answer.reset = got.code if answer.reset is None else answer.reset
        elif got.kind == DATA:
            answer = self.heard(got.stream)
            assert not answer.ended, got
            answer.data += got.payload
            answer.ended = bool(got.flags & END_STREAM)

    def _settings(self, got: Frame) -> None:
        if got.flags & ACK:
            assert not got.payload
            self.acknowledged += 1
            if self._sizes:
                size = self.decoder.max_allowed_table_size = self._sizes.pop(0)
                self._smallest = size if self._smallest is None else min(size, self._smallest)
            return
        self.settings.update(struct.iter_unpack(">HI", got.payload))
        if not self.shy:
            self.send(frame(SETTINGS, ACK))

    def resize(self, size: int) -> bytes:
        """A SETTINGS frame for the table that the server's header blocks use; it holds from its acknowledgement on."""
        self._sizes.append(size)
        return settings((TABLE_SIZE, size))

    def _headers(self, got: Frame) -> None:
        first, so_far = self._block or (got, b"")
        assert got.kind == (HEADERS if self._block is None else CONTINUATION), got
        assert got.stream == first.stream, got
        self._block = (first, so_far + got.payload)
        if not got.flags & END_HEADERS:
            return
        decoded = {str(name): str(value) for name, value in self._decode(self._block[1])}
        self._block = None
        answer = self.heard(got.stream)
        assert not answer.ended, got
        if answer.head:
            answer.trailers = decoded
        else:
            answer.head = decoded
        answer.ended = bool(first.flags & END_STREAM)

    def _decode(self, whole: bytes) -> Iterable[tuple[str | bytes, str | bytes]]:
        """A table that was made smaller must be told so at the beginning of the next block (RFC 9113 section 4.3.1)."""
        smallest, self._smallest = self._smallest, None
        if smallest is not None and smallest < self.decoder.header_table_size:
            assert whole[0] >> 5 == 1, whole
            assert smallest >= 31 or whole[0] & 31 <= smallest, whole
        return [(name, value) for name, value in self.decoder.decode(whole)]

    def _take(self, size: int) -> bytes:
        while len(self._pending) < size:
            try:
                more = self.socket.recv(1 << 18)
            except ConnectionError:
                more = b""
            if not more:
                raise ClosedError(self.goaways[-1] if self.goaways else None)
            self._pending += more
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        return taken
