"""Opens the state that a configuration names: a log's folder and memory for one process, a database for several."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hermetic.attestation.broker.config import BrokerConfig, PostgresState, SqliteState
from hermetic.attestation.broker.state.cells import Cells, MemoryCells
from hermetic.attestation.broker.state.database import Database
from hermetic.attestation.broker.state.folder import FolderLedger
from hermetic.attestation.broker.state.ledger import Ledger
from hermetic.attestation.broker.state.sql_cells import SqlCells
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.broker.state.sqlite import Sqlite
from hermetic.attestation.log import Log, LogReader, NoteSigner
from hermetic.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class OpenState:
    """A ledger and cells; `shared` says whether other processes may have them too."""

    ledger: Ledger
    cells: Cells
    shared: bool


def open_state(
    config: BrokerConfig, signer: NoteSigner, undo: contextlib.ExitStack, clock: Callable[[], datetime]
) -> OpenState:
    """Open it, to be closed by `undo`; raises `ConfigurationError`, `LogError`, `SharedStateError`."""
    origin = config.log.origin
    if config.state is not None:
        database = open_database(config.state)
        undo.callback(database.close)
        return OpenState(SqlLedger(database, origin, signer), SqlCells(database, signer), shared=True)
    folder = log_folder(config)
    log = undo.enter_context(Log.open(folder, origin, signer, now=clock))
    ledger = FolderLedger(log, lambda: LogReader(folder, signer.verifier(), origin).records())
    return OpenState(ledger, MemoryCells(), shared=False)


def open_database(state: SqliteState | PostgresState) -> Database:
    """The database of `[state]`."""
    if isinstance(state, SqliteState):
        return Sqlite(state.file)
    from hermetic.attestation.broker.state.postgres import Address, Postgres  # noqa: PLC0415 - an extra of its own

    return Postgres(
        Address(state.host, state.port, state.database, state.user, state.password_file, state.root_certificate)
    )


def log_folder(config: BrokerConfig) -> Path:
    """Where the log lies, of a broker without `[state]`."""
    if config.log.folder is None:
        raise ConfigurationError("log.folder: expected one, got a log in a database")
    return config.log.folder
