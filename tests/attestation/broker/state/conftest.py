"""Databases that several processes share: SQLite in a folder, and a real PostgreSQL, started once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hermetic.attestation.broker.config import PostgresState, SqliteState
from hermetic.attestation.broker.state.database import Database
from hermetic.attestation.broker.state.opening import open_database
from hermetic.attestation.log import NoteSigner
from tests.attestation.broker.state.postgres_server import ROLE, PostgresServer, postgres_server

Settings = SqliteState | PostgresState
Opener = Callable[[], Database]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def of_postgres(server: PostgresServer) -> PostgresState:
    """A new database, to be reached by the socket."""
    return PostgresState(
        kind="postgres", host=str(server.folder), port=server.port, database=server.database(), user=ROLE
    )


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return SqliteState(kind="sqlite", file=tmp_path / "state.sqlite")
    return of_postgres(request.getfixturevalue("postgres"))


@pytest.fixture
def another(settings: Settings) -> Iterator[Opener]:
    """Opens the database once more, as another process does."""
    with ExitStack() as undo:

        def opened() -> Database:
            database = open_database(settings)
            undo.callback(database.close)
            return database

        yield opened


@pytest.fixture(scope="session")
def signer() -> NoteSigner:
    return NoteSigner.generate("example.test/state")
