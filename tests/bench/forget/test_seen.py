"""What may be found at once, with an open connection, and what is left over even if other requests would hide it."""

import pytest

from hermetic.bench.forget import seen
from hermetic.bench.forget.canaries import Canary, Kind
from hermetic.bench.forget.look import Found
from hermetic.bench.forget.seen import Seen
from hermetic.bench.forget.stage import Process


def found(process: Process, kind: Kind, count: int) -> list[Found]:
    return [Found(process, Canary.of(kind, "x", bytes(range(64))), "raw", "[heap]", count)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "SETTLE_S", 0)


@pytest.mark.parametrize(
    ("left", "connected", "passes"),
    [
        ([], False, True),
        (found("front end", "input", 255), True, True),
        (found("front end", "input", 256), True, False),
        (found("front end", "input", 1), False, False),
        (found("front end", "output", 1), True, False),
        (found("worker", "input", 1), True, False),
        (found("front end", "token", 1), True, True),
        (found("front end", "key", 1), True, False),
    ],
)
def test_what_an_open_connection_may_hold(left: list[Found], connected: bool, passes: bool) -> None:
    one = Seen("m")
    one.at_once(lambda: left, connected=connected)
    assert one.found == ([] if passes else left)
    assert one.connection_bytes == (64 * sum(f.count for f in left) if passes else 0)
    assert one.looks == 1


def test_what_is_left_at_once_stays_left_after_turns() -> None:
    left = found("front end", "input", 1)
    one = Seen("m")
    one.at_once(lambda: left)
    one.in_the_end(list, lambda: None)
    assert one.found == left


def test_turns_are_counted() -> None:
    looks = iter([found("front end", "input", 1), found("front end", "input", 1), []])
    one = Seen("m")
    one.in_the_end(lambda: next(looks), lambda: None)
    assert (one.turns, one.found) == (2, [])
