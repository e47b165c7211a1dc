"""The head of a request: a header block (RFC 7541) decoded, checked (RFC 9113 section 8) and read as gRPC's.

A client sends the same head again and again. Once its fields stand in the dynamic table, it is the same few bytes each
time, and as long as the table does not change they mean the same. So what a block meant is kept by its bytes, until a
block changes the table. Source of gRPC's part:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from collections.abc import Sequence
from typing import Final

from hpack import Decoder, HPACKError
from hpack.table import HeaderTable

from hermetic.server.http2.frames import ConnectionFaultError, ErrorCode, StreamFaultError
from hermetic.server.status import Code

BLOCKS_KEPT: Final = 32  # of one connection
BLOCK_WORTH_KEEPING: Final = 512  # bytes: a longer one is not a repeated one
TIMEOUT_DIGITS: Final = 8
NO_TIMEOUT: Final = float("inf")  # seconds
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}  # seconds
_PSEUDO: Final = frozenset({":method", ":scheme", ":path", ":authority"})
_OF_ONE_CONNECTION: Final = frozenset({"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"})
_ENCODINGS: Final = frozenset({"identity", "gzip", "deflate"})

Fields = Sequence[tuple[str, str]]


class Head:
    """What a request's header block says.

    `refusal` is a gRPC status to answer at once with, `http_status` an HTTP one where the client does not speak gRPC.
    `timeout_s` counts from the arrival. `encoding` is how messages are compressed whose flag says that they are.
    """

    __slots__ = ("encoding", "fields", "http_status", "method", "refusal", "timeout_s")

    def __init__(self, method: str, fields: Fields) -> None:
        self.method = method
        self.fields = fields
        self.timeout_s = NO_TIMEOUT
        self.encoding = "identity"
        self.http_status = 0
        self.refusal: tuple[Code, str] | None = None


class Heads:
    """Decodes the header blocks of one connection, in the order in which they come."""

    __slots__ = ("_decoder", "_kept", "_largest", "_table")

    def __init__(self, largest: int) -> None:
        """`largest`: octets of a header list (RFC 9113 section 6.5.2) that are taken."""
        self._largest = largest
        self._decoder: Decoder | None = None  # a connection that asks nothing needs none
        self._table = _Table()
        self._kept: dict[bytes, Head] = {}

    def head(self, block: bytes) -> Head:
        """Return the head of a request.

        `StreamFaultError` where it is malformed; `ConnectionFaultError` as `fields`.
        """
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        head = _read(self.fields(block))
        if len(block) <= BLOCK_WORTH_KEEPING and len(self._kept) < BLOCKS_KEPT:
            self._kept[block] = head
        return head

    def fields(self, block: bytes) -> Fields:
        """Return the fields of a block; `ConnectionFaultError` where the table would be lost.

        Every block must come here, whatever becomes of its stream.
        """
        if self._decoder is None:
            self._decoder = Decoder(self._largest)
            self._decoder.header_table = self._table
        self._table.changed = False
        try:
            fields = [(str(name), str(value)) for name, value in self._decoder.decode(block)]
        except (HPACKError, UnicodeDecodeError) as error:
            raise ConnectionFaultError(ErrorCode.COMPRESSION_ERROR, f"header block: {type(error).__name__}") from None
        if self._table.changed:
            self._kept.clear()
        return fields


class _Table(HeaderTable):
    """A dynamic table that says whether it has changed: the same bytes may mean something else then."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return self._maxsize

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self.changed = True
        HeaderTable.maxsize.fset(self, newmax)  # type: ignore[attr-defined] # a property, which mypy takes for a function


def check_trailers(fields: Fields) -> None:
    """Raise `StreamFaultError` where trailers are malformed (RFC 9113 section 8.1)."""
    for name, _ in fields:
        _check_name(name)
        if name.startswith(":"):
            raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a pseudo-header field in trailers")


def _read(fields: Fields) -> Head:
    pseudo = _pseudo_fields(fields)
    head = Head(pseudo[":path"], tuple(fields))
    if pseudo[":method"] != "POST":
        head.http_status = 405
        return head
    for name, value in fields:
        if name == "content-type":
            _content_type(head, value)
        elif name == "grpc-timeout":
            _timeout(head, value)
        elif name == "grpc-encoding":
            _encoding(head, value)
    if not any(name == "content-type" for name, _ in fields):
        head.http_status = 415
    return head


def _pseudo_fields(fields: Fields) -> dict[str, str]:
    """Return the pseudo-header fields, all of them checked (section 8.3)."""
    found: dict[str, str] = {}
    regular = False
    for name, value in fields:
        if name.startswith(":"):
            if regular or name in found or name not in _PSEUDO:
                raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a pseudo-header field out of place")
            found[name] = value
            continue
        regular = True
        _check_name(name)
        if name == "te" and value != "trailers":
            raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "te: wanted trailers")
    if not (found.get(":method") and found.get(":scheme") and found.get(":path")):
        raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a pseudo-header field is missing")
    return found


def _check_name(name: str) -> None:
    """Raise where a field's name has no place in HTTP/2 (sections 8.2 and 8.2.2)."""
    if name != name.lower() or name in _OF_ONE_CONNECTION or not name or " " in name:
        raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a header field that HTTP/2 does not know")


def _content_type(head: Head, value: str) -> None:
    if value != "application/grpc" and not value.startswith(("application/grpc+", "application/grpc;")):
        head.http_status = 415


def _timeout(head: Head, value: str) -> None:
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not digits.isascii() or not digits.isdigit() or len(digits) > TIMEOUT_DIGITS:
        head.refusal = (Code.INTERNAL, "grpc-timeout: expected at most 8 digits and one of H M S m u n")
        return
    head.timeout_s = int(digits) * _UNITS[unit]


def _encoding(head: Head, value: str) -> None:
    if value not in _ENCODINGS:
        head.refusal = (Code.UNIMPLEMENTED, "grpc-encoding: expected identity, gzip or deflate, got another")
        return
    head.encoding = value
