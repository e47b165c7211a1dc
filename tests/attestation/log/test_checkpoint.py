"""Checkpoints: their one canonical form, whose they are, and that they follow one another."""

from collections.abc import Callable
from typing import Any

import pytest

from hermetic.attestation.log.checkpoint import (
    Checkpoint,
    check_origin,
    parse_checkpoint,
    verify_checkpoint,
    verify_consistency,
)
from hermetic.attestation.log.merkle import EMPTY_ROOT, consistency_proof, leaf_hash, root_hash
from hermetic.attestation.log.note import NoteSigner
from hermetic.errors import ConfigurationError, LogError

LEAVES = [leaf_hash(bytes([index])) for index in range(9)]


def signed(size: int, signer: NoteSigner, origin: str = "log.example/test") -> bytes:
    return Checkpoint(origin, size, root_hash(LEAVES[:size])).sign(signer)


def proof(old: int, new: int) -> tuple[bytes, ...]:
    return consistency_proof(old, new, lambda level, index: root_hash(LEAVES[index << level : (index + 1) << level]))


def test_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("checkpoint")
    for case in known["accepted"]:
        checkpoint = parse_checkpoint(case["text"].encode())
        assert checkpoint == Checkpoint(case["origin"], case["size"], bytes.fromhex(case["root"]))
        assert checkpoint.text() == case["text"].encode()
    for case in known["refused"]:
        with pytest.raises(LogError) as refusal:
            parse_checkpoint(case["text"].encode())
        assert case["error"] in str(refusal.value), case["text"][:80]


def test_another_logs_checkpoint_is_refused(signer: NoteSigner) -> None:
    note = signed(3, signer, "log.example/other")
    assert verify_checkpoint(note, signer.verifier()).size == 3
    with pytest.raises(LogError, match=r"expected a checkpoint of the log log\.example/test, got one of"):
        verify_checkpoint(note, signer.verifier(), "log.example/test")


def test_consistency(signer: NoteSigner) -> None:
    verifier = signer.verifier()
    assert verify_consistency(signed(3, signer), signed(9, signer), proof(3, 9), verifier).size == 9
    assert verify_consistency(signed(0, signer), signed(9, signer), (), verifier).size == 9
    with pytest.raises(LogError, match="shrank"):
        verify_consistency(signed(9, signer), signed(3, signer), (), verifier)
    with pytest.raises(LogError, match="two roots for 3"):
        verify_consistency(Checkpoint("log.example/test", 3, EMPTY_ROOT).sign(signer), signed(3, signer), (), verifier)
    with pytest.raises(LogError, match="expected a checkpoint of the log"):
        verify_consistency(signed(3, signer), signed(9, signer, "log.example/other"), proof(3, 9), verifier)
    stranger = NoteSigner.generate("log.example/test")
    with pytest.raises(LogError, match="expected a signature"):
        verify_consistency(signed(3, stranger), signed(9, signer), proof(3, 9), verifier)


@pytest.mark.parametrize("origin", ["", "two\nlines", "x" * 256])
def test_an_origin_is_one_line(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="origin"):
        check_origin(origin)
