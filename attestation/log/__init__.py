"""The tamper-evident log of decisions: C2SP tlog-tiles with signed checkpoints (docs/spec/log.md).

    writer.py      Log: append, checkpoint                 reader.py    LogReader: entries and proofs
    verify.py      verify_log, verify against a checkpoint witness.py   cosignatures
    record.py  note.py  checkpoint.py  merkle.py  tiles.py      formats and pure functions
    journal.py  storage.py  state.py                            what lies on disk

Against its own writer a log protects only through checkpoints that others hold.
"""

from hermetic.attestation.log.checkpoint import Checkpoint, verify_checkpoint, verify_consistency
from hermetic.attestation.log.note import NoteSigner, NoteVerifier, Signer
from hermetic.attestation.log.record import MAX_RECORD_SIZE, Record
from hermetic.attestation.log.writer import Log, Recovery

__all__ = [
    "MAX_RECORD_SIZE",
    "Checkpoint",
    "Log",
    "NoteSigner",
    "NoteVerifier",
    "Record",
    "Recovery",
    "Signer",
    "verify_checkpoint",
    "verify_consistency",
]
