"""Cosignatures by vectors, and a witness that refuses a fork."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.log import (
    Log,
    LogReader,
    NoteSigner,
    NoteVerifier,
    cosign,
    verify_checkpoint,
    verify_cosignatures,
    witness_checkpoint,
)
from hermetic.attestation.log.witness import cosigner_key
from hermetic.errors import LogError

TIME = datetime(2026, 1, 2, tzinfo=UTC)
ORIGIN = "log.example/test"


def test_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("cosignature")
    witness, key = NoteSigner.parse(known["signing_key"]), NoteVerifier.parse(known["key"])
    time = datetime.fromtimestamp(known["time"], UTC)
    assert cosigner_key(witness) == key
    assert cosign(known["checkpoint"].encode(), witness, time) == known["cosigned"].encode()
    (found,) = verify_cosignatures(known["cosigned"].encode(), [key], 1)
    assert (found.name, found.time) == (witness.name, time)
    for case in known["refused"]:
        with pytest.raises(LogError) as refusal:
            verify_cosignatures(case["note"].encode(), [key], 1)
        assert case["error"] in str(refusal.value), case["what"]


def grow(folder: Path, signer: NoteSigner, kinds: str) -> tuple[list[bytes], LogReader]:
    with Log.open(folder, ORIGIN, signer, now=lambda: TIME) as log:
        notes = [log.checkpoint()]
        for kind in kinds:
            log.append({"kind": kind, "fields": {}})
            notes.append(log.checkpoint())
    return notes, LogReader(folder, signer.verifier())


def test_a_witness_refuses_a_fork(tmp_path: Path, signer: NoteSigner) -> None:
    witness = NoteSigner.generate("witness.example/1")
    notes, log = grow(tmp_path / "log", signer, "abcdefg")
    forked_notes, fork = grow(tmp_path / "fork", signer, "abxdefg")

    def ask(last: bytes | None, new: bytes, proof: tuple[bytes, ...]) -> bytes:
        return witness_checkpoint(last, new, proof, signer.verifier(), witness, TIME)

    first = ask(None, notes[3], ())
    later = ask(first, notes[7], log.consistency_proof(3))
    assert verify_checkpoint(later, signer.verifier()).size == 7
    assert verify_cosignatures(later, [cosigner_key(witness)], 1)[0].time == TIME
    with pytest.raises(LogError, match="another root"):
        ask(first, forked_notes[7], fork.consistency_proof(3))
    with pytest.raises(LogError, match="another root"):
        ask(first, forked_notes[7], log.consistency_proof(3))
    with pytest.raises(LogError, match="shrank"):
        ask(later, notes[3], ())


def test_a_quorum_counts_keys_not_lines(signer: NoteSigner, folder: Path) -> None:
    notes, _ = grow(folder, signer, "a")
    one, two = NoteSigner.generate("witness.example/1"), NoteSigner.generate("witness.example/2")
    keys = [cosigner_key(one), cosigner_key(two)]
    twice = cosign(cosign(notes[1], one, TIME), one, TIME)
    assert len(verify_cosignatures(twice, keys, 1)) == 1
    with pytest.raises(LogError, match="expected cosignatures of 2 witnesses under the checkpoint, got 1"):
        verify_cosignatures(twice, [*keys, keys[0]], 2)
    assert len(verify_cosignatures(cosign(twice, two, TIME), keys, 2)) == 2
