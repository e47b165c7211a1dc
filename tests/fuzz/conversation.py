"""One connection of the server without sockets: what a client sends is the fuzzer's, what it hears is judged."""

import socket
from collections.abc import Callable
from typing import Any, Final, cast

from hpack import Decoder, HPACKError

from hermetic.server.config import Limits
from hermetic.server.http2 import frames
from hermetic.server.http2.call import Http2Call
from hermetic.server.http2.connection import Buffers, Connection
from hermetic.server.http2.discards import Discards
from hermetic.server.http2.frames import ErrorCode
from hermetic.server.transport import Call
from tests.server.http2.application import Application

LIMITS: Final = Limits(message_bytes=1 << 20, stream_window_bytes=16384, metadata_bytes=4096, streams_per_connection=8)
BUFFERS: Final = Buffers.new()
ROUNDS: Final = 100  # turns of the loop until it must have come to rest
METHODS: Final = frozenset(f"/test/{name}" for name in ("Echo", "Stream", "Sink", "Late", "Never", "Break", "Unasked"))


class _Socket:
    """What has come is read in pieces; what is sent is kept."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.sent = bytearray()

    def recv_into(self, buffer: memoryview) -> int:
        if not self.pieces:
            raise BlockingIOError
        piece = self.pieces.pop(0)
        size = min(len(piece), len(buffer))
        buffer[:size] = piece[:size]
        if piece[size:]:
            self.pieces.insert(0, piece[size:])
        return size

    def send(self, data: memoryview) -> int:
        self.sent += data
        return len(data)

    def shutdown(self, how: int) -> None:
        pass


class _Loop:
    """The loop of one connection. An error that the real one would log is raised."""

    def __init__(self) -> None:
        self.buffers = BUFFERS
        self.discards = Discards()
        self.limits = LIMITS
        self.application = Application()
        self.metadata_read = self.application.metadata_read
        self.actions: list[Callable[[], object]] = []
        self.over = 0

    def accept(self, call: Http2Call) -> None:
        if call.method in METHODS:  # the others raise on some messages
            self.application.accept(cast("Call", call))
        else:
            call.drop()

    def expect(self, call: Http2Call) -> None:
        pass

    def unexpect(self, call: Http2Call) -> None:
        pass

    def identified(self, connection: Connection) -> None:
        pass

    def mark(self, connection: Connection) -> None:
        self.actions.append(connection.flush)

    def soon(self, action: Callable[[], None]) -> None:
        self.actions.append(action)

    def guard(self, action: Callable[[], object]) -> None:
        action()

    def closed(self, connection: Connection, *, linger: bool) -> None:
        self.over += 1

    def rest(self) -> bool:
        """Do what was put off; whether there was an end to it."""
        for _ in range(ROUNDS):
            if not self.actions:
                return True
            actions, self.actions = self.actions, []
            for action in actions:
                action()
            self.discards.wipe_some()
        return not self.actions


def converse(pieces: list[bytes]) -> bytes:
    """Send `pieces`, after a sound beginning, each as one read; return what the server says."""
    loop = _Loop()
    own = _Socket([frames.PREFACE + frames.settings({}), *pieces])
    connection = Connection(cast("Any", loop), cast("socket.socket", own), "ipv4:127.0.0.1:1", None)
    while own.pieces and not connection.over:
        connection.readable()
        if not loop.rest():
            raise RuntimeError("the loop does not come to rest")
    connection.lost()
    if loop.over != 1 or connection.streams:
        raise RuntimeError(f"closed {loop.over} times, {len(connection.streams)} streams left")
    return bytes(own.sent)


def fault(said: bytes, largest_frame: int) -> str | None:
    """Return what is wrong with what the server said: its frames, its header blocks, an end that is its own fault."""
    decoder = Decoder()
    at = 0
    ended: set[int] = set()
    while at < len(said):
        kind, flags, stream = frames.HEADER.unpack_from(said, at)
        length, kind = kind >> 8, kind & 0xFF
        payload = said[at + frames.HEADER_BYTES : at + frames.HEADER_BYTES + length]
        at += frames.HEADER_BYTES + length
        if len(payload) < length or length > largest_frame:
            return f"a frame of {length} octets, {len(payload)} there"
        if kind in (frames.DATA, frames.HEADERS) and stream in ended:
            return f"more of stream {stream} after its end"
        if kind == frames.HEADERS:
            try:
                decoder.decode(payload)
            except HPACKError as error:
                return f"a header block: {error!r}"
        if flags & frames.END_STREAM and kind in (frames.DATA, frames.HEADERS):
            ended.add(stream)
        if kind == frames.GOAWAY and payload[4:8] == ErrorCode.INTERNAL_ERROR.to_bytes(4, "big"):
            return "an internal error"
    return None
