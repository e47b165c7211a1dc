"""ZIP archives as torch writes them, judged before torch reads them. Nothing is imported or unpickled here.

Two readers of one ZIP need not see the same: a name can stand there twice, a local header can tell another size than
the directory, a second archive can lie before the first. Every such archive is refused: what is left reads the same for
all.

- The directory ends where the file ends, no comment; nothing lies before the first entry, nothing overlaps, nothing is
  between entries but data descriptors.
- Each name stands there once, in either case (torch's own reader ignores it); a relative path without `..`, in one
  folder at the top.
- Local headers say what the directory says. Stored or deflated, nothing else; not encrypted.
- What deflated entries become is bounded, in all.

Source: PKWARE's APPNOTE.TXT 6.3.10 (4.3: the records; 4.5.3: ZIP64), torch's inline_container.cc.
"""

import re
import struct
import zlib
from itertools import pairwise
from typing import Final, NamedTuple

from hermetic.enclave.runtimes.refusals import ModelRefusal, refused

__all__ = ["Entry", "content_of", "read_archive"]

ENTRIES_LIMIT: Final = 65_536
INFLATED_LIMIT: Final = 256 << 20  # bytes of all deflated entries: torch deflates code, never weights
GAP_LIMIT: Final = 24  # bytes between entries: the longest data descriptor
NAME_LIMIT: Final = 512  # bytes
STORED, DEFLATED = 0, 8

_END: Final = struct.Struct("<IHHHHIIH")
_END64: Final = struct.Struct("<IQHHIIQQQQ")
_LOCATOR64: Final = struct.Struct("<IIQI")
_CENTRAL: Final = struct.Struct("<IHHHHHHIIIHHHHHII")
_LOCAL: Final = struct.Struct("<IHHHHHIIIHH")
_EXTRA: Final = struct.Struct("<HH")
_SIGNATURES: Final = {
    _END: 0x06054B50,
    _END64: 0x06064B50,
    _LOCATOR64: 0x07064B50,
    _CENTRAL: 0x02014B50,
    _LOCAL: 0x04034B50,
}
_ZIP64: Final = 0x0001
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11  # flags that are allowed
_NAME: Final = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f][^\\\x00-\x1f\x7f]*")


class Entry(NamedTuple):
    """One file in an archive: its name, where its bytes lie, and how many they become."""

    name: str
    method: int
    header: int
    start: int
    end: int
    size: int


def read_archive(file: memoryview, what: str) -> list[Entry]:
    """Return what is in the archive, in the directory's order; `what` says what it should be, for errors.

    Raises `ModelFormatError` named `archive...`.
    """
    count, start, end = _directory(file, what)
    if count > ENTRIES_LIMIT:
        raise refused(ModelRefusal.ARCHIVE_SIZE, f"{what}: wanted at most {ENTRIES_LIMIT} entries, got {count}")
    entries = []
    at = start
    for _ in range(count):
        entry, at = _entry(file, at, end, what)
        entries.append(entry)
    if at != end:
        raise refused(ModelRefusal.ARCHIVE, f"{what}: wanted {count} entries in the directory, got other bytes too")
    _check_names(entries, what)
    _check_places(entries, start, what)
    inflated = sum(entry.size for entry in entries if entry.method == DEFLATED)
    if inflated > INFLATED_LIMIT:
        raise refused(
            ModelRefusal.ARCHIVE_SIZE, f"{what}: wanted at most {INFLATED_LIMIT} bytes inflated, got {inflated}"
        )
    return entries


def content_of(file: memoryview, entry: Entry, limit: int) -> bytes:
    """Return the content of a small entry; one larger than `limit` bytes, or other than it says, is refused."""
    raw = file[entry.start : entry.end]
    if entry.size > limit:
        raise refused(ModelRefusal.ARCHIVE_SIZE, f"{entry.name!r}: wanted at most {limit} bytes, got {entry.size}")
    if entry.method == STORED:
        return bytes(raw)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(raw, entry.size + 1)
    except zlib.error:
        content = b""
    if len(content) != entry.size or not (inflater.eof or not entry.size):
        raise refused(ModelRefusal.ARCHIVE_SIZE, f"{entry.name!r}: wanted {entry.size} bytes inflated, got others")
    return content


def _unpack(form: struct.Struct, file: memoryview, at: int, what: str) -> tuple[int, ...]:
    """Return the fields of a record without its signature."""
    if 0 <= at <= len(file) - form.size:
        signature, *values = form.unpack_from(file, at)
        if signature == _SIGNATURES[form]:
            return tuple(values)
    raise refused(ModelRefusal.ARCHIVE, f"{what}: wanted a ZIP archive, got {len(file)} other bytes")


