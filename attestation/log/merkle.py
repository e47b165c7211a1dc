"""The Merkle tree of RFC 6962, section 2.1: hashes, roots, inclusion and consistency proofs. Pure: bytes in, bytes out.

Whoever has the hashes of perfect subtrees (a tile store, a list in a test) gives them as `HashAt(level, index)`: the
hash of the `2**level` leaves from `index * 2**level` on. No storage, no signatures, no record format here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hermetic.errors import LogError

HASH_SIZE: Final = 32  # bytes, SHA-256
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
MAX_PROOF_HASHES: Final = 64  # hashes; a tree of 2**63 leaves needs no more

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"

HashAt = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry): the hash of one leaf."""
    return hashlib.sha256(_LEAF + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right): the hash of an inner node."""
    return hashlib.sha256(_NODE + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a tree: its size in leaves and the roots of its perfect subtrees, largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> "Frontier":
        """The edge with one more leaf hash."""
        peaks, carry = list(self.peaks), self.size
        while carry & 1:
            leaf = node_hash(peaks.pop(), leaf)
            carry >>= 1
        return Frontier(self.size + 1, (*peaks, leaf))

    def root(self) -> bytes:
        """The tree's root, 32 bytes."""
        return root_of_peaks(self.peaks)


def root_of_peaks(peaks: Sequence[bytes]) -> bytes:
    """Fold the roots of perfect subtrees, largest first, into the tree's root."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, all in memory."""
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.append(leaf)
    return frontier.root()


def frontier_at(size: int, hash_at: HashAt) -> Frontier:
    """The right edge of the tree of `size` leaves, from stored hashes."""
    peaks, start = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            peaks.append(hash_at(level, start >> level))
            start += 1 << level
    return Frontier(size, tuple(peaks))


def range_hash(start: int, end: int, hash_at: HashAt) -> bytes:
    """MTH(D[start:end]) for a subtree of some tree, so `start` is a multiple of the power of two that spans it."""
    peaks = []
    while start < end:
        level = (end - start).bit_length() - 1
        peaks.append(hash_at(level, start >> level))
        start += 1 << level
    return root_of_peaks(peaks)


def inclusion_proof(index: int, size: int, hash_at: HashAt) -> tuple[bytes, ...]:
    """PATH(index, D[size]), leaf to root (RFC 6962, 2.1.1); raises `LogError` for an index outside the tree."""
    if not 0 <= index < size:
        raise LogError(f"expected an index below the tree size {size}, got {index}", index=index)
    start, end, ranges = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return tuple(range_hash(first, last, hash_at) for first, last in reversed(ranges))


def consistency_proof(old: int, new: int, hash_at: HashAt) -> tuple[bytes, ...]:
    """PROOF(old, D[new]) (RFC 6962, 2.1.2); empty from the empty tree; raises `LogError` for old > new."""
    if not 0 <= old <= new:
        raise LogError(f"expected an old tree size of at most {new}, got {old}", index=new)
    if old in (0, new):
        return ()
    start, end, ranges, whole = 0, new, [], True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    if not whole:
        ranges.append((start, end))
    return tuple(range_hash(first, last, hash_at) for first, last in reversed(ranges))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise `LogError` unless `proof` leads from the leaf hash at `index` to `root` (RFC 9162, 2.1.3.2)."""
    current = root_of_inclusion(leaf, index, size, proof)
    if current != root:
        raise LogError(
            f"inclusion proof of entry {index} leads to another root: expected {root.hex()}, got {current.hex()}",
            index=index,
        )


def root_of_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that `proof` leads to from the leaf hash at `index`; `LogError` where it has not the path's length."""
    if not 0 <= index < size:
        raise LogError(f"expected an index below the tree size {size}, got {index}", index=index)
    _check_hashes(proof)
    for sibling, on_left in _climb(index, size - 1, proof):
        leaf = node_hash(sibling, leaf) if on_left else node_hash(leaf, sibling)
    return leaf


def verify_consistency_proof(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Raise `LogError` unless the new tree starts with the whole old tree (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new:
        raise LogError(f"the log shrank: expected at least {old} entries, got {new}", index=new)
    _check_hashes(proof)
    if old in (0, new):
        _check_trivial(old, proof, old_root, new_root if old == new else EMPTY_ROOT)
        return
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise LogError(f"consistency proof from {old} to {new} is empty")
    shared = (~(old - 1) & old).bit_length() - 1  # levels below the last perfect subtree of the old tree
    from_old = from_new = path[0]
    for sibling, on_left in _climb(old - 1 >> shared, new - 1 >> shared, path[1:]):
        from_old = node_hash(sibling, from_old) if on_left else from_old
        from_new = node_hash(sibling, from_new) if on_left else node_hash(from_new, sibling)
    if from_old != old_root:
        raise LogError(f"the first {old} entries have another root: expected {old_root.hex()}, got {from_old.hex()}")
    if from_new != new_root:
        raise LogError(f"the {new} entries have another root: expected {new_root.hex()}, got {from_new.hex()}")


def _climb(node: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each hash of a proof and whether it stands left, on the way from `node` to the root of a level of `last` + 1."""
    for sibling in proof:
        if last == 0:
            raise LogError("a proof is longer than the path to the root")
        on_left = bool(node & 1) or node == last
        if on_left:
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        node, last = node >> 1, last >> 1
        yield sibling, on_left
    if last:
        raise LogError(f"a proof ends {last.bit_length()} levels below the root")


def _check_trivial(old: int, proof: Sequence[bytes], old_root: bytes, wanted: bytes) -> None:
    if proof:
        raise LogError(f"expected an empty consistency proof from {old} entries, got {len(proof)} hashes")
    if old_root != wanted:
        raise LogError(f"two roots for {old} entries: {old_root.hex()} and {wanted.hex()}")


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_HASHES:
        raise LogError(f"expected at most {MAX_PROOF_HASHES} hashes in a proof, got {len(proof)}")
    for item in proof:
        if len(item) != HASH_SIZE:
            raise LogError(f"expected hashes of {HASH_SIZE} bytes in a proof, got {len(item)}")


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1
