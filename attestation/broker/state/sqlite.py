"""`Sqlite`: a database file that the broker processes of one machine share, by the standard library.

WAL mode; a turn begins with BEGIN IMMEDIATE and is synced when it ends (`synchronous = FULL`). What may be lost with
the machine's power (sessions) lies in a second file beside the first, which is never synced.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from hermetic.attestation.broker.state.database import LOCK_WAIT_S, TABLES, Rows, Value, check_format
from hermetic.errors import ConfigurationError, SharedStateError

FILE_MODE: Final = 0o600

SHORT_LIVED: Final = "-short"
"""What the name of the second file ends with."""


class Sqlite:
    """A database file, and the one beside it."""

    def __init__(self, path: Path) -> None:
        """Open or make it; raises `ConfigurationError` for one that is another's, `SharedStateError` else."""
        self._path = path
        self._durable = _File(path, "FULL")
        try:
            self._short = _File(path.with_name(path.name + SHORT_LIVED), "OFF")
        except BaseException:
            self._durable.close()
            raise

    @property
    def path(self) -> Path:
        """The durable file."""
        return self._path

    def turn(self) -> contextlib.AbstractContextManager[Rows]:
        """A transaction alone, durable at its end."""
        return self._durable.transaction()

    def short(self) -> contextlib.AbstractContextManager[Rows]:
        """A transaction in the file that is not synced."""
        return self._short.transaction()

    def close(self) -> None:
        """Close both files."""
        self._durable.close()
        self._short.close()


class _File:
    def __init__(self, path: Path, synchronous: str) -> None:
        self._path = path
        self._mutex = threading.Lock()
        try:
            if path.is_symlink():
                raise ConfigurationError(f"{path}: expected a file, got a link")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(FILE_MODE)
            self._connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise SharedStateError(f"cannot open {path}: {error}") from error
        try:
            self._prepare(synchronous)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, synchronous: str) -> None:
        with self._named():
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            # A schema that somebody changed must not run code: no functions in views or triggers.
            self._connection.execute("PRAGMA trusted_schema = OFF")
        with self.transaction() as rows:
            for table in TABLES:
                rows.ask(table.format(bytes="BLOB"))
            check_format(rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Rows]:
        with self._mutex:
            with self._named():
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield _Rows(self)
                with self._named():
                    self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def ask(self, statement: str, values: Sequence[Value]) -> list[tuple[Any, ...]]:
        with self._named():
            return self._connection.execute(statement, values).fetchall()

    def each(self, statement: str, values: Sequence[Sequence[Value]]) -> None:
        with self._named():
            self._connection.executemany(statement, values)

    def close(self) -> None:
        with self._mutex:
            self._connection.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in what SQLite says; one that is none is the operator's fault, all else may pass."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
                raise ConfigurationError(f"{self._path}: expected a database of a broker, got {error}") from error
            raise SharedStateError(f"{self._path}: {error}") from error


class _Rows:
    def __init__(self, file: _File) -> None:
        self._file = file

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows."""
        return self._file.ask(statement, values)

    def each(self, statement: str, values: Sequence[Sequence[Value]]) -> None:
        """Run a statement for each row of values."""
        self._file.each(statement, values)
