"""HTTP/2 by hand, for what no gRPC client would send: RFC 9113 frames, HPACK literals without Huffman (RFC 7541).

A connection reads what comes only when it is told to, and keeps only what an attacker wants to know: how far the
windows let it send, and how many of its streams are over.
"""

import contextlib
import socket
import ssl
import struct
from typing import Final, NamedTuple, Self

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL: Final = 8
INITIAL_WINDOW_SIZE: Final = 4
DEFAULT_WINDOW: Final = 65535
FRAME_BYTES: Final = 16384
TIMEOUT_S: Final = 10.0


class Door(NamedTuple):
    """Where a server listens, and with what one enters: PEM files; none of ours is one that TLS refuses."""

    host: str
    port: int
    authority: str
    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        """Return a client's TLS context that speaks h2."""
        context = ssl.create_default_context(cafile=self.authority)
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(self.certificate, self.key)
        return context

    def plain(self) -> socket.socket:
        """Return a TCP connection on which nothing has been said."""
        return socket.create_connection((self.host, self.port), TIMEOUT_S)


class Connection:
    """One HTTP/2 connection over TLS."""

    def __init__(self, door: Door, context: ssl.SSLContext, *, window: int = DEFAULT_WINDOW) -> None:
        """`window`: how many bytes of each reply the server may send before we take any."""
        plain = door.plain()
        try:
            self._socket = context.wrap_socket(plain, server_hostname=door.host)
        except OSError:
            plain.close()
            raise
        self._next = 1
        self._pending = bytearray()
        self._initial = DEFAULT_WINDOW
        self.windows: dict[int, int] = {0: DEFAULT_WINDOW}
        self.over = 0  # streams that the server has ended
        self.gone = False  # the server has said goodbye, or just gone
        self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def headers(self, method: str, *, end: bool = False, more: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Return a new stream's number and the frame that opens it."""
        stream, self._next = self._next, self._next + 2
        self.windows[stream] = self._initial
        block = header_block(method, more or {})
        return stream, frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)

    def send(self, frames: bytes) -> None:
        """Send frames as they are; `OSError` where the server takes no more."""
        self._socket.sendall(frames)

    def take(self, wait_s: float = 0.0) -> bool:
        """Read what has come within `wait_s` and note it; False where nothing has."""
        self._socket.settimeout(wait_s)
        try:
            data = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            self.gone = True
            return False
        finally:
            with contextlib.suppress(OSError):
                self._socket.settimeout(TIMEOUT_S)
        if not data:
            self.gone = True
            return False
        self._pending += data
        self._note()
        return True

    def push(self, stream: int, data: bytes) -> int:
        """Send as much of `data` as one frame and the windows allow; return how many bytes."""
        size = min(len(data), FRAME_BYTES, self.windows[0], self.windows.get(stream, 0))
        if size > 0:
            self.send(frame(DATA, 0, stream, data[:size]))
            self.windows[0] -= size
            self.windows[stream] -= size
        return max(0, size)

    def _note(self) -> None:
        at = 0
        while len(self._pending) - at >= 9:  # noqa: PLR2004 - a frame's header
            length = int.from_bytes(self._pending[at : at + 3], "big")
            if len(self._pending) - at < 9 + length:
                break
            kind, flags = self._pending[at + 3], self._pending[at + 4]
            stream = int.from_bytes(self._pending[at + 5 : at + 9], "big") & 0x7FFFFFFF
            self._frame(kind, flags, stream, bytes(self._pending[at + 9 : at + 9 + length]))
            at += 9 + length
        del self._pending[:at]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self.windows[stream] = self.windows.get(stream, 0) + int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == INITIAL_WINDOW_SIZE:
                    for opened in self.windows.keys() - {0}:
                        self.windows[opened] += value - self._initial
                    self._initial = value
            self.send(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self.over += self.windows.pop(stream, None) is not None
        elif kind == GOAWAY:
            self.gone = True


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(data: bytes, *, length: int | None = None, compressed: bool = False) -> bytes:
    """Return gRPC's framing of a message, whose length may be a lie."""
    return bytes((compressed,)) + struct.pack(">I", len(data) if length is None else length) + data


def header_block(method: str, more: dict[str, str]) -> bytes:
    """Return the header block of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": method,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        **more,
    }
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields.items())


def _string(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()
