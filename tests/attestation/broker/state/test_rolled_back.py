"""A host that sets the shared database back while brokers run: neither a nonce nor an older policy comes back."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.broker.config import BrokerConfig, SqliteState
from hermetic.attestation.broker.initial import fix_operators
from hermetic.attestation.governance import OfPolicy
from tests.attestation.broker.independent_guest import IndependentGuest
from tests.attestation.broker.state.test_brokers import share
from tests.attestation.broker.test_governed import (
    STRICT,
    denied,
    form,
    guest_of,
    hand_in,
    model_form,
    propose,
    released,
    sign_key,
    upload,
)
from tests.attestation.broker.world import InThread, World
from tests.attestation.governance.people import THREE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def broker(world: World, file: Path) -> Iterator[InThread]:
    share(world, SqliteState(kind="sqlite", file=file))
    config = world.folder / "broker.toml"
    config.write_text(config.read_text().replace('governance = "none"', 'governance = "operators"'))
    fix_operators(BrokerConfig.load(config), THREE, world.clock)
    with world.start() as running:
        yield running


def rows(file: Path, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file, timeout=60)) as database, database:
        return database.execute(statement, values).fetchall()


def test_a_sessions_older_row_gives_its_nonce_no_second_attempt(broker: InThread, file: Path) -> None:
    short = file.with_name(f"{file.name}-short")
    for good in (True, False):
        with broker.http() as http:
            guest = IndependentGuest(http)
            guest.auth()
            (before,) = rows(short, "SELECT * FROM hermetic_cells")
            first = guest.attest(guest.body() if good else guest.body(nonce="A" * 44))
            assert first.status_code == (200 if good else 401)
            rows(short, "DELETE FROM hermetic_cells")
            rows(short, f"INSERT INTO hermetic_cells VALUES ({','.join('?' * len(before))})", before)
            again = guest.attest(guest.body())
            assert again.status_code == 401
            assert "expected one attempt, got a second" in again.json()["detail"]
            rows(short, "DELETE FROM hermetic_cells")


def test_an_older_log_brings_no_older_policy_back(broker: InThread, file: Path) -> None:
    """The broker knows where the log was: it decides nothing on one that is shorter, nor on another end of it."""
    path, key = upload(broker, "held")
    sign_key(broker, path)
    assert released(broker, path) == key
    ((size,),) = rows(file, "SELECT count(*) FROM hermetic_entries")
    strict = model_form(form("strict", clients=STRICT))
    hand_in(broker, propose(broker, OfPolicy(of="models", prefix=""), strict), "alice", "bob")
    assert "client_certificate" in denied(broker, path)
    with guest_of(broker) as guest:  # attested before; only the decision is left
        kept = rows(file, "SELECT * FROM hermetic_entries WHERE position >= ?", (size,))
        rows(file, "DELETE FROM hermetic_entries WHERE position >= ?", (size,))
        assert rows(file, "SELECT note IS NULL FROM hermetic_entries WHERE position = ?", (size - 1,)) == [(0,)]
        assert guest.resource(path).status_code >= 500
        assert guest.resource(path).status_code >= 500
        for row in kept:
            rows(file, "INSERT INTO hermetic_entries VALUES (?, ?, ?)", row)
        response = guest.resource(path)
        assert response.status_code == 401
        assert "client_certificate" in response.json()["detail"]
