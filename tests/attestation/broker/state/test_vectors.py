"""What processes of a broker share, byte for byte: vectors that other code made, and our bytes, which other code reads.

Vectors: tests/vectors/broker-state, docs/spec/broker-state.md.
"""

import base64
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag

from hermetic.attestation.broker.config import SqliteState
from hermetic.attestation.broker.state.backup import Backup
from hermetic.attestation.broker.state.cells import Cell, Room
from hermetic.attestation.broker.state.database import Database
from hermetic.attestation.broker.state.opening import open_database
from hermetic.attestation.broker.state.record import Record
from hermetic.attestation.broker.state.sql_cells import SqlCells
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.log import NoteSigner
from hermetic.errors import ConfigurationError, LogError

FOLDER = Path(__file__).parents[3] / "vectors" / "broker-state"


def independent() -> Any:
    """The code that made the vectors."""
    spec = importlib.util.spec_from_file_location("broker_state_vectors", FOLDER / "make_broker_state.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


theirs = independent()


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


LEDGERS, CELLS, BACKUPS = read("ledger"), read("cells"), read("backup")
SIGNER = NoteSigner.parse(LEDGERS["key"])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(open_database(SqliteState(kind="sqlite", file=tmp_path / "state.sqlite"))) as opened:
        yield opened


def test_the_vectors_are_those_that_are_generated() -> None:
    documents = theirs.documents()
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == documents


@pytest.mark.parametrize("name", LEDGERS["cases"])
def test_rows_of_the_ledger(database: Database, name: str) -> None:
    rows: Sequence[tuple[int, str, str | None]] = LEDGERS["cases"][name]
    with database.turn() as turn:
        values = [(at, text.encode(), None if note is None else note.encode()) for at, text, note in rows]
        turn.each("INSERT INTO hermetic_entries (position, entry, note) VALUES (?, ?, ?)", values)
    ledger = SqlLedger(database, LEDGERS["origin"], SIGNER)
    if name.startswith("refused"):
        with pytest.raises(LogError):
            ledger.news()
        return
    assert [record.fields["n"] for record in ledger.news()] == [*range(len(rows))]


def test_what_we_append_is_what_the_spec_says(database: Database) -> None:
    ledger = SqlLedger(database, theirs.ORIGIN, SIGNER)
    entries = [theirs.entry(number) for number in range(5)]
    for commit in (entries[:2], entries[2:]):
        ledger.commit(lambda _news, _size, commit=commit: commit)  # type: ignore[misc]
    with database.turn() as turn:
        rows = turn.ask("SELECT position, entry, note FROM hermetic_entries ORDER BY position")
    shown = [[at, bytes(text).decode(), None if note is None else bytes(note).decode()] for at, text, note in rows]
    assert shown == LEDGERS["cases"]["accepted"]


@pytest.mark.parametrize("name", CELLS["rows"])
def test_rows_of_cells(database: Database, name: str) -> None:
    *head, value = CELLS["rows"][name]
    with database.short() as rows:
        rows.ask("INSERT INTO hermetic_cells VALUES (?, ?, ?, ?, ?, ?, ?)", (*head, base64.b64decode(value)))
    cell = SqlCells(database, SIGNER).read(head[0], CELLS["now"])
    if name.startswith("refused"):
        assert cell is None
        return
    assert cell is not None
    assert {"owner": cell.owner, "value": cell.value} == CELLS["content"]
    assert [cell.name, cell.alias, cell.kind, cell.expires, cell.version] == [*head[:3], *head[4:]]


def test_other_code_opens_our_cells(database: Database) -> None:
    cells, content = SqlCells(database, SIGNER), CELLS["content"]
    cell = Cell("session", "ab" * 32, content["owner"], CELLS["now"] + 60, content["value"])
    cells.add(cell, Room(1, 1), CELLS["now"])
    with database.short() as rows:
        (row,) = rows.ask("SELECT name, alias, kind, owner, expires, version, value FROM hermetic_cells")
    assert theirs.open_cell(row) == content
    with pytest.raises(InvalidTag):
        theirs.open_cell((*row[:5], row[5] + 1, row[6]))


@pytest.mark.parametrize("name", BACKUPS["files"])
def test_backups(name: str) -> None:
    data = base64.b64decode(BACKUPS["files"][name])
    if name.startswith("refused"):
        with pytest.raises((ConfigurationError, LogError)):
            Backup.open(data, SIGNER, BACKUPS["origin"])
        return
    found, content = Backup.open(data, SIGNER, BACKUPS["origin"]), BACKUPS["content"]
    assert [*found.record.entries] == [base64.b64decode(one) for one in content["entries"]]
    assert dict(found.keys) == {path: base64.b64decode(one) for path, one in content["keys"].items()}


def test_other_code_opens_our_backups() -> None:
    content = BACKUPS["content"]
    entries = tuple(base64.b64decode(one) for one in content["entries"])
    record = Record(entries, base64.b64decode(content["checkpoint"]))
    keys = {path: base64.b64decode(one) for path, one in content["keys"].items()}
    assert theirs.open_backup(Backup(BACKUPS["origin"], record, keys).seal(SIGNER)) == content
