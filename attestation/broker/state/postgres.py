"""`Postgres`: a PostgreSQL database that the broker processes of several machines share, by psycopg 3.

A turn holds an advisory lock, and is committed with `synchronous_commit = on`. Over a network only with TLS to a named
host under a named root, and SCRAM bound to that channel; on this machine by its socket, where the kernel says who asks
(`peer`) or with SCRAM. A lost connection is made again at the next use; what was under way is a `SharedStateError`.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from hermetic.attestation.broker.state.database import LOCK_WAIT_S, TABLES, Rows, Value, check_format
from hermetic.errors import ConfigurationError, SharedStateError

CONNECT_S: Final = 5
"""Longest time for a connection to be made, in seconds."""

STATEMENT_S: Final = 10
"""Longest time of one statement, in seconds."""

MAX_PASSWORD_BYTES: Final = 1024

_NO_FILE: Final = "/dev/null/none"

_TURN: Final = 0x6865726D_65746963
"""The advisory lock of turns: "hermetic"."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is, and as whom to go there.

    `host` is a name (then `root_certificate` and a password are needed) or the absolute path of a socket's folder.
    """

    host: str
    port: int
    database: str
    user: str
    password_file: Path | None = None
    root_certificate: Path | None = None

    def parameters(self) -> Mapping[str, str | int]:
        """What libpq is told; raises `ConfigurationError`. Nothing comes from its environment or files."""
        local = self.host.startswith("/")
        if not local and (self.root_certificate is None or self.password_file is None):
            raise ConfigurationError(
                "state: expected root_certificate and password_file for a database over a network, got none"
            )
        given: dict[str, str | int] = {
            "host": self.host,
            "port": self.port,
            "dbname": self.database,
            "user": self.user,
            "password": "" if self.password_file is None else _password(self.password_file),
            "passfile": _NO_FILE,
            "connect_timeout": CONNECT_S,
            "application_name": "hermetic-broker",
            "options": f"-c statement_timeout={STATEMENT_S * 1000} -c lock_timeout={round(LOCK_WAIT_S * 1000)}",
            # A server that asks for a password in the clear, or for none over a network, is not the one meant.
            "require_auth": "scram-sha-256,none" if local else "scram-sha-256",
        }
        network = {"sslmode": "verify-full", "sslrootcert": str(self.root_certificate), "channel_binding": "require",
                   "ssl_min_protocol_version": "TLSv1.3"}  # fmt: skip
        return given | ({"sslmode": "disable"} if local else network)


class Postgres:
    """Two connections to a database: one for turns, one for what need not be durable."""

    def __init__(self, address: Address) -> None:
        """Connect, and make the tables where they are missing; raises `ConfigurationError`, `SharedStateError`."""
        self._turns = _Connection(address, "on")
        self._shorts = _Connection(address, "off")
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with self.turn() as rows:
                if rows.ask("SHOW fsync") != [("on",)]:
                    raise ConfigurationError("the broker's database: expected fsync = on, or nothing is durable")
                for table in TABLES:
                    rows.ask(table.format(bytes="BYTEA"))
                check_format(rows)
            undo.pop_all()

    @contextlib.contextmanager
    def turn(self) -> Iterator[Rows]:
        """A transaction alone, durable at its end."""
        with self._turns.transaction() as rows:
            rows.ask("SELECT pg_advisory_xact_lock(?)", (_TURN,))
            yield rows

    def short(self) -> contextlib.AbstractContextManager[Rows]:
        """A transaction that is not waited for until it is on the disk."""
        return self._shorts.transaction()

    def close(self) -> None:
        """Close both connections."""
        self._turns.close()
        self._shorts.close()


class _Connection:
    def __init__(self, address: Address, synchronous_commit: str) -> None:
        self._parameters = address.parameters()
        self._synchronous_commit = synchronous_commit
        self._mutex = threading.Lock()
        self._open: psycopg.Connection | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Rows]:
        with self._mutex:
            try:
                connection = self._connected()
                with connection.transaction():
                    yield _Rows(connection)
            except psycopg.Error as error:
                self._drop_if_lost()
                raise SharedStateError(f"the broker's database: {_first_line(error)}") from error

    def close(self) -> None:
        with self._mutex:
            self._drop()

    def _connected(self) -> psycopg.Connection:
        if self._open is None or self._open.closed:
            self._open = psycopg.connect("", autocommit=True, **self._parameters)  # type: ignore[arg-type]
            self._open.execute(f"SET synchronous_commit = {self._synchronous_commit}")
        return self._open

    def _drop_if_lost(self) -> None:
        if self._open is not None and self._open.broken:
            self._drop()

    def _drop(self) -> None:
        if self._open is not None:
            with contextlib.suppress(psycopg.Error):
                self._open.close()
            self._open = None


class _Rows:
    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows."""
        cursor = self._connection.execute(statement.replace("?", "%s").encode(), values)
        return [] if cursor.description is None else cursor.fetchall()

    def each(self, statement: str, values: Sequence[Sequence[Value]]) -> None:
        """Run a statement for each row of values."""
        with self._connection.cursor() as cursor:
            cursor.executemany(statement.replace("?", "%s").encode(), values)


def _password(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PASSWORD_BYTES + 1)
        return data[:MAX_PASSWORD_BYTES].decode().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"state: cannot read the password in {path}: {error}") from error


def _first_line(error: Exception) -> str:
    """What went wrong, without a statement's values, which libpq's details can hold."""
    return next(iter(str(error).splitlines()), type(error).__name__)
