"""Tiles and entry bundles (c2sp.org/tlog-tiles): their paths, their bytes, and how they grow. Pure.

A tile of level L, index N holds up to 256 hashes, each over 256**L entries; a bundle N holds the entries under tile
0/N. Reading and writing them on disk is storage.py's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hermetic.attestation.log.merkle import HASH_SIZE, HashAt, leaf_hash, root_hash
from hermetic.errors import LogError

TILE_HEIGHT: Final = 8  # tree levels in one tile
TILE_WIDTH: Final = 1 << TILE_HEIGHT  # hashes in a full tile, entries in a full bundle
ENTRY_LENGTH_SIZE: Final = 2  # bytes, big-endian, before each entry of a bundle
MAX_ENTRY_SIZE: Final = (1 << 8 * ENTRY_LENGTH_SIZE) - 1  # bytes
MAX_BUNDLE_SIZE: Final = TILE_WIDTH * (ENTRY_LENGTH_SIZE + MAX_ENTRY_SIZE)  # bytes
MAX_LEVEL: Final = 7  # 256**8 entries are more than a tree may have


@dataclass(frozen=True, slots=True)
class Tile:
    """Where hashes lie: level, index within it, width in hashes (1 to 256)."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path under the log's folder, `tile/<L>/<N>[.p/<W>]`."""
        return f"tile/{self.level}/{_number(self.index)}{_partial(self.width)}"

    @property
    def entries_path(self) -> str:
        """The path of the entry bundle under this tile of level 0."""
        return f"tile/entries/{_number(self.index)}{_partial(self.width)}"


TileAt = Callable[[Tile], bytes]


def tiles_of(size: int) -> Iterable[Tile]:
    """Every tile of a tree of `size` entries, level by level."""
    for level in range(MAX_LEVEL + 1):
        hashes = size >> TILE_HEIGHT * level
        full, width = divmod(hashes, TILE_WIDTH)
        yield from (Tile(level, index) for index in range(full))
        if width:
            yield Tile(level, full, width)


def edge_of(size: int) -> list[Tile]:
    """The rightmost tile of each level where it is partial: what the next entry grows."""
    widths = ((level, size >> TILE_HEIGHT * level) for level in range(MAX_LEVEL + 1))
    return [Tile(level, hashes >> TILE_HEIGHT, hashes % TILE_WIDTH) for level, hashes in widths if hashes % TILE_WIDTH]


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries as the bytes of a bundle: each behind its length."""
    return b"".join(len(entry).to_bytes(ENTRY_LENGTH_SIZE, "big") + entry for entry in entries)


def decode_bundle(data: bytes, start: int) -> Iterator[bytes]:
    """The entries of a bundle whose first one is entry `start`; raises `LogError` where the bundle is cut."""
    index, offset = start, 0
    while offset < len(data):
        begin = offset + ENTRY_LENGTH_SIZE
        end = begin + int.from_bytes(data[offset:begin], "big")
        if begin > len(data) or end > len(data):
            raise LogError(f"entry {index} is cut: expected {end - begin} bytes, got {len(data) - begin}", index=index)
        yield data[begin:end]
        index, offset = index + 1, end


def split_hashes(data: bytes) -> list[bytes]:
    """The hashes of a tile's bytes, a whole number of them."""
    return [data[offset : offset + HASH_SIZE] for offset in range(0, len(data), HASH_SIZE)]


def hash_reader(size: int, tile_at: TileAt) -> HashAt:
    """The hashes of perfect subtrees of the tree of `size` entries, reduced from the tiles that `tile_at` gives."""

    def hash_at(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        first = index << height
        number, offset = divmod(first, TILE_WIDTH)
        width = min((size >> TILE_HEIGHT * tile_level) - number * TILE_WIDTH, TILE_WIDTH)
        hashes = split_hashes(tile_at(Tile(tile_level, number, width)))
        return root_hash(hashes[offset : offset + (1 << height)])

    return hash_at


@dataclass(frozen=True, slots=True)
class Edge:
    """The partial tiles of a tree of `size` entries, one sequence of 0 to 255 hashes per level."""

    size: int
    levels: tuple[tuple[bytes, ...], ...] = ((),) * (MAX_LEVEL + 1)

    def extend(self, entries: Iterable[bytes]) -> tuple["Edge", dict[Tile, bytes]]:
        """The edge after `entries`, and the bytes of each tile that is new or wider."""
        levels = [list(level) for level in self.levels]
        size = self.size
        tiles: dict[Tile, bytes] = {}
        for entry in entries:
            size += 1
            _carry(levels, leaf_hash(entry), size, tiles)
        for tile in edge_of(size):
            if self.size >> TILE_HEIGHT * tile.level != size >> TILE_HEIGHT * tile.level:
                tiles[tile] = b"".join(levels[tile.level])
        return Edge(size, tuple(map(tuple, levels))), tiles


def _carry(levels: list[list[bytes]], node: bytes, size: int, tiles: dict[Tile, bytes]) -> None:
    """Put a leaf hash into level 0; each tile that it fills goes to `tiles`, its root into the level above."""
    for level, hashes in enumerate(levels):
        hashes.append(node)
        if len(hashes) < TILE_WIDTH:
            return
        tiles[Tile(level, (size >> TILE_HEIGHT * (level + 1)) - 1)] = b"".join(hashes)
        node = root_hash(hashes)
        hashes.clear()


def _number(index: int) -> str:
    """1234067 -> x001/x234/067."""
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[offset : offset + 3] for offset in range(0, len(digits), 3)]
    return "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


def _partial(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"
