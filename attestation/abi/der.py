"""DER (ITU-T X.690), read strictly: what certificates of hardware vendors need, and nothing of X.509.

Why our own: AMD's certificates carry serial number 0, which RFC 5280 forbids, and X.509 libraries stop reading
(docs/adr/0166). Refused: lengths that are indefinite or not the shortest, tags above 30, numbers and identifiers that
are not the shortest, bytes left over. Not here: what a structure means (amd_certificate.py).
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple, Self

from hermetic.errors import InvalidRequestError

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31
TRUE: Final = b"\xff"

MAX_LENGTH_BYTES: Final = 3  # of a length: 16 MiB, more than any limit of a caller
MAX_OID_SIZE: Final = 32  # bytes
LONG: Final = 0x80  # in a length: the bytes that hold it follow; in an identifier: more of this arc follows
MANY_TAGS: Final = 0x1F  # in a tag: its number follows
CENTURY_TURNS: Final = 50  # years of UTCTime below are of this century (RFC 5280, 4.1.2.5.1)

_TIMES: Final = {
    UTC_TIME: re.compile(rb"(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z", re.ASCII),
    GENERALIZED_TIME: re.compile(rb"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z", re.ASCII),
}


class Element(NamedTuple):
    """One value: its tag, its content, and all of its bytes."""

    tag: int
    content: bytes
    raw: bytes


class DerReader:
    """The elements of `data`, one after the other; each read raises `InvalidRequestError` naming `what`."""

    def __init__(self, data: bytes, what: str) -> None:
        """Start at the first element."""
        self._data = data
        self._what = what
        self._position = 0

    @classmethod
    def whole(cls, data: bytes, tag: int, what: str) -> Self:
        """The content of the one element with `tag` that is all of `data`."""
        outer = cls(data, what)
        inner = outer.enter(tag, what)
        outer.end()
        return inner

    def at(self, tag: int) -> bool:
        """Whether the next element has `tag`."""
        return self._position < len(self._data) and self._data[self._position] == tag

    @property
    def more(self) -> bool:
        """Whether there is another element."""
        return self._position < len(self._data)

    def take(self, tag: int, field: str) -> Element:
        """The next element, which must have `tag`."""
        if not self.at(tag):
            got = f"tag {self._data[self._position]:#04x}" if self.more else "the end"
            raise self._error(f"tag {tag:#04x} of {field} at offset {self._position}", got)
        return self.any(field)

    def any(self, field: str) -> Element:
        """The next element, whatever its tag."""
        start, data = self._position, self._data
        head = data[start : start + 2]
        if len(head) != len(b"TL") or head[0] & MANY_TAGS == MANY_TAGS:
            raise self._error(f"an element for {field} at offset {start}", head.hex() or "the end")
        size, content = head[1], start + 2
        if size & LONG:
            count = size & 0x7F
            content += count
            size = int.from_bytes(data[start + 2 : content], "big")
            shortest = max(1, (size.bit_length() + 7) // 8)
            if not 1 <= count <= MAX_LENGTH_BYTES or size < LONG or count != shortest:
                raise self._error(f"the shortest length of {field} at offset {start}", data[start:content].hex())
        end = content + size
        if end > len(data):
            raise self._error(f"{size} bytes of {field} at offset {content}", str(max(0, len(data) - content)))
        self._position = end
        return Element(head[0], data[content:end], data[start:end])

    def enter(self, tag: int, field: str) -> Self:
        """A reader of the next element's content."""
        return type(self)(self.take(tag, field).content, f"{self._what}: {field}")

    def end(self) -> None:
        """Raise unless everything has been read."""
        if self.more:
            raise self._error(f"the end at offset {self._position}", f"{len(self._data) - self._position} more bytes")

    def integer(self, field: str) -> int:
        """A number that is not negative."""
        return integer(self.take(INTEGER, field).content, f"{self._what}: {field}")

    def oid(self, field: str) -> str:
        """An object identifier, dotted."""
        content = self.take(OID, field).content
        dotted = _dotted(content) if len(content) <= MAX_OID_SIZE else None
        if dotted is None:
            raise self._error(f"an object identifier for {field}", content[:MAX_OID_SIZE].hex() or "nothing")
        return dotted

    def moment(self, field: str) -> datetime:
        """A UTCTime or GeneralizedTime in the form of RFC 5280, 4.1.2.5."""
        element = self.any(field)
        pattern = _TIMES.get(element.tag)
        match = None if pattern is None else pattern.fullmatch(element.content)
        if match is None:
            raise self._error(f"a time for {field}", element.raw[:32].hex())
        year, month, day, hour, minute, second = map(int, match.groups())
        if element.tag == UTC_TIME:
            year += 2000 if year < CENTURY_TURNS else 1900
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError as error:
            raise self._error(f"a time for {field}", repr(error)) from error

    def bits(self, field: str) -> bytes:
        """A BIT STRING of whole bytes."""
        content = self.take(BIT_STRING, field).content
        if content[:1] != b"\0":
            raise self._error(f"a bit string of whole bytes for {field}", content[:1].hex() or "nothing")
        return content[1:]

    def _error(self, wanted: str, got: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._what}: expected {wanted}, got {got}")


def integer(content: bytes, what: str) -> int:
    """The number in the content of an INTEGER, not negative and in its shortest form."""
    if not content or content[0] & 0x80 or (len(content) > 1 and content[0] == 0 and not content[1] & 0x80):
        raise InvalidRequestError(f"{what}: expected a number that is not negative, got {content[:16].hex()!r}")
    return int.from_bytes(content, "big")


@lru_cache(maxsize=256)  # certificates name the same few, over and over
def _dotted(content: bytes) -> str | None:
    """The identifier in dotted form; None where `content` is none, or is not its shortest form."""
    arcs: list[int] = []
    arc, begins = 0, True
    for byte in content:
        if begins and byte == LONG:
            return None
        arc = arc << 7 | byte & 0x7F
        begins = not byte & LONG
        if begins:
            arcs.append(arc)
            arc = 0
    if not begins or not arcs:
        return None
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))
