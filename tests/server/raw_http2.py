"""HTTP/2 by hand, for what no gRPC client would send: RFC 9113 frames, HPACK literals without Huffman (RFC 7541)."""

import socket
import ssl
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from hermetic.server.access import INFERENCE
from tests.server.certificates import Pair

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
INITIAL_WINDOW_SIZE = 4
TIMEOUT_S = 60


def tls_context(authority: bytes, client: Pair | None, protocols: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """Return a client's context that speaks h2, or what is given."""
    context = ssl.create_default_context(cadata=authority.decode())
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if client is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "client.pem"
            path.write_bytes(client.certificate + client.key)
            context.load_cert_chain(path)
    return context


class RawConnection:
    """One HTTP/2 connection."""

    def __init__(self, port: int, authority: bytes, client: Pair, *, window: int = 65535) -> None:
        """`window`: how many bytes of a reply the server may send before we take any."""
        plain = socket.create_connection(("localhost", port), TIMEOUT_S)
        self._socket = tls_context(authority, client).wrap_socket(plain, server_hostname="localhost")
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))
        self._stream = -1
        self._pending = b""
        self.content = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def headers(self, method: str = INFERENCE + "ModelInfer", *, end: bool = False, **more: str) -> int:
        """Open a stream; returns its id."""
        self._stream += 2
        fields = {
            ":method": "POST",
            ":scheme": "https",
            ":path": method,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields.items())
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), self._stream, block))
        return self._stream

    def data(self, stream: int, message: bytes, *, end: bool = True) -> None:
        """Send one gRPC message."""
        self.send(frame(DATA, END_STREAM if end else 0, stream, b"\0" + struct.pack(">I", len(message)) + message))

    def reset(self, stream: int) -> None:
        """Cancel a stream."""
        self.send(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    def send(self, frames: bytes) -> None:
        """Send frames as they are."""
        self._socket.sendall(frames)

    def status(self, stream: int) -> int:
        """Return the gRPC status that ends `stream`; what came on it before is `content`."""
        block = self.content = b""
        while True:
            kind, flags, got, payload = self._frame()
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0, b""))
            if got == stream and kind == DATA:
                self.content += payload
            if got == stream and kind == HEADERS:
                block += payload
                if flags & END_STREAM:
                    at = block.index(b"grpc-status") + len(b"grpc-status")
                    return int(block[at + 1 : at + 1 + block[at]])
            if kind == GOAWAY or (kind == RST_STREAM and got == stream):
                raise ConnectionError(f"frame {kind}")

    def drop_status(self, stream: int) -> None:
        """Wait for the end of `stream`; `ConnectionError` where it was reset."""
        while True:
            kind, flags, got, _ = self._frame()
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0, b""))
            if kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, bytes(8)))
            if got == stream and kind == HEADERS and flags & END_STREAM:
                return
            if kind == GOAWAY or (kind == RST_STREAM and got == stream):
                raise ConnectionError(f"frame {kind}")

    def _frame(self) -> tuple[int, int, int, bytes]:
        header = self._read(9)
        length = int.from_bytes(header[:3], "big")
        return header[3], header[4], int.from_bytes(header[5:9], "big") & 0x7FFFFFFF, self._read(length)

    def _read(self, size: int) -> bytes:
        while len(self._pending) < size:
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("closed")
            self._pending += more
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _string(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()
