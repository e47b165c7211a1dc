"""Proofs that stand alone (c2sp.org/tlog-proof): an entry's inclusion in the tree of a signed checkpoint, as one text.

Whoever has the entry, the proof and the log's key needs nothing else. Extra data is neither written nor accepted.
"""

import base64
from dataclasses import dataclass
from typing import Final

from hermetic.attestation.log.checkpoint import Checkpoint, verify_checkpoint
from hermetic.attestation.log.merkle import MAX_PROOF_HASHES, leaf_hash, verify_inclusion
from hermetic.attestation.log.note import MAX_NOTE_SIZE, Verifier
from hermetic.errors import LogError

MAX_PROOF_SIZE: Final = MAX_NOTE_SIZE + 64 * (MAX_PROOF_HASHES + 2)  # bytes
_HEADER: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = "index "


@dataclass(frozen=True, slots=True)
class EntryProof:
    """An entry's index, the hashes from its sibling to the root, and the signed checkpoint; not yet verified."""

    index: int
    hashes: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        """The proof as text."""
        lines = [_HEADER, f"{_INDEX}{self.index}", *(base64.b64encode(item).decode() for item in self.hashes), "", ""]
        return "\n".join(lines).encode() + self.note


def parse_proof(data: bytes) -> EntryProof:
    """Read a proof, verifying nothing; raises `LogError` for anything but its one canonical form."""
    if len(data) > MAX_PROOF_SIZE:
        raise LogError(f"expected a proof of at most {MAX_PROOF_SIZE} bytes, got {len(data)}")
    head, _, note = data.partition(b"\n\n")
    lines = head.decode("utf-8", "replace").split("\n")
    digits = lines[1].removeprefix(_INDEX)[:20] if len(lines) > 1 else ""
    if lines[0] != _HEADER or not digits.isascii() or not digits.isdigit():
        raise LogError(f"expected a proof that starts with {_HEADER} and an index, got {lines[:2]}")
    try:
        proof = EntryProof(int(digits), tuple(base64.b64decode(line, validate=True) for line in lines[2:]), note)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise LogError("a hash in the proof is not base64") from error
    if proof.encode() != data:
        raise LogError("the proof is not in its one canonical form")
    return proof


def verify_proof(data: bytes, entry: bytes, verifier: Verifier, origin: str | None = None) -> Checkpoint:
    """The checkpoint of the tree that holds `entry`, once signature and path are verified; raises `LogError`."""
    proof = parse_proof(data)
    checkpoint = verify_checkpoint(proof.note, verifier, origin)
    verify_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    return checkpoint
