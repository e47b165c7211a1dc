"""A broker's log only grows, or the server that it served before says so."""

import pytest

from hermetic.attestation.log import Checkpoint, NoteSigner
from hermetic.server.broker_log import BrokerLog

SIGNER = NoteSigner.generate("broker.test/log")


def note(size: int, root: bytes = b"\1", origin: str = "broker.test/log") -> bytes:
    return Checkpoint(origin, size, root * 32).sign(SIGNER)


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ([note(5)], ""),
        ([note(5), note(5), note(6, b"\2"), None, note(9, b"\3")], ""),
        ([note(5), note(4)], "the broker's log has gone back: wanted at least 5 records, got 4"),
        ([note(5), note(5, b"\2")], "the broker's log is another one: two roots for 5 records"),
        ([note(5), note(6, origin="other")], "the broker's log: wanted broker.test/log, got other"),
        ([note(5), b"none"], "the broker's checkpoint: expected a checkpoint of 3 lines, got 1"),
    ],
)
def test_the_last_checkpoint_is_held_against_the_one_before(notes: list[bytes | None], said: str) -> None:
    log = BrokerLog()
    assert [log.look(one) for one in notes] == [""] * (len(notes) - 1) + [said]


def test_a_step_back_is_told_once() -> None:
    log = BrokerLog()
    assert [bool(log.look(note(size))) for size in (5, 3, 4)] == [False, True, False]
