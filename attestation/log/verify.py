"""`verify_log`: every entry, tile and checkpoint of a log's folder, recomputed from the entries up.

Steps
 1. The checkpoint is signed by the log's key.
 2. Each entry has its leaf hash in tile level 0; each tile holds the roots of the tiles under it.
 3. The tree over all entries has the checkpoint's root.
 4. Each frame of the journal has the root that its own signed checkpoint says; nothing follows the last frame but a
    write that never ended.
 5. The tree at the size of each checkpoint that was kept elsewhere has that checkpoint's root.

The error names the first index that nothing vouches for. A log that was cut or rewritten by its own key's holder
passes steps 1 to 4: step 5 is what finds it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hermetic.attestation.log.checkpoint import Checkpoint, verify_checkpoint
from hermetic.attestation.log.merkle import EMPTY_ROOT, Frontier, leaf_hash
from hermetic.attestation.log.note import Verifier
from hermetic.attestation.log.state import (
    LogState,
    TileStore,
    apply_journal,
    check_bundle,
    load_published,
    read_snapshot,
)
from hermetic.attestation.log.tiles import TILE_HEIGHT, TILE_WIDTH, Edge, Tile, edge_of, split_hashes
from hermetic.errors import LogError


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A log that verifies: its newest checkpoint (`note`, `head`), and what of it is still in the journal.

    `torn_bytes` counts what a crash left behind the last whole frame of the journal; nobody was told of it.
    """

    head: Checkpoint
    note: bytes
    published: int
    journaled: int
    torn_bytes: int


class Growing:
    """The tree as it is recomputed; keeps its root at each size that a checkpoint kept elsewhere counts."""

    def __init__(self, kept: Iterable[Checkpoint]) -> None:
        self.frontier = Frontier()
        self._edge = Edge(0)
        self._kept = sorted(kept, key=lambda checkpoint: checkpoint.size)
        self._roots = {checkpoint.size: EMPTY_ROOT for checkpoint in self._kept}

    def extend(self, entries: Iterable[bytes]) -> dict[Tile, bytes]:
        """Add entries; returns the tiles that are new or wider."""
        entries = list(entries)
        for entry in entries:
            self.frontier = self.frontier.append(leaf_hash(entry))
            if self.frontier.size in self._roots:
                self._roots[self.frontier.size] = self.frontier.root()
        self._edge, tiles = self._edge.extend(entries)
        return tiles

    def partial(self, tile: Tile) -> bytes:
        """The hashes of a partial tile at the end of the tree so far."""
        return b"".join(self._edge.levels[tile.level])

    def vouched(self) -> int:
        """How many of the entries so far the checkpoints kept elsewhere prove unchanged."""
        return max((kept.size for kept in self._kept if self._roots[kept.size] == kept.root), default=0)

    def check_kept(self) -> None:
        """Step 5."""
        size = self.frontier.size
        for kept in self._kept:
            if kept.size > size:
                raise LogError(f"entry {size} is missing: the checkpoint given counts {kept.size}", index=size)
            if kept.root != self._roots[kept.size]:
                index = self.vouched()
                raise LogError(
                    f"the log was forked: entries {index} to {kept.size - 1} have not the root of the checkpoint given",
                    index=index,
                )


def verify_log(
    folder: Path, verifier: Verifier, *, origin: str | None = None, against: Sequence[bytes] = ()
) -> VerifiedLog:
    """Verify a whole log, also while a writer is at work in it.

    `against` are checkpoints of it that were kept elsewhere, as signed notes. Raises `LogError` with `index`, the first
    entry that nothing vouches for: with more checkpoints of a log that was forked, it lies closer to the fork.
    """
    note, journal = read_snapshot(folder)
    checkpoint = verify_checkpoint(note, verifier, origin)  # step 1
    growing = Growing(verify_checkpoint(kept, verifier, checkpoint.origin) for kept in against)
    _check_tiles(TileStore(folder), checkpoint.size, growing)  # step 2
    if growing.frontier.root() != checkpoint.root:  # step 3
        index = growing.vouched()
        raise LogError(
            f"the entries from {index} on are not those that were logged: expected root {checkpoint.root.hex()}, "
            f"got {growing.frontier.root().hex()}",
            index=index,
        )
    published = load_published(folder, note, checkpoint)
    state = apply_journal(published, journal, verifier, TileStore(folder))  # step 4
    _check_tail(state)
    growing.extend(state.pending)
    growing.check_kept()
    return VerifiedLog(state.head, state.note, published.size, len(state.pending), len(state.tail))


def _check_tiles(store: TileStore, size: int, growing: Growing) -> None:
    for start in range(0, size, TILE_WIDTH):
        leaves = Tile(0, start // TILE_WIDTH, min(size - start, TILE_WIDTH))
        for tile, wanted in growing.extend(check_bundle(store, leaves)).items():
            if tile.width == TILE_WIDTH:
                _check_tile(store, tile, wanted)
    for tile in edge_of(size):
        _check_tile(store, tile, growing.partial(tile))


def _check_tile(store: TileStore, tile: Tile, wanted: bytes) -> None:
    got = store.tile(tile)
    if got == wanted:
        return
    pairs = enumerate(zip(split_hashes(got), split_hashes(wanted), strict=True))
    offset = next(offset for offset, (stored, computed) in pairs if stored != computed)
    span = TILE_HEIGHT * tile.level
    index = (tile.index * TILE_WIDTH + offset) << span
    raise LogError(
        f"one of the entries {index} to {index + (1 << span) - 1} is not as it was logged: {tile.path} differs",
        index=index,
    )


def _check_tail(state: LogState) -> None:
    """A write that was interrupted is shorter than it says; one of full length was changed after it was made."""
    if state.tail_whole:
        raise LogError(
            f"the journal is damaged at entry {state.head.size}: its last frame has full length and another checksum",
            index=state.head.size,
        )
