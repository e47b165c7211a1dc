"""The head of a request: a header block (RFC 7541) decoded, checked (RFC 9113 section 8) and read as gRPC's.

A client sends the same head again and again. Once its fields stand in the dynamic table, it is the same few bytes each
time, and as long as the table does not change they mean the same. So what a block meant is kept by its bytes, until a
block changes the table. Not a block with text of its own: that is said once, and may be a secret.
Source of gRPC's part:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import logging
import re
from collections.abc import Container, Sequence
from typing import Final

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from hermetic.server.http2.frames import ConnectionFaultError, ErrorCode, StreamFaultError
from hermetic.server.status import Code

BLOCKS_KEPT: Final = 32  # of one connection
BLOCK_WORTH_KEEPING: Final = 512  # bytes: a longer one is not a repeated one
LIST_WORTH_KEEPING: Final = 2048  # octets of its list: a few indices can stand for a large one
LISTS_DECODED: Final = (
    4  # times the largest list that is taken, so that one that is too large is its call's fault alone
)
_INDEXED: Final = 0x80  # from here on an octet is a field of the table (RFC 7541 section 6.1; up to index 126)
SIZE_UPDATES: Final = 4  # of the table, at the beginning of a block; an encoder has reason for two (RFC 7541 4.2)
FIELD_OCTETS: Final = 32  # that each field counts beside its text (RFC 9113 section 6.5.2)
TIMEOUT_DIGITS: Final = 8
NO_TIMEOUT: Final = float("inf")  # seconds
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}  # seconds
_PSEUDO: Final = frozenset({":method", ":scheme", ":path", ":authority"})
_OF_ONE_CONNECTION: Final = frozenset({"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"})
_ENCODINGS: Final = frozenset({"identity", "gzip", "deflate"})
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # a token in lower case (RFC 9113 section 8.2.1)
_NO_VALUE: Final = re.compile(r"[\0\r\n]")
_TOO_MANY_UPDATES: Final = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){%d}" % (SIZE_UPDATES + 1))
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
# It would write every field of every client, tokens among them, to a log that is open for debugging.
logging.getLogger("hpack").setLevel(logging.WARNING)

Fields = Sequence[tuple[str, str]]


class Head:
    """What a request's header block says.

    `refusal` is a gRPC status to answer at once with, `http_status` an HTTP one where the client does not speak gRPC.
    `timeout_s` counts from the arrival. `encoding` is how messages are compressed whose flag says that they are.
    `length` is how many octets of DATA will come, None where that is not said.
    """

    __slots__ = ("encoding", "fields", "http_status", "length", "method", "refusal", "timeout_s")

    def __init__(self, method: str, fields: Fields) -> None:
        self.method = method
        self.fields = fields
        self.timeout_s = NO_TIMEOUT
        self.encoding = "identity"
        self.length: int | None = None
        self.http_status = 0
        self.refusal: tuple[Code, str] | None = None


class Heads:
    """Decodes the header blocks of one connection, in the order in which they come."""

    __slots__ = ("_changed", "_decoder", "_kept", "_largest", "_table", "_wanted", "decoded")

    def __init__(self, largest: int, wanted: Container[str]) -> None:
        """`largest`: octets of a header list (RFC 9113 section 6.5.2) that are taken.

        `wanted`: the fields that somebody reads. Others are not kept: they may be long, and secret.
        """
        self._largest = largest
        self._wanted = wanted
        self._decoder: Decoder | None = None  # a connection that asks nothing needs none
        self._table: _Table | None = None
        self._changed = False  # the last block has changed the table
        self._kept: dict[bytes, Head] = {}
        self.decoded = 0  # fields, of the last block; 0 where what it means was kept

    def head(self, block: bytes) -> Head:
        """Return the head of a request.

        `StreamFaultError` where it is malformed; `ConnectionFaultError` as `fields`.
        """
        kept = self._kept.get(block)
        if kept is not None:
            self.decoded = 0
            return kept
        fields = self.fields(block)
        head = _read(fields, self._wanted)
        size = sum(len(name) + len(value) + FIELD_OCTETS for name, value in fields)
        if size > self._largest:
            head.refusal = (Code.RESOURCE_EXHAUSTED, f"metadata: expected at most {self._largest} octets, got {size}")
        elif (
            not self._changed
            and size <= LIST_WORTH_KEEPING
            and len(block) <= BLOCK_WORTH_KEEPING
            and min(block, default=0) >= _INDEXED
            and len(self._kept) < BLOCKS_KEPT
        ):
            self._kept[block] = head
        return head

    def forget(self) -> None:
        """Forget every field: the connection has ended."""
        self._kept.clear()
        self._decoder = self._table = None

    def fields(self, block: bytes) -> Fields:
        """Return the fields of a block; `ConnectionFaultError` where the table would be lost.

        Every block must come here, whatever becomes of its stream.
        """
        decoder, table = self._decoder, self._table
        if decoder is None or table is None:
            decoder, table = self._decoder, self._table = Decoder(LISTS_DECODED * self._largest), _Table()
            decoder.header_table = table
        table.changed = False
        if _TOO_MANY_UPDATES.match(block):  # each is work, and all but two mean nothing
            raise ConnectionFaultError(ErrorCode.COMPRESSION_ERROR, "header block: changes of the table's size")
        try:
            decoded = decoder.decode(block, raw=True)
            fields = [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in decoded]
        except OversizedHeaderListError:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "a header list without end") from None
        except HPACKError as error:
            raise ConnectionFaultError(ErrorCode.COMPRESSION_ERROR, f"header block: {type(error).__name__}") from None
        self._changed = table.changed
        if table.changed:
            self._kept.clear()
        self.decoded = len(fields)
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
    for name, value in fields:
        _check_field(name, value)  # which takes a pseudo-header field for a name that is none


def _read(fields: Fields, wanted: Container[str]) -> Head:
    pseudo = _pseudo_fields(fields)
    head = Head(pseudo[":path"], tuple(field for field in fields if field[0] in wanted))
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
        elif name == "content-length":
            _length(head, value)
    if not any(name == "content-type" for name, _ in fields):
        head.http_status = 415
    return head


def _pseudo_fields(fields: Fields) -> dict[str, str]:
    """Return the pseudo-header fields, all of them checked (section 8.3)."""
    found: dict[str, str] = {}
    regular = False
    for name, value in fields:
        if name.startswith(":"):
            if regular or name in found or name not in _PSEUDO or _NO_VALUE.search(value):
                raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a pseudo-header field out of place")
            found[name] = value
            continue
        regular = True
        _check_field(name, value)
        if name == "te" and value != "trailers":
            raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "te: wanted trailers")
    if not (found.get(":method") and found.get(":scheme") and found.get(":path")):
        raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a pseudo-header field is missing")
    return found


def _check_field(name: str, value: str) -> None:
    """Raise where a field has no place in HTTP/2 (sections 8.2.1 and 8.2.2).

    Spaces around a value are left to gRPC, which allows them.
    """
    if not _NAME.fullmatch(name) or name in _OF_ONE_CONNECTION or _NO_VALUE.search(value):
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


def _length(head: Head, value: str) -> None:
    if head.length is not None or not _LENGTH.fullmatch(value):
        raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "content-length: wanted one number")
    head.length = int(value)


def _encoding(head: Head, value: str) -> None:
    if value not in _ENCODINGS:
        head.refusal = (Code.UNIMPLEMENTED, "grpc-encoding: expected identity, gzip or deflate, got another")
        return
    head.encoding = value
