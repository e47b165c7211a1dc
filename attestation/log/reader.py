"""`LogReader`: a log's entries and proofs, read from its folder, also while a writer is at work in it.

A reader sees the log as it was when the reader was made. It checks the checkpoint, the right edge of the tree, and
each entry that it gives out against its leaf hash; that all the rest is whole is for verify.py.
"""

from collections.abc import Iterator
from pathlib import Path

from hermetic.attestation.log import merkle
from hermetic.attestation.log.checkpoint import Checkpoint
from hermetic.attestation.log.note import Verifier
from hermetic.attestation.log.proof import EntryProof
from hermetic.attestation.log.record import Record, parse_record
from hermetic.attestation.log.state import TileStore, check_bundle, load
from hermetic.attestation.log.tiles import TILE_WIDTH, Tile, hash_reader
from hermetic.errors import LogError


class LogReader:
    """A log as of now; make another one to see what was appended since."""

    def __init__(self, folder: Path, verifier: Verifier, origin: str | None = None) -> None:
        """Read and check the head of the log; raises `LogError`."""
        self._store = TileStore(folder)
        self._state = load(folder, verifier, origin)
        self._overlay = self._state.published.edge.extend(self._state.pending)[1]
        self._hash_at = hash_reader(self.size, self._tile)

    @property
    def head(self) -> Checkpoint:
        """The newest checkpoint."""
        return self._state.head

    @property
    def size(self) -> int:
        """Entries in the log."""
        return self._state.head.size

    def checkpoint(self) -> bytes:
        """The newest checkpoint as a signed note."""
        return self._state.note

    def entry(self, index: int) -> bytes:
        """The bytes of one entry; raises `LogError`."""
        if not 0 <= index < self.size:
            raise LogError(f"expected an index below the log's size {self.size}, got {index}", index=index)
        return next(self.entries(index, index + 1))

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of the entries from `start` to before `stop` (None: to the end); raises `LogError`."""
        published = self._state.published.size
        stop = self.size if stop is None else min(stop, self.size)
        for number in range(start // TILE_WIDTH, -(-min(stop, published) // TILE_WIDTH)):
            first = number * TILE_WIDTH
            tile = Tile(0, number, min(published - first, TILE_WIDTH))
            for index, entry in enumerate(check_bundle(self._store, tile), first):
                if start <= index < stop:
                    yield entry
        yield from self._state.pending[max(start - published, 0) : max(stop - published, 0)]

    def record(self, index: int) -> Record:
        """One entry as a record; raises `LogError`."""
        return parse_record(self.entry(index))

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """The entries from `start` to before `stop` as records; raises `LogError`."""
        return map(parse_record, self.entries(start, stop))

    def inclusion_proof(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """The hashes from the entry at `index` to the root of the first `size` entries (None: of all)."""
        return merkle.inclusion_proof(index, self._size(size), self._hash_at)

    def consistency_proof(self, old: int, new: int | None = None) -> tuple[bytes, ...]:
        """The hashes that prove the first `old` entries unchanged in the first `new` (None: all)."""
        return merkle.consistency_proof(old, self._size(new), self._hash_at)

    def prove(self, index: int) -> EntryProof:
        """The proof that the entry at `index` is in the log of the newest checkpoint; raises `LogError`."""
        return EntryProof(index, self.inclusion_proof(index), self.checkpoint())

    def _size(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise LogError(f"expected a tree size of at most {self.size}, got {size}", index=self.size)
        return size

    def _tile(self, tile: Tile) -> bytes:
        """A tile of the whole tree, published or not."""
        pending = self._overlay.get(tile)
        return self._store.tile(tile) if pending is None else pending
