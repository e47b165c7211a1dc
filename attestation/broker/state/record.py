"""The broker's whole record, wherever it lies: read it, and verify it from its first entry up.

For `hermetic broker record verify`, back-ups and restores; a broker may be at work meanwhile.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.state.opening import log_folder, open_database
from hermetic.attestation.broker.state.sql_ledger import Known, unread
from hermetic.attestation.log import Checkpoint, LogReader, NoteVerifier, verify_checkpoint, verify_log
from hermetic.attestation.log.merkle import Frontier
from hermetic.attestation.log.verify import Growing
from hermetic.errors import LogError


@dataclass(frozen=True, slots=True)
class Record:
    """A log's entries, and the signed checkpoint that counts them all."""

    entries: tuple[bytes, ...]
    note: bytes


def read_record(config: BrokerConfig, verifier: NoteVerifier) -> Record:
    """Everything that the broker of `config` has recorded; raises `LogError`, `SharedStateError`."""
    if config.state is None:
        reader = LogReader(log_folder(config), verifier, config.log.origin)
        return Record(tuple(reader.entries()), reader.checkpoint())
    with contextlib.closing(open_database(config.state)) as database, database.turn() as rows:
        entries, known = unread(rows, Known(Frontier(), b""), config.log.origin, verifier)
    return Record(tuple(entries), known.note)


def verify_record(config: BrokerConfig, verifier: NoteVerifier, against: Sequence[bytes] = ()) -> Checkpoint:
    """The newest checkpoint, once every entry was recomputed and `against`, kept elsewhere, fit; raises `LogError`."""
    if config.state is None:
        return verify_log(log_folder(config), verifier, origin=config.log.origin, against=against).head
    record = read_record(config, verifier)
    check_against(record, verifier, config.log.origin, against)
    return verify_checkpoint(record.note, verifier, config.log.origin)


def check_against(record: Record, verifier: NoteVerifier, origin: str, against: Sequence[bytes]) -> None:
    """Raise `LogError`, with the first entry that is lost or another, unless the record holds all these checkpoints."""
    growing = Growing(verify_checkpoint(kept, verifier, origin) for kept in against)
    growing.extend(record.entries)
    if record.entries:
        head = verify_checkpoint(record.note, verifier, origin)
        if (head.size, head.root) != (growing.frontier.size, growing.frontier.root()):
            raise LogError(f"the entries do not lead to the checkpoint of size {head.size}", index=growing.vouched())
    growing.check_kept()
