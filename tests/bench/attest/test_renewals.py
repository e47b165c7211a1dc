"""Which turns had a renewal, and what they are compared with."""

import pytest

from hermetic.bench.attest.renewals import GOAL, RENEWAL_S, _judged, medians, verdict
from hermetic.bench.paired import Ratio
from hermetic.bench.point import Point
from hermetic.errors import MeasurementError


def turns(*p99_ms: float) -> list[tuple[float, Point, float]]:
    """One after the other, of two seconds each."""
    return [(2.0 * at, Point(100, 50.0, 1.0, value), 2.0 * (at + 1)) for at, value in enumerate(p99_ms)]


def test_a_turn_with_a_renewal_is_compared_with_the_last_one_without() -> None:
    found = _judged(8, turns(10, 10, 12, 10, 13), [5.0, 9.9])
    assert [one.renewals for one in found.turns] == [0, 0, 1, 0, 1]
    assert found.p99.middle == pytest.approx(1.25)
    assert medians(found) == {"with": 12.5, "without": 10.0}
    assert found.to_json()["verdict"] == "not reached"


def test_a_renewal_belongs_to_every_turn_that_it_touched() -> None:
    found = _judged(8, turns(10, 10, 10), [4.0 + RENEWAL_S / 2])
    assert [one.renewals for one in found.turns] == [0, 1, 1]


@pytest.mark.parametrize("renewals", [[], [1.0]])
def test_turns_that_cannot_be_compared_are_no_measurement(renewals: list[float]) -> None:
    with pytest.raises(MeasurementError, match="wanted turns with a renewal after turns without"):
        _judged(8, turns(10), renewals)


def test_the_whole_interval_decides() -> None:
    ends = {"reached": (0.9, GOAL - 0.01), "open": (0.9, GOAL), "not reached": (GOAL, 1.3)}
    assert [verdict(Ratio(1.0, low, high)) for low, high in ends.values()] == list(ends)
