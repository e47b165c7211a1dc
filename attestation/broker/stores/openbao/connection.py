"""One HTTP/1.1 connection over TLS: a request from secret memory, its answer into secret memory, by a deadline.

Written on sockets rather than on an HTTP package: those keep what they have read in buffers that live as long as the
connection. Here TLS decrypts into memory that the caller wipes. Taken are answers with a length or in chunks; nothing
is followed, nothing is decompressed.
"""

import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final

from hermetic.errors import KeyStoreUnavailableError

MAX_HEADERS: Final = 64

_ONCE: Final = (b"content-length", b"transfer-encoding")
_HEAD_END: Final = re.compile(rb"\r\n\r\n")
_LINE_END: Final = re.compile(rb"\r\n")
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [^\r\n]*)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?")


class StaleConnectionError(Exception):
    """The other side had closed a connection before it saw the request: another connection may be tried."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and where the body lies in the memory that it was read into."""

    status: int
    body: memoryview


class Connection:
    """A connection that is used again, by one thread at a time."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, deadline: float) -> None:
        """Connect and shake hands before `deadline` (monotonic, seconds); raises `KeyStoreUnavailableError`."""
        self.used: bool = False
        """Whether it has answered before."""
        self.open: bool = True
        """Whether it can be used again."""
        plain = None
        try:
            plain = socket.create_connection((host, port), timeout=_left(deadline))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(_left(deadline))
            self._socket = context.wrap_socket(plain, server_hostname=host)
        except (OSError, ValueError) as error:
            if plain is not None:
                plain.close()
            raise KeyStoreUnavailableError(f"openbao at {host}:{port}: cannot connect: {error}") from error

    def close(self) -> None:
        """Close it, without waiting for the other side."""
        self.open = False
        self._socket.close()

    def exchange(self, request: memoryview, room: memoryview, deadline: float) -> Answer:
        """Send `request`, read the answer into `room`; raises `KeyStoreUnavailableError`, and closes then."""
        try:
            return self._exchange(request, _Incoming(self._socket, room, deadline), deadline)
        except (OSError, ValueError) as error:
            raise KeyStoreUnavailableError(f"openbao: expected an answer in time, got {error}") from error
        finally:
            if not self.used:
                self.close()

    def _exchange(self, request: memoryview, incoming: "_Incoming", deadline: float) -> Answer:
        again, self.used = self.used, False
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(request)
            incoming.more()
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            if again and not incoming.length:
                raise StaleConnectionError from error
            raise
        status, headers, start = incoming.head()
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            end = incoming.chunks(start)
        else:
            length = headers.get(b"content-length", b"")
            if not _LENGTH.fullmatch(length):
                raise ValueError("an answer without a length")
            end = incoming.until(start, start + int(length))
        self.used = True
        if headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return Answer(status, incoming.room[start:end])


class _Incoming:
    """What has come so far, in the caller's memory."""

    def __init__(self, source: ssl.SSLSocket, room: memoryview, deadline: float) -> None:
        self.room = room
        self.length = 0
        self._socket = source
        self._deadline = deadline

    def more(self) -> None:
        """Read what there is, at least a byte."""
        if self.length == len(self.room):
            raise ValueError(f"an answer of more than {self.length} bytes")
        self._socket.settimeout(_left(self._deadline))
        with self.room[self.length :] as rest:
            count = self._socket.recv_into(rest)
        if not count:
            raise ConnectionResetError("the end of the connection")
        self.length += count

    def head(self) -> tuple[int, dict[bytes, bytes], int]:
        """Status, headers with names in lower case, and where the body begins."""
        lines = bytes(self.room[: (end := self._find(_HEAD_END, 0))]).split(b"\r\n")
        status = _STATUS.fullmatch(lines[0])
        if status is None or len(lines) > MAX_HEADERS:
            raise ValueError("something that is no HTTP/1.1 answer")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or (name in headers and name in _ONCE):
                raise ValueError("a header that is none, or a second length")
            headers[name] = value.strip()
        return int(status[1]), headers, end + 4

    def until(self, start: int, end: int) -> int:
        """Read until `end`, where the answer must end too."""
        if end > len(self.room):
            raise ValueError(f"an answer of {end - start} bytes, of which there is room for {len(self.room) - start}")
        while self.length < end:
            self.more()
        if self.length != end:
            raise ValueError("more than the answer")
        return end

    def chunks(self, start: int) -> int:
        """Read chunks, and move their content together from `start` on; returns where it ends."""
        end = here = start
        while True:
            line_end = self._find(_LINE_END, here)
            chunk = _CHUNK.fullmatch(bytes(self.room[here:line_end]))
            if chunk is None:
                raise ValueError("a chunk without a length")
            size, data = int(chunk[1], 16), line_end + 2
            if not size:
                self.until(data, data + 2)  # no trailers
                return end
            while self.length < data + size + 2:
                self.more()
            self.room[end : end + size] = self.room[data : data + size]
            end, here = end + size, data + size + 2

    def _find(self, pattern: re.Pattern[bytes], start: int) -> int:
        while True:
            with self.room[start : self.length] as seen:
                found = pattern.search(seen)
                position = None if found is None else found.start()
                del found  # it holds the memory
            if position is not None:
                return start + position
            self.more()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
