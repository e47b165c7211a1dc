r"""The journal: every committed batch of entries with the signed checkpoint after it, until the tiles hold them.

    journal = "hermetic-log-journal/1\n" first:u64 *frame          (big-endian; `first` = entries before the journal)
    frame   = "HLJF" length:u32 body[length] sha256(body)[32]
    body    = count:u16 count*(length:u16 entry) note              (the note's checkpoint counts these entries)

A frame is acknowledged once it is synced, and the next one starts only then: so what does not parse at the end is a
torn write that nobody was told about, and what does not parse before a whole frame is damage. Here are the bytes and
the file; what the checkpoints must say is judged in state.py.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.attestation.log.note import MAX_NOTE_SIZE
from hermetic.attestation.log.storage import write_all
from hermetic.attestation.log.tiles import ENTRY_LENGTH_SIZE, MAX_BUNDLE_SIZE, TILE_WIDTH, encode_bundle
from hermetic.errors import LogError

JOURNAL: Final = "journal"  # its name in the log's folder
MAX_FRAME_ENTRIES: Final = TILE_WIDTH  # entries in one commit
MAX_FRAME_BODY: Final = 2 + MAX_BUNDLE_SIZE + MAX_NOTE_SIZE  # bytes
MAX_JOURNAL_SIZE: Final = 64 * 1024 * 1024  # bytes; at this size appends stop until tiles can be written

_MAGIC: Final = b"hermetic-log-journal/1\n"
_FRAME: Final = b"HLJF"
_FIRST_SIZE: Final = 8  # bytes, big-endian
_LENGTH_SIZE: Final = 4  # bytes, big-endian
_COUNT_SIZE: Final = 2  # bytes, big-endian
_CHECKSUM_SIZE: Final = 32  # bytes, SHA-256
HEADER_SIZE: Final = len(_MAGIC) + _FIRST_SIZE
READ_LIMIT: Final = HEADER_SIZE + MAX_JOURNAL_SIZE + MAX_FRAME_BODY  # bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One commit: its entries and the signed checkpoint of the tree that ends with them, not yet verified."""

    entries: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        """The frame as bytes."""
        body = len(self.entries).to_bytes(_COUNT_SIZE, "big") + encode_bundle(self.entries) + self.note
        return _FRAME + len(body).to_bytes(_LENGTH_SIZE, "big") + body + hashlib.sha256(body).digest()


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal read back: `first` entries lie before it; `tail` is what follows the last whole frame.

    `tail_whole` says that the tail has the length that its own header gives: no interrupted write leaves that.
    """

    first: int
    frames: tuple[Frame, ...]
    tail: bytes = b""
    tail_whole: bool = False


def encode_header(first: int) -> bytes:
    """The bytes of an empty journal behind `first` entries."""
    return _MAGIC + first.to_bytes(_FIRST_SIZE, "big")


def parse_journal(data: bytes) -> Journal:
    """Read a journal; raises `LogError`, with the index, for damage before a whole frame."""
    if len(data) < HEADER_SIZE or not data.startswith(_MAGIC):
        raise LogError("the journal does not start with its header")
    first = int.from_bytes(data[len(_MAGIC) : HEADER_SIZE], "big")
    frames: list[Frame] = []
    index, offset = first, HEADER_SIZE
    while offset < len(data):
        end, frame = _parse_frame(data, offset)
        if frame is None:
            _check_nothing_follows(data, offset + 1, index)
            return Journal(first, tuple(frames), data[offset:], tail_whole=end <= len(data))
        frames.append(frame)
        index, offset = index + len(frame.entries), end
    return Journal(first, tuple(frames))


def _parse_frame(data: bytes, offset: int) -> tuple[int, Frame | None]:
    """Where the frame at `offset` says that it ends, and the frame where it is whole and unchanged."""
    body = offset + len(_FRAME) + _LENGTH_SIZE
    if not data.startswith(_FRAME, offset) or body > len(data):
        return len(data) + 1, None
    length = int.from_bytes(data[body - _LENGTH_SIZE : body], "big")
    end = body + length + _CHECKSUM_SIZE
    if length > MAX_FRAME_BODY or end > len(data):
        return len(data) + 1, None
    content = data[body : body + length]
    if hashlib.sha256(content).digest() != data[body + length : end]:
        return end, None
    return end, _parse_body(content)


def _parse_body(body: bytes) -> Frame | None:
    count = int.from_bytes(body[:_COUNT_SIZE], "big")
    offset = _COUNT_SIZE
    entries: list[bytes] = []
    for _ in range(count):
        begin = offset + ENTRY_LENGTH_SIZE
        offset = begin + int.from_bytes(body[begin - ENTRY_LENGTH_SIZE : begin], "big")
        entries.append(body[begin:offset])
    if offset > len(body) or not 0 < count <= MAX_FRAME_ENTRIES:
        return None
    return Frame(tuple(entries), body[offset:])


def _check_nothing_follows(data: bytes, offset: int, index: int) -> None:
    """Raise `LogError` if a whole frame lies at or behind `offset`: then what is before it was acknowledged."""
    while (offset := data.find(_FRAME, offset)) >= 0:
        if _parse_frame(data, offset)[1] is not None:
            raise LogError(f"the journal is damaged at entry {index}, before whole frames", index=index)
        offset += 1


class JournalFile:
    """The journal open for appending, with the size up to which it is acknowledged."""

    def __init__(self, folder: Path) -> None:
        """Open the journal that lies in `folder`; raises `LogError`."""
        self.broken = False
        self._path = folder / JOURNAL
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise LogError(f"cannot open {self._path}: {error.strerror}") from error

    def append(self, frame: Frame) -> None:
        """Write a frame and sync; on return it is durable.

        Raises `LogError` when the disk refuses, and cuts off again what was written. Where that fails too, or the sync
        fails, `broken` is set: nobody knows what the disk holds, so nothing can be acknowledged until the log is opened
        anew.
        """
        data = frame.encode()
        if self.broken:
            raise LogError(f"{self._path} is in an unknown state after a failed sync: open the log anew")
        if self.size + len(data) > HEADER_SIZE + MAX_JOURNAL_SIZE:
            raise LogError(f"the journal is full: at most {MAX_JOURNAL_SIZE} bytes until tiles can be written")
        try:
            self._write(data)
        except OSError as error:
            raise LogError(f"cannot write {self._path}: {error.strerror}") from error
        self.size += len(data)

    def _write(self, data: bytes) -> None:
        self.broken = True
        try:
            write_all(self._descriptor, data)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            self.broken = False
            raise
        os.fdatasync(self._descriptor)
        self.broken = False

    def is_current(self) -> bool:
        """Whether this is still the file under the journal's name."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file; twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
