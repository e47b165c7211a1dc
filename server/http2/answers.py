"""Header blocks out: what stands before and after the messages of an answer. No dynamic table beyond three entries.

The fields of a good answer are the same each time. The first one of a connection puts them into the client's dynamic
table (RFC 7541 section 6.2.1), in one fixed order; from then on an answer's two blocks are four octets together. All
else is sent as literals that are not indexed, so those three entries are never pushed out.
"""

from typing import Final

from hermetic.server.http2.frames import END_HEADERS, END_STREAM, HEADER, HEADERS
from hermetic.server.status import Code

ENTRIES_BYTES: Final = 512  # octets of a client's table that the three entries fit in: fewer, and literals are sent
_ACCEPTED: Final = (b"grpc-accept-encoding", b"identity, deflate, gzip")
_CONTENT: Final = (b"content-type", b"application/grpc")
_GOOD: Final = (b"grpc-status", b"0")
_STATUS_200: Final = b"\x88"  # index 8 of the static table


def _text(value: bytes) -> bytes:
    """A string literal (RFC 7541 section 5.2), not Huffman coded."""
    return _integer(len(value), 7, 0) + value


def _integer(value: int, bits: int, first: int) -> bytes:
    """An integer with a prefix of so many bits (RFC 7541 section 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value > 127:  # noqa: PLR2004 - seven bits to the octet
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _literal(name: bytes, value: bytes) -> bytes:
    """A field that is not put into the table (section 6.2.2)."""
    return b"\x00" + _text(name) + _text(value)


def _indexing(name: bytes, value: bytes) -> bytes:
    """A field that is put into the table (section 6.2.1)."""
    return b"\x40" + _text(name) + _text(value)


class Blocks:
    """The two blocks of a good answer: `head` before the message, `trailers` after it."""

    __slots__ = ("head", "trailers")

    def __init__(self, head: bytes, trailers: bytes) -> None:
        self.head = head
        self.trailers = trailers


LITERAL: Final = Blocks(_STATUS_200 + _literal(*_CONTENT) + _literal(*_ACCEPTED), _literal(*_GOOD))
FIRST: Final = Blocks(_STATUS_200 + _indexing(*_CONTENT) + _indexing(*_ACCEPTED), _indexing(*_GOOD))
INDEXED: Final = Blocks(_STATUS_200 + b"\xc0\xbf", b"\xbe")  # entries 64, 63 and 62: the last one in is 62


def headers_frame(stream: int, block: bytes, *, last: bool) -> bytes:
    """Return a HEADERS frame; `block` fits in one frame."""
    return HEADER.pack(len(block) << 8 | HEADERS, END_HEADERS | END_STREAM if last else END_HEADERS, stream) + block


def failure(code: Code, details: str, *, alone: bool) -> bytes:
    """Return the block that ends a call with `code`; `alone`: nothing was answered before it ("trailers-only")."""
    block = _literal(b"grpc-status", str(int(code)).encode())
    if details:
        block += _literal(b"grpc-message", percent_encoded(details))
    return _STATUS_200 + _literal(*_CONTENT) + _literal(*_ACCEPTED) + block if alone else block


def http_failure(status: int) -> bytes:
    """Return the block of an answer to somebody who does not speak gRPC."""
    return b"\x08" + _text(str(status).encode())  # literal, not indexed, name of static entry 8


def percent_encoded(text: str) -> bytes:
    """Return a status message as gRPC sends it: all but printable ASCII, and the percent sign, as %XX of its UTF-8."""
    return b"".join(
        bytes((octet,)) if 0x20 <= octet <= 0x7E and octet != 0x25 else b"%%%02X" % octet  # noqa: PLR2004
        for octet in text.encode(errors="replace")
    )
