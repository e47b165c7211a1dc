"""`SqlCells`: cells in a database, sealed, so that what is written there by others is nothing to us.

A cell's value is encrypted and authenticated (AES-256-GCM) under a key that only holders of the log's key can derive;
its name, owner, kind, end, version and alias are authenticated with it. An older version that somebody puts back is
genuine here: that a nonce is used once is therefore also the ledger's (`Standing.attested`).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hermetic.attestation.broker.state.cells import Budget, Cell, Room, check_budget, check_room
from hermetic.attestation.broker.state.database import Database, Rows
from hermetic.attestation.log import NoteSigner

LABEL: Final = b"hermetic-broker-state/1 cells"
NONCE_BYTES: Final = 12

_COLUMNS: Final = "name, alias, kind, owner, expires, version, value"
_SPEND: Final = (
    "INSERT INTO hermetic_rates (name, full_at) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET full_at ="
    " CASE WHEN hermetic_rates.full_at > ? THEN hermetic_rates.full_at ELSE ? END + ? RETURNING full_at"
)
_COUNT: Final = (
    "SELECT count(*), coalesce(sum(CASE WHEN owner = ? THEN 1 ELSE 0 END), 0) FROM hermetic_cells WHERE kind = ?"
)


class SqlCells:
    """Cells of every process that shares a database."""

    def __init__(self, database: Database, signer: NoteSigner) -> None:
        """`signer` is the log's."""
        self._database = database
        self._seal = AESGCM(signer.derive(LABEL))

    def add(self, cell: Cell, room: Room, now: float, budgets: Sequence[Budget] = ()) -> None:
        """Spend one of each budget and add a new cell, or raise `NoRoomError` and do neither."""
        owner = _hashed(cell.owner)
        with self._database.short() as rows:
            for budget in budgets:
                _spend(rows, budget, now)
            rows.ask("DELETE FROM hermetic_cells WHERE expires <= ?", (now,))
            held, owned = rows.ask(_COUNT, (owner, cell.kind))[0]
            check_room(room, cell, int(held), int(owned))
            rows.ask(f"INSERT INTO hermetic_cells ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", self._row(cell))  # noqa: S608 - constants

    def read(self, name: str, now: float) -> Cell | None:
        """The cell of this name, None where there is none, it is over, or it is nobody's of us."""
        return self._read("name", name, now)

    def read_alias(self, alias: str, now: float) -> Cell | None:
        """The cell with this second name."""
        return self._read("alias", alias, now)

    def put(self, cell: Cell) -> bool:
        """Put `cell` in the place of the version before it; False where that is not there any more."""
        name, alias, _, _, expires, version, value = self._row(cell)
        with self._database.short() as rows:
            return bool(
                rows.ask(
                    "UPDATE hermetic_cells SET alias = ?, expires = ?, version = ?, value = ?"
                    " WHERE name = ? AND version = ? RETURNING version",
                    (alias, expires, version, value, name, cell.version - 1),
                )
            )

    def remove(self, cell: Cell) -> bool:
        """Remove a cell; False where it was not there any more in this version."""
        with self._database.short() as rows:
            values = (cell.name, cell.version)
            return bool(rows.ask("DELETE FROM hermetic_cells WHERE name = ? AND version = ? RETURNING version", values))

    def _read(self, column: str, value: str, now: float) -> Cell | None:
        with self._database.short() as rows:
            found = rows.ask(f"SELECT {_COLUMNS} FROM hermetic_cells WHERE {column} = ?", (value,))  # noqa: S608 - constants
        return self._opened(found[0], now) if found else None

    def _row(self, cell: Cell) -> tuple[Any, ...]:
        head = (cell.name, cell.alias, cell.kind, _hashed(cell.owner), cell.expires, cell.version)
        nonce = os.urandom(NONCE_BYTES)
        plain = json.dumps({"owner": cell.owner, "value": cell.value}, separators=(",", ":")).encode()
        return (*head, nonce + self._seal.encrypt(nonce, plain, _head(head)))

    def _opened(self, row: tuple[Any, ...], now: float) -> Cell | None:
        name, alias, kind, _, expires, version, sealed = row
        sealed = bytes(sealed)
        try:
            plain = self._seal.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _head(row[:-1]))
        except (InvalidTag, ValueError):
            return None  # a stranger wrote it: there is no such cell
        if expires <= now:
            return None
        members = json.loads(plain)
        return Cell(kind, name, members["owner"], expires, members["value"], version, alias)


def _spend(rows: Rows, budget: Budget, now: float) -> None:
    values = (_hashed(budget.name), now + budget.interval_s, now, now, budget.interval_s)
    check_budget(budget, rows.ask(_SPEND, values)[0][0], now)


def _head(row: Sequence[Any]) -> bytes:
    """A row without its value, as it is authenticated."""
    return json.dumps([*row[:4], repr(float(row[4])), int(row[5])], separators=(",", ":")).encode()


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