def _directory(file: memoryview, what: str) -> tuple[int, int, int]:
    """Return how many entries the directory has, where it begins and where it ends."""
    last = len(file) - _END.size
    disk, disk_of_directory, here, count, size, start, comment = _unpack(_END, file, last, what)
    end = last
    if (
        last >= _LOCATOR64.size
        and int.from_bytes(file[last - _LOCATOR64.size :][:4], "little") == _SIGNATURES[_LOCATOR64]
    ):
        _, end, _ = _unpack(_LOCATOR64, file, last - _LOCATOR64.size, what)
        record = _unpack(_END64, file, end, what)
        told = (count, size, start)
        here, count, size, start = record[5:]
        # A reader may take either record's word.
        agree = all(
            small in (large, full)
            for small, large, full in zip(told, (count, size, start), (_FULL16, _FULL32, _FULL32), strict=True)
        )
        if not agree or end + _END64.size != last - _LOCATOR64.size or record[0] != _END64.size - 12:
            raise refused(
                ModelRefusal.ARCHIVE, f"{what}: wanted both ends of the directory to say the same, got others"
            )
        disk, disk_of_directory = record[3], record[4]
    if comment or disk or disk_of_directory or here != count or start + size != end:
        raise refused(ModelRefusal.ARCHIVE, f"{what}: wanted one directory that ends where the file does, got another")
    return count, start, end


def _entry(file: memoryview, at: int, end: int, what: str) -> tuple[Entry, int]:
    """Return an entry of the directory, and where the next one begins."""
    values = _unpack(_CENTRAL, file, at, what)
    _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes, comment_bytes, _, _, _, header = values
    name_at = at + _CENTRAL.size
    extra_at = name_at + name_bytes
    after = extra_at + extra_bytes + comment_bytes
    if after > end or name_bytes > NAME_LIMIT:
        raise refused(ModelRefusal.ARCHIVE, f"{what}: wanted a name of at most {NAME_LIMIT} bytes, got more")
    raw_name = bytes(file[name_at:extra_at])
    size, packed, header = _wide(file[extra_at : extra_at + extra_bytes], (size, packed, header), what)
    name = _name(raw_name, what)
    if method not in (STORED, DEFLATED) or flags & ~(_DESCRIPTOR | _UTF8) or (method == STORED and packed != size):
        raise refused(
            ModelRefusal.ARCHIVE, f"{name!r}: wanted it stored or deflated, got method {method}, flags {flags}"
        )
    start = _check_local(file, header, raw_name, (flags, method, crc, packed, size), what)
    return Entry(name, method, header, start, start + packed, size), after


def _wide(extra: memoryview, values: tuple[int, int, int], what: str) -> tuple[int, int, int]:
    """Return size, packed size and header's place, taken from the ZIP64 field where they say so."""
    if _FULL32 not in values:
        return values
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _ZIP64:
            field = iter(struct.unpack(f"<{length // 8}Q", extra[at : at + length // 8 * 8]))
            size, packed, header = (next(field, value) if value == _FULL32 else value for value in values)
            return size, packed, header
        at += length
    raise refused(ModelRefusal.ARCHIVE, f"{what}: wanted sizes, got none")


def _name(raw: bytes, what: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = ""
    if not _NAME.fullmatch(name):
        raise refused(ModelRefusal.ARCHIVE_NAMES, f"{what}: wanted relative paths without '..', got {raw[:64]!r}")
    return name


def _check_local(file: memoryview, at: int, name: bytes, told: tuple[int, int, int, int, int], what: str) -> int:
    """Refuse a local header that says something else than the directory; returns where the content begins."""
    values = _unpack(_LOCAL, file, at, what)
    _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = values
    name_at = at + _LOCAL.size
    later = bool(flags & _DESCRIPTOR)  # it comes after the content
    same_sizes = all(
        here == there or (later and here in (0, _FULL32))
        for here, there in zip((crc, packed, size), told[2:], strict=True)
    )
    if (flags, method) != told[:2] or not same_sizes or bytes(file[name_at : name_at + name_bytes]) != name:
        raise refused(
            ModelRefusal.ARCHIVE, f"{name[:64]!r}: wanted its header to say what the directory says, got others"
        )
    return name_at + name_bytes + extra_bytes


def _check_names(entries: list[Entry], what: str) -> None:
    """Refuse names that are there twice, also to a reader to whom upper case is lower case; and several folders."""
    names = [entry.name.lower() for entry in entries]
    if len(set(names)) != len(names):
        twice = next(name for one, name in pairwise(sorted(names)) if one == name)
        raise refused(ModelRefusal.ARCHIVE_NAMES, f"{what}: wanted each name once, got {twice!r} twice")
    if len({name.partition("/")[0] for name in names if "/" in name}) > 1 or not all("/" in name for name in names):
        raise refused(ModelRefusal.ARCHIVE_NAMES, f"{what}: wanted one folder at the top, got {sorted(names)[:4]}")


def _check_places(entries: list[Entry], directory: int, what: str) -> None:
    """Refuse entries that share bytes, and bytes that belong to none."""
    ordered = sorted(entries, key=lambda entry: entry.header)
    ends = [0, *(entry.end for entry in ordered)]
    begins = [*(entry.header for entry in ordered), directory]
    for end, begin in zip(ends, begins, strict=True):
        if not 0 <= begin - end <= (GAP_LIMIT if end else 0):
            raise refused(
                ModelRefusal.ARCHIVE_OVERLAP, f"{what}: wanted entries one after the other, got {begin} after {end}"
            )
