"""Witness cosignatures (c2sp.org/tlog-cosignature, Ed25519 v1): another party says that it saw a log only grow.

Here: making and verifying cosignatures, and the one rule of a witness. Where a witness keeps the last checkpoint of
each log, and how the note travels, is its operator's; ML-DSA-44 cosignatures are not made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hermetic.attestation.log.checkpoint import verify_checkpoint, verify_consistency
from hermetic.attestation.log.note import (
    COSIGNATURE_V1,
    SIGNATURE_SIZE,
    Note,
    NoteVerifier,
    Signature,
    Signer,
    parse_note,
)
from hermetic.errors import LogError

_TIME_SIZE: Final = 8  # bytes, big-endian seconds since 1970
_MAX_TIME: Final = 253_402_300_799  # seconds: the end of the year 9999, the last that `datetime` can hold


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A verified cosignature: whose, and when it was made."""

    name: str
    time: datetime


def cosigner_key(signer: Signer) -> NoteVerifier:
    """The public half of a witness's key. A key signs either as a log or as a witness, never as both."""
    return NoteVerifier(signer.name, signer.verifier().public_key, COSIGNATURE_V1)


def witness_checkpoint(
    last: bytes | None, new: bytes, proof: Sequence[bytes], verifier: NoteVerifier, signer: Signer, time: datetime
) -> bytes:
    """`new` with this witness's cosignature, once it is proved to hold all of `last`; raises `LogError` for a fork.

    `last` is the newest checkpoint that this witness has cosigned for the log, None for the first one; `proof` is the
    consistency proof between the two.
    """
    if last is None:
        verify_checkpoint(new, verifier)
    else:
        verify_consistency(last, new, proof, verifier)
    return cosign(new, signer, time)


def cosign(note: bytes, signer: Signer, time: datetime) -> bytes:
    """`note` with one more signature line. Says that its tree is consistent with all before: `witness_checkpoint`."""
    parsed = parse_note(note)
    seconds = int(time.timestamp())
    value = seconds.to_bytes(_TIME_SIZE, "big") + signer.sign(_message(parsed.text, seconds))
    line = Signature(signer.name, cosigner_key(signer).key_id, value)
    return Note(parsed.text, (*parsed.signatures, line)).encode()


def verify_cosignatures(note: bytes, witnesses: Sequence[NoteVerifier], quorum: int) -> tuple[Cosignature, ...]:
    """The cosignatures of at least `quorum` different `witnesses`; raises `LogError` for fewer, or for a false one."""
    parsed = parse_note(note)
    found: dict[bytes, Cosignature] = {}
    for witness in witnesses:
        for line in witness.of(parsed):
            found[witness.public_key] = _verify_line(parsed.text, line, witness)
    if len(found) < quorum:
        raise LogError(f"expected cosignatures of {quorum} witnesses under the checkpoint, got {len(found)}")
    return tuple(found.values())


def _verify_line(text: bytes, line: Signature, witness: NoteVerifier) -> Cosignature:
    if witness.type != COSIGNATURE_V1 or len(line.value) != _TIME_SIZE + SIGNATURE_SIZE:
        raise LogError(f"expected a cosignature/v1 of {_TIME_SIZE + SIGNATURE_SIZE} bytes by {witness.name}")
    seconds = int.from_bytes(line.value[:_TIME_SIZE], "big")
    if seconds > _MAX_TIME:
        raise LogError(f"the cosignature of {witness.name} has an impossible time, {seconds}")
    witness.verify(_message(text, seconds), line.value[_TIME_SIZE:])
    return Cosignature(witness.name, datetime.fromtimestamp(seconds, UTC))


def _message(text: bytes, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n".encode() + text
