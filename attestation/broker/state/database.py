"""`Database`: what is needed of SQLite or PostgreSQL, and the tables (docs/spec/broker-state.md).

Statements are plain SQL that both know, with `?` for values. Every failure of the database is a `SharedStateError`;
after one nobody knows whether the transaction was committed. What a database says is never believed by itself: the
ledger's rows are signed, the cells' are sealed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from hermetic.errors import ConfigurationError

FORMAT: Final = "hermetic-broker-state/1"

LOCK_WAIT_S: Final = 5.0
"""Longest wait for another process's turn, in seconds; then the caller is told to try again."""

Value = str | bytes | int | float | None

_CELL: Final = (
    "name TEXT PRIMARY KEY, alias TEXT UNIQUE, kind TEXT NOT NULL, owner TEXT NOT NULL,"
    " expires DOUBLE PRECISION NOT NULL, version BIGINT NOT NULL, value {bytes} NOT NULL"
)

TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS hermetic_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS hermetic_entries (position BIGINT PRIMARY KEY, entry {bytes} NOT NULL, note {bytes})",
    f"CREATE TABLE IF NOT EXISTS hermetic_cells ({_CELL})",
    "CREATE INDEX IF NOT EXISTS hermetic_cells_by_end ON hermetic_cells (expires)",
    "CREATE INDEX IF NOT EXISTS hermetic_cells_by_owner ON hermetic_cells (kind, owner)",
    "CREATE TABLE IF NOT EXISTS hermetic_rates (name TEXT PRIMARY KEY, full_at DOUBLE PRECISION NOT NULL)",
)
"""`{bytes}` is what the database calls a column of bytes."""


class Rows(Protocol):
    """A transaction's statements."""

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows."""

    def each(self, statement: str, values: Sequence[Sequence[Value]]) -> None:
        """Run a statement for each row of values."""


class Database(Protocol):
    """One connection, made again when it was lost. Thread-safe: one transaction at a time."""

    def turn(self) -> AbstractContextManager[Rows]:
        """A transaction beside no other turn of any process; durable when the block is left without an error."""

    def short(self) -> AbstractContextManager[Rows]:
        """A transaction of what a power failure may take back, each statement by itself atomic."""

    def close(self) -> None:
        """Let go of the connection; twice does nothing."""


def check_format(rows: Rows) -> None:
    """Write what the tables are where they are new; raises `ConfigurationError` for those of another release."""
    rows.ask("INSERT INTO hermetic_facts VALUES ('format', ?) ON CONFLICT (name) DO NOTHING", (FORMAT,))
    found = rows.ask("SELECT value FROM hermetic_facts WHERE name = 'format'")
    if found != [(FORMAT,)]:
        raise ConfigurationError(f"the broker's database: expected {FORMAT}, got {found[0][0] if found else 'nothing'}")
