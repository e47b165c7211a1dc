"""The tree and its proofs: known trees, random trees, and every mutation refused."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hermetic.attestation.log import merkle
from hermetic.errors import LogError

SIZES = st.integers(1, 200)
LEAVES = tuple(merkle.leaf_hash(bytes([index])) for index in range(200))


def hash_at(leaves: Sequence[bytes]) -> merkle.HashAt:
    def at(level: int, index: int) -> bytes:
        covered = leaves[index << level : (index + 1) << level]
        assert len(covered) == 1 << level
        return merkle.root_hash(covered)

    return at


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_known_trees(vector: Callable[[str], Any]) -> None:
    known = vector("merkle")
    leaves = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in known["leaves"]]
    roots = [bytes.fromhex(root) for root in known["roots"]]
    assert [merkle.root_hash(leaves[:size]) for size in range(9)] == roots
    for case in known["inclusion"]:
        proof = merkle.inclusion_proof(case["index"], case["size"], hash_at(leaves))
        assert [item.hex() for item in proof] == case["proof"]
        merkle.verify_inclusion(leaves[case["index"]], case["index"], case["size"], proof, roots[case["size"]])
    for case in known["consistency"]:
        proof = merkle.consistency_proof(case["old"], case["new"], hash_at(leaves))
        assert [item.hex() for item in proof] == case["proof"]
        merkle.verify_consistency_proof(case["old"], case["new"], proof, roots[case["old"]], roots[case["new"]])


@given(SIZES)
def test_frontier_from_stored_hashes(size: int) -> None:
    grown = merkle.Frontier()
    for leaf in LEAVES[:size]:
        grown = grown.append(leaf)
    assert merkle.frontier_at(size, hash_at(LEAVES[:size])) == grown


@given(SIZES, st.data())
def test_inclusion_of_random_trees_and_any_mutation(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = merkle.root_hash(LEAVES[:size])
    proof = merkle.inclusion_proof(index, size, hash_at(LEAVES[:size]))
    merkle.verify_inclusion(LEAVES[index], index, size, proof, root)

    def refused(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
        with pytest.raises(LogError):
            merkle.verify_inclusion(leaf, index, size, proof, root)

    bit = data.draw(st.integers(0, 255))
    refused(flip(LEAVES[index], bit), index, size, proof, root)
    refused(LEAVES[index], index, size, proof, flip(root, bit))
    refused(LEAVES[index], index, size, [*proof, proof[0] if proof else root], root)
    other = data.draw(st.integers(0, size))
    if other != index:
        refused(LEAVES[index], other, size, proof, root)
    for position in range(len(proof)):
        refused(LEAVES[index], index, size, [*proof[:position], *proof[position + 1 :]], root)
        changed = [*proof[:position], flip(proof[position], bit), *proof[position + 1 :]]
        refused(LEAVES[index], index, size, changed, root)
        refused(LEAVES[index], index, size, [*proof[:position], b"", *proof[position:]], root)


@given(SIZES, st.data())
def test_consistency_of_random_trees_and_any_mutation(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, new))
    old_root, new_root = merkle.root_hash(LEAVES[:old]), merkle.root_hash(LEAVES[:new])
    proof = merkle.consistency_proof(old, new, hash_at(LEAVES[:new]))
    merkle.verify_consistency_proof(old, new, proof, old_root, new_root)

    def refused(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
        with pytest.raises(LogError):
            merkle.verify_consistency_proof(old, new, proof, old_root, new_root)

    bit = data.draw(st.integers(0, 255))
    refused(old, new, proof, flip(old_root, bit), new_root)
    refused(new + 1, new, proof, old_root, new_root)
    refused(old, new, [*proof, new_root], old_root, new_root)
    if old:
        refused(old, new, proof, old_root, flip(new_root, bit))
        for position in range(len(proof)):
            changed = [*proof[:position], flip(proof[position], bit), *proof[position + 1 :]]
            refused(old, new, changed, old_root, new_root)
            refused(old, new, [*proof[:position], *proof[position + 1 :]], old_root, new_root)


@given(SIZES, st.data())
def test_a_fork_has_no_consistency_proof(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    index = data.draw(st.integers(0, old - 1))
    assume(index < old)
    forked = (*LEAVES[:index], bytes(32), *LEAVES[index + 1 : new])
    proof = merkle.consistency_proof(old, new, hash_at(forked))
    with pytest.raises(LogError):
        merkle.verify_consistency_proof(old, new, proof, merkle.root_hash(LEAVES[:old]), merkle.root_hash(forked))


def test_proofs_outside_the_tree_are_refused() -> None:
    with pytest.raises(LogError, match="below the tree size 3, got 3"):
        merkle.inclusion_proof(3, 3, hash_at(LEAVES))
    with pytest.raises(LogError, match="at most 3, got 4"):
        merkle.consistency_proof(4, 3, hash_at(LEAVES))
    with pytest.raises(LogError, match="at most 64 hashes"):
        merkle.verify_inclusion(LEAVES[0], 0, 2**62, [bytes(32)] * 65, bytes(32))
