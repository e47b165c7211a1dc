"""Tiles and bundles: paths, which tiles a tree has, and growing one edge by any steps."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.attestation.log import tiles
from hermetic.attestation.log.merkle import leaf_hash, root_hash
from hermetic.attestation.log.tiles import Edge, Tile
from hermetic.errors import LogError

ENTRIES = [index.to_bytes(4, "big") for index in range(66_000)]


def test_paths(vector: Callable[[str], Any]) -> None:
    for level, index, width, tile, entries in vector("folder")["paths"]:
        assert Tile(level, index, width).path == tile
        assert Tile(level, index, width).entries_path == entries


def test_the_tiles_of_the_specs_example() -> None:
    """A tree of 70,000: 273 full tiles and one of 112; one full and one of 17; one of 1."""
    found = list(tiles.tiles_of(70_000))
    assert len(found) == 277
    assert [tile for tile in found if tile.width < 256] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert list(tiles.tiles_of(256)) == [Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles.tiles_of(0)) == []


@given(st.lists(st.integers(0, 400), max_size=5))
@settings(deadline=None, max_examples=30)
def test_an_edge_grown_by_steps(steps: list[int]) -> None:
    edge, size, stored = Edge(0), 0, {}
    for step in steps:
        edge, new = edge.extend(ENTRIES[size : size + step])
        stored.update(new)
        size += step
    leaves = [leaf_hash(entry) for entry in ENTRIES[:size]]
    for tile in tiles.tiles_of(size):
        wanted = leaves[tile.index * 256 : tile.index * 256 + tile.width]
        if tile.level:
            wanted = [root_hash(leaves[n * 256 : (n + 1) * 256]) for n in range(tile.width)]
        assert tiles.split_hashes(stored[tile]) == wanted
    assert edge.size == size
    hash_at = tiles.hash_reader(size, stored.__getitem__)
    if size:
        level = size.bit_length() - 1
        assert hash_at(level, 0) == root_hash(leaves[: 1 << level])


def test_three_levels() -> None:
    _, stored = Edge(0).extend(ENTRIES)
    assert set(tiles.tiles_of(len(ENTRIES))) <= set(stored)
    leaves = [leaf_hash(entry) for entry in ENTRIES[:65_536]]
    assert stored[Tile(2, 0, 1)] == root_hash(leaves)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_round_trip(entries: list[bytes]) -> None:
    assert list(tiles.decode_bundle(tiles.encode_bundle(entries), 0)) == entries


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_cut_bundle_names_the_entry(cut: int) -> None:
    data = tiles.encode_bundle([b"abc", b"def", b"ghi"])
    with pytest.raises(LogError, match="entry 514 is cut") as error:
        list(tiles.decode_bundle(data[: len(data) - cut], 512))
    assert error.value.index == 514
