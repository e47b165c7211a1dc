"""What a log's folder says, read and checked against the log's key: for the writer that opens it and for readers.

    folder/checkpoint             the published checkpoint, a signed note
    folder/tile/...               the tiles and entry bundles of the published tree
    folder/journal                what was committed since, each batch with its own signed checkpoint

Here the right edge of the tree is checked, not every entry: that is verify.py's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.attestation.log.checkpoint import Checkpoint, verify_checkpoint
from hermetic.attestation.log.journal import JOURNAL, READ_LIMIT, Journal, parse_journal
from hermetic.attestation.log.merkle import HASH_SIZE, Frontier, frontier_at, leaf_hash
from hermetic.attestation.log.note import MAX_NOTE_SIZE, Verifier
from hermetic.attestation.log.storage import read_file
from hermetic.attestation.log.tiles import (
    MAX_BUNDLE_SIZE,
    TILE_HEIGHT,
    TILE_WIDTH,
    Edge,
    Tile,
    decode_bundle,
    edge_of,
    hash_reader,
    split_hashes,
)
from hermetic.errors import LogError

CHECKPOINT: Final = "checkpoint"  # its name in the log's folder
_MAX_RACES: Final = 8  # times that a live writer may publish while its folder is read


@dataclass(frozen=True, slots=True)
class Published:
    """The published tree: its checkpoint as note and read, its right edge, the entries of its partial bundle."""

    note: bytes
    checkpoint: Checkpoint
    edge: Edge
    bundle: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Entries in the published tree."""
        return self.checkpoint.size


@dataclass(frozen=True, slots=True)
class LogState:
    """A log as read: the published tree, what the journal adds, and the newest checkpoint (`note`, `head`).

    `tail` is what follows the journal's last whole frame; `has_frames` tells a journal that holds any.
    """

    published: Published
    pending: tuple[bytes, ...]
    note: bytes
    head: Checkpoint
    frontier: Frontier
    tail: bytes
    tail_whole: bool
    has_frames: bool


