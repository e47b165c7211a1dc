"""`SqlLedger`: the ledger in a database's table, for as many processes as share it (docs/spec/broker-state.md).

Each row is an entry of the log; the last row of each commit carries the signed checkpoint that counts it. A process
remembers the tree up to where it has read, and takes rows only with a checkpoint of the log's key over exactly that
tree and them: a stranger's row, a changed one, a log that was cut or forked behind what this process knows is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hermetic.attestation.broker.state.database import Database, Rows
from hermetic.attestation.broker.state.ledger import Draw, LoggedRecord
from hermetic.attestation.log import Checkpoint, NoteSigner, NoteVerifier, verify_checkpoint
from hermetic.attestation.log.merkle import EMPTY_ROOT, Frontier, leaf_hash
from hermetic.attestation.log.record import parse_record
from hermetic.errors import LogError

READ_AT_ONCE: Final = 4096
"""Rows that one statement reads."""

_ENTRIES: Final = "SELECT position, entry, note FROM hermetic_entries WHERE position >= ? ORDER BY position LIMIT ?"


@dataclass(frozen=True, slots=True)
class Known:
    """The log up to some row: the edge of its tree, and the signed checkpoint over it."""

    frontier: Frontier
    note: bytes

    @property
    def size(self) -> int:
        """Entries in it."""
        return self.frontier.size


class SqlLedger:
    """A log in a database."""

    def __init__(self, database: Database, origin: str, signer: NoteSigner) -> None:
        """`origin` names the log in its checkpoints, `signer` signs them."""
        self._database = database
        self._origin = origin
        self._signer = signer
        self._verifier = signer.verifier()
        self._empty = Known(Frontier(), Checkpoint(origin, 0, EMPTY_ROOT).sign(signer))
        self._known = self._empty

    def commit(self, draw: Draw) -> None:
        """Append what `draw` returns, durably, to exactly what it was shown; raises `LogError`, `SharedStateError`."""
        with self._database.turn() as rows:
            news, known = self._read(rows)
            entries = draw(news, known.size)
            if entries:
                known = self._insert(rows, known, entries)
        self._known = known

    def begin(self, draw: Draw) -> None:
        """Nothing: what is drawn must see its own transaction."""

    def news(self) -> Sequence[LoggedRecord]:
        """What was appended since; raises `LogError`, `SharedStateError`."""
        with self._database.turn() as rows:
            news, known = self._read(rows)
        self._known = known
        return news

    def rewind(self) -> None:
        """Begin again with the first record."""
        self._known = self._empty

    def checkpoint(self) -> bytes:
        """The newest durable checkpoint that this process knows of."""
        return self._known.note

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _insert(self, rows: Rows, known: Known, entries: Sequence[bytes]) -> Known:
        frontier = known.frontier
        for entry in entries:
            frontier = frontier.append(leaf_hash(entry))
        note = Checkpoint(self._origin, frontier.size, frontier.root()).sign(self._signer)
        notes = [None] * (len(entries) - 1) + [note]
        values = [(known.size + at, entry, notes[at]) for at, entry in enumerate(entries)]
        rows.each("INSERT INTO hermetic_entries (position, entry, note) VALUES (?, ?, ?)", values)
        return Known(frontier, note)

    def _read(self, rows: Rows) -> tuple[list[LoggedRecord], Known]:
        """What follows what this process knows, verified."""
        self._check_still_there(rows, self._known)
        entries, known = unread(rows, self._known, self._origin, self._verifier)
        return list(map(parse_record, entries)), known

    def _check_still_there(self, rows: Rows, known: Known) -> None:
        """A log that lost or changed what was known of it is not gone on with."""
        if not known.size:
            return
        found = rows.ask("SELECT note FROM hermetic_entries WHERE position = ?", (known.size - 1,))
        if not found or found[0][0] is None or bytes(found[0][0]) != known.note:
            raise LogError(
                f"the log in the broker's database was cut or forked: expected the checkpoint of size {known.size}",
                index=known.size - 1,
            )


def unread(rows: Rows, known: Known, origin: str, verifier: NoteVerifier) -> tuple[list[bytes], Known]:
    """The entries after what is known, and what is known with them; raises `LogError` for one not signed."""
    entries: list[bytes] = []
    frontier, signed = known.frontier, known
    while found := rows.ask(_ENTRIES, (frontier.size, READ_AT_ONCE)):
        for position, entry, note in found:
            if position != frontier.size:
                raise LogError(f"entry {frontier.size} is missing in the broker's database", index=frontier.size)
            entries.append(bytes(entry))
            frontier = frontier.append(leaf_hash(entries[-1]))
            if note is not None:
                _check_signed(frontier, bytes(note), signed.size, origin, verifier)
                signed = Known(frontier, bytes(note))
    if frontier.size != signed.size:
        raise LogError(f"nothing vouches for the entries from {signed.size} on: no checkpoint", index=signed.size)
    return entries, signed


def _check_signed(frontier: Frontier, note: bytes, first: int, origin: str, verifier: NoteVerifier) -> None:
    try:
        signed = verify_checkpoint(note, verifier, origin)
    except LogError as error:
        raise LogError(f"the checkpoint after entry {first}: {error}", index=first) from error
    if (signed.size, signed.root) != (frontier.size, frontier.root()):
        raise LogError(f"entry {first} or one after it is not as it was logged: another root", index=first)
