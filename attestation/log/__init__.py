"""The tamper-evident log of decisions: C2SP tlog-tiles with signed checkpoints (docs/spec/log.md).

    writer.py      Log: append, checkpoint                 reader.py    LogReader: entries and proofs
    verify.py      verify_log: everything, recomputed      witness.py   cosignatures
    record.py  note.py  checkpoint.py  proof.py  merkle.py  tiles.py       formats, pure
    journal.py  storage.py  state.py                                       what lies on disk

Against its own writer a log protects only through checkpoints that others hold.
"""

from hermetic.attestation.log.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint, verify_consistency
from hermetic.attestation.log.note import NoteSigner, NoteVerifier, Signer, UnsafeAnyKey
from hermetic.attestation.log.proof import EntryProof, verify_proof
from hermetic.attestation.log.reader import LogReader
from hermetic.attestation.log.record import MAX_RECORD_SIZE, Record
from hermetic.attestation.log.verify import VerifiedLog, verify_log
from hermetic.attestation.log.witness import Cosignature, cosign, verify_cosignatures, witness_checkpoint
from hermetic.attestation.log.writer import Log, Recovery

__all__ = [
    "MAX_RECORD_SIZE",
    "Checkpoint",
    "Cosignature",
    "EntryProof",
    "Log",
    "LogReader",
    "NoteSigner",
    "NoteVerifier",
    "Record",
    "Recovery",
    "Signer",
    "UnsafeAnyKey",
    "VerifiedLog",
    "cosign",
    "parse_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_cosignatures",
    "verify_log",
    "verify_proof",
    "witness_checkpoint",
]
