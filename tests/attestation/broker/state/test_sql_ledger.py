"""The ledger in a database: one chain whoever writes, nothing believed that the log's key has not signed."""

from collections.abc import Sequence

import pytest

from hermetic.attestation.broker.state import postgres, sqlite
from hermetic.attestation.broker.state.database import Database
from hermetic.attestation.broker.state.ledger import LoggedRecord
from hermetic.attestation.broker.state.sql_ledger import SqlLedger
from hermetic.attestation.log import NoteSigner
from hermetic.attestation.log.record import encode_record
from hermetic.errors import HermeticError, LogError, SharedStateError
from tests.attestation.broker.state.conftest import Opener

TIME = "2026-11-23T00:00:00Z"


def entry(number: int) -> bytes:
    return encode_record({"time": TIME, "kind": "a.test", "fields": {"n": number}})


def ledger(database: Database, signer: NoteSigner) -> SqlLedger:
    return SqlLedger(database, signer.name, signer)


def append(to: SqlLedger, *numbers: int) -> list[int]:
    """Append; returns what was seen first."""
    seen: list[int] = []

    def draw(news: Sequence[LoggedRecord], size: int) -> list[bytes]:
        seen.extend(_numbers(news))
        return [entry(number) for number in numbers]

    to.commit(draw)
    return seen


def _numbers(news: Sequence[LoggedRecord]) -> list[int]:
    return [int(str(record.fields["n"])) for record in news]


def test_each_sees_what_the_other_wrote_and_nothing_twice(another: Opener, signer: NoteSigner) -> None:
    first, second = ledger(another(), signer), ledger(another(), signer)
    assert append(first, 0, 1) == []
    assert append(second, 2) == [0, 1]
    assert append(first, 3) == [2]
    assert _numbers(second.news()) == [3]
    assert _numbers(second.news()) == []
    assert second.checkpoint() == first.checkpoint()
    assert _numbers(ledger(another(), signer).news()) == [0, 1, 2, 3]


def test_what_was_drawn_and_not_committed_never_was(another: Opener, signer: NoteSigner) -> None:
    first, second = ledger(another(), signer), ledger(another(), signer)
    append(first, 0)

    def draw(news: Sequence[LoggedRecord], size: int) -> list[bytes]:
        raise LogError("a bug")

    with pytest.raises(LogError, match="a bug"):
        first.commit(draw)
    assert append(second, 1) == [0]
    first.rewind()
    assert append(first, 2) == [0, 1]


ATTACKS = {
    "a row without a checkpoint": "INSERT INTO hermetic_entries VALUES (3, (SELECT entry FROM hermetic_entries"
    " WHERE position = 0), NULL)",
    "a row with an old checkpoint": "INSERT INTO hermetic_entries SELECT 3, entry, note FROM hermetic_entries"
    " WHERE position = 2",
    "a gap": "INSERT INTO hermetic_entries SELECT 7, entry, note FROM hermetic_entries WHERE position = 2",
    "the end cut off": "DELETE FROM hermetic_entries WHERE position = 2",
    "all of it gone": "DELETE FROM hermetic_entries",
    "another end": "UPDATE hermetic_entries SET note = (SELECT note FROM hermetic_entries WHERE position = 1)"
    " WHERE position = 2",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_strangers_rows_are_refused_by_who_was_there(another: Opener, signer: NoteSigner, attack: str) -> None:
    database = another()
    there = ledger(database, signer)
    for number in range(3):
        append(there, number)
    with another().turn() as rows:
        rows.ask(ATTACKS[attack])
    with pytest.raises(LogError):
        append(there, 3)
    with pytest.raises(LogError):
        there.news()


CHANGES = {
    "an entry changed": ("UPDATE hermetic_entries SET entry = ? WHERE position = 0", 1),
    "an entry exchanged": ("UPDATE hermetic_entries SET entry = ? WHERE position = 1", 1),
    "a checkpoint taken away": ("UPDATE hermetic_entries SET note = NULL WHERE entry <> ? AND position = 2", 0),
    "the first one gone": ("DELETE FROM hermetic_entries WHERE position = 0 AND entry = ?", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_log_is_refused_at_the_start(another: Opener, signer: NoteSigner, change: str) -> None:
    writer = ledger(another(), signer)
    for number in range(3):
        append(writer, number)
    statement, _ = CHANGES[change]
    with another().turn() as rows:
        rows.ask(statement, (entry(0) if "gone" in change else entry(9),))
    with pytest.raises(LogError):
        ledger(another(), signer).news()


def test_another_key_is_refused(another: Opener, signer: NoteSigner) -> None:
    append(ledger(another(), signer), 0)
    forger = NoteSigner.generate(signer.name)
    with pytest.raises(LogError, match="checkpoint after entry 0"):
        ledger(another(), forger).news()
    with pytest.raises(HermeticError):
        append(ledger(another(), forger), 1)


def test_a_database_of_another_format_is_refused(another: Opener) -> None:
    with another().turn() as rows:
        rows.ask("UPDATE hermetic_facts SET value = 'hermetic-broker-state/9' WHERE name = 'format'")
    with pytest.raises(HermeticError, match="expected hermetic-broker-state/1, got hermetic-broker-state/9"):
        another()


def test_a_turn_that_another_holds_is_waited_for_and_given_up(
    another: Opener, signer: NoteSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs in its turn costs the others `LOCK_WAIT_S`, then they say so."""
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 0.1)
    writer, other = ledger(another(), signer), another()
    with other.turn(), pytest.raises(SharedStateError):
        append(writer, 0)
    assert append(writer, 0) == []