class TileStore:
    """The tiles and bundles in a log's folder. A partial one that is gone is cut from the full one."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder; reads nothing."""
        self._folder = folder

    def tile(self, tile: Tile) -> bytes:
        """The tile's hashes, `32 * width` bytes; raises `LogError` with the first index that it covers."""
        wanted = tile.width * HASH_SIZE
        full = Tile(tile.level, tile.index)
        data = read_file(self._folder / tile.path, TILE_WIDTH * HASH_SIZE)
        if data is None:
            data = (read_file(self._folder / full.path, TILE_WIDTH * HASH_SIZE) or b"")[:wanted]
        if len(data) != wanted:
            index = (tile.index * TILE_WIDTH + len(data) // HASH_SIZE) << TILE_HEIGHT * tile.level
            raise LogError(
                f"the hashes of the entries from {index} on are missing: expected {wanted} bytes in {tile.path}, "
                f"got {len(data)}",
                index=index,
            )
        return data

    def bundle(self, tile: Tile) -> Iterator[bytes]:
        """The entries under a tile of level 0, one by one; raises `LogError` at the first one that is missing."""
        start = tile.index * TILE_WIDTH
        data = read_file(self._folder / tile.entries_path, MAX_BUNDLE_SIZE)
        whole = data is not None or tile.width == TILE_WIDTH
        if data is None:
            data = read_file(self._folder / Tile(0, tile.index).entries_path, MAX_BUNDLE_SIZE) or b""
        index = start
        for entry in decode_bundle(data, start):
            if index == start + tile.width:
                if whole:
                    raise LogError(f"entry {index} is one too many in {tile.entries_path}", index=index)
                return
            yield entry
            index += 1
        if index < start + tile.width:
            raise LogError(f"entry {index} is missing in {tile.entries_path}", index=index)


def load(folder: Path, verifier: Verifier, origin: str | None = None) -> LogState:
    """Read and check a log's folder; raises `LogError`. A writer may be at work in it."""
    note, journal = read_snapshot(folder)
    published = load_published(folder, note, verify_checkpoint(note, verifier, origin))
    return apply_journal(published, journal, verifier, TileStore(folder))


def read_snapshot(folder: Path) -> tuple[bytes, Journal | None]:
    """Checkpoint and journal that belong together, though a writer may publish in between."""
    for _ in range(_MAX_RACES):
        note = read_checkpoint(folder)
        journal = read_journal(folder)
        if read_checkpoint(folder) == note:
            return note, journal
    raise LogError(f"the log in {folder} was published {_MAX_RACES} times while it was read: try again")


def read_checkpoint(folder: Path) -> bytes:
    """The published checkpoint's bytes; raises `LogError` where there is none."""
    note = read_file(folder / CHECKPOINT, MAX_NOTE_SIZE)
    if note is None:
        raise LogError(f"expected a log in {folder}, but it has no checkpoint: nothing vouches for entry 0", index=0)
    return note


def read_journal(folder: Path) -> Journal | None:
    """The journal; None where there is none."""
    data = read_file(folder / JOURNAL, READ_LIMIT)
    return None if data is None else parse_journal(data)


def load_published(folder: Path, note: bytes, checkpoint: Checkpoint) -> Published:
    """The right edge of the tree under a verified checkpoint; raises `LogError` unless it leads to its root."""
    store = TileStore(folder)
    size = checkpoint.size
    levels = list(Edge(size).levels)
    for tile in edge_of(size):
        levels[tile.level] = tuple(split_hashes(store.tile(tile)))
    width = size % TILE_WIDTH
    bundle = tuple(check_bundle(store, Tile(0, size // TILE_WIDTH, width))) if width else ()
    if frontier_at(size, hash_reader(size, store.tile)).root() != checkpoint.root:
        raise LogError(
            f"the tiles of the entries from 0 on do not lead to the root that the checkpoint of size {size} signs",
            index=0,
        )
    return Published(note, checkpoint, Edge(size, tuple(levels)), bundle)


def check_bundle(store: TileStore, tile: Tile) -> Iterator[bytes]:
    """The entries under a tile of level 0, each checked against its leaf hash; raises `LogError` with the index."""
    hashes = split_hashes(store.tile(tile))
    for offset, entry in enumerate(store.bundle(tile)):
        if leaf_hash(entry) != hashes[offset]:
            index = tile.index * TILE_WIDTH + offset
            raise LogError(f"entry {index} is not as it was logged: its hash differs from {tile.path}", index=index)
        yield entry


def apply_journal(published: Published, journal: Journal | None, verifier: Verifier, store: TileStore) -> LogState:
    """The published tree and the journal's frames after it, each checked against its own checkpoint."""
    if journal is None:
        raise LogError(f"the journal is missing: entries from {published.size} on may be lost", index=published.size)
    if journal.first > published.size:
        raise LogError(
            f"entries {published.size} to {journal.first - 1} are missing: the journal starts at {journal.first}",
            index=published.size,
        )
    frontier = frontier_at(journal.first, hash_reader(published.size, store.tile))
    note, head = published.note, published.checkpoint
    entries: list[bytes] = []
    for frame in journal.frames:
        entries.extend(frame.entries)
        signed, frontier = _check_frame(frontier, frame.entries, frame.note, verifier, published.checkpoint)
        if signed.size > published.size:
            note, head = frame.note, signed
    if frontier.size < published.size:
        frontier = frontier_at(published.size, hash_reader(published.size, store.tile))
    pending = tuple(entries[published.size - journal.first :])
    return LogState(published, pending, note, head, frontier, journal.tail, journal.tail_whole, bool(journal.frames))


def _check_frame(
    frontier: Frontier, entries: tuple[bytes, ...], note: bytes, verifier: Verifier, published: Checkpoint
) -> tuple[Checkpoint, Frontier]:
    """The frame's checkpoint and the tree after it; raises `LogError` with the index of the frame's first entry."""
    first = frontier.size
    for entry in entries:
        frontier = frontier.append(leaf_hash(entry))
    try:
        signed = verify_checkpoint(note, verifier, published.origin)
    except LogError as error:
        raise LogError(f"the journal's checkpoint after entry {first}: {error}", index=first) from error
    if first < published.size < frontier.size:
        raise LogError(f"entry {first} and more are in one frame across the published size", index=first)
    forked = frontier.size == published.size and frontier.root() != published.root
    if (signed.size, signed.root) != (frontier.size, frontier.root()) or forked:
        raise LogError(f"entry {first} is not as it was logged: the journal's checkpoint has another root", index=first)
    return signed, frontier
