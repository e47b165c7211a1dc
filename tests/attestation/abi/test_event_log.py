import json
from pathlib import Path

import pytest

from hermetic.attestation.abi.event_log import MAX_EVENTS, Event, EventLog
from hermetic.errors import InvalidRequestError

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "event-log").glob("*.json"))
GOOD = [path for path in VECTORS if not path.stem.startswith("refused-")]
BAD = [path for path in VECTORS if path.stem.startswith("refused-")]


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_every_good_vector_replays_to_its_value(path: Path) -> None:
    vector = json.loads(path.read_text())
    log = EventLog.parse(vector["log"])
    assert [event.measured().hex() for event in log.events] == vector["measured"]
    assert log.replay(bytes.fromhex(vector["base"])).hex() == vector["value"]
    assert log.to_json() == vector["log"]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_bad_vector_is_refused(path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="event log: expected"):
        EventLog.parse(json.loads(path.read_text())["log"])


def test_there_are_vectors_of_both_kinds() -> None:
    assert len(GOOD) >= 3
    assert len(BAD) >= 10


def test_the_order_of_events_counts() -> None:
    one, two = Event(b"1" * 32), Event(b"2" * 32)
    assert EventLog(14, (one, two)).replay() != EventLog(14, (two, one)).replay()


def test_too_many_events_are_refused() -> None:
    log = EventLog(14, (Event(bytes(32)),) * (MAX_EVENTS + 1)).to_json()
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_EVENTS} events"):
        EventLog.parse(log)
