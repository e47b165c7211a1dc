"""Proofs that stand alone, by vectors."""

from collections.abc import Callable
from typing import Any

import pytest

from hermetic.attestation.log.note import NoteVerifier
from hermetic.attestation.log.proof import MAX_PROOF_SIZE, parse_proof, verify_proof
from hermetic.errors import LogError


def test_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("proof")
    verifier, entry = NoteVerifier.parse(known["key"]), known["entry"].encode()
    assert verify_proof(known["proof"].encode(), entry, verifier).size == 7
    assert parse_proof(known["proof"].encode()).encode() == known["proof"].encode()
    for case in known["refused"]:
        with pytest.raises(LogError) as refusal:
            verify_proof(case["proof"].encode(), entry, verifier)
        assert case["error"] in str(refusal.value), case["what"]
    with pytest.raises(LogError, match="another root"):
        verify_proof(known["proof"].encode(), entry + b" ", verifier)
    with pytest.raises(LogError, match="expected a checkpoint of the log"):
        verify_proof(known["proof"].encode(), entry, verifier, "another.example/log")


def test_a_proof_is_bounded() -> None:
    with pytest.raises(LogError, match="at most"):
        parse_proof(b"x" * (MAX_PROOF_SIZE + 1))
