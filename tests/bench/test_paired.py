"""Ratios of turns: the middle, an interval that holds it, and a verdict that waits until the interval says so."""

import random

from hermetic.bench.paired import Ratio, ratio, spread


def test_turns_that_do_not_differ_have_no_interval() -> None:
    assert ratio([[90.0] * 5], [[100.0] * 5]) == Ratio(0.9, 0.9, 0.9)


def test_what_both_have_in_common_cancels() -> None:
    """A machine that is twice as slow in every other round says nothing about either server."""
    moments = [1.0, 0.5, 1.0, 0.5, 1.0, 0.5]
    found = ratio([[95 * moment for moment in moments]], [[100 * moment for moment in moments]])
    assert (round(found.low, 9), round(found.high, 9)) == (0.95, 0.95)


def test_the_interval_is_as_wide_as_the_noise() -> None:
    noise = random.Random(1)

    def noisy(by: float) -> list[list[float]]:
        return [[100 * noise.gauss(1, by) for _ in range(40)]]

    narrow, wide = (ratio(noisy(by), noisy(by)) for by in (0.01, 0.1))
    for found in (narrow, wide):
        assert found.low <= found.middle <= found.high
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert narrow.low <= 1 <= narrow.high


def test_starts_that_differ_widen_it() -> None:
    """Every round says the same, but one start of three is another 10 %: nobody knows which start is the usual one."""
    found = ratio([[100.0] * 20, [100.0] * 20, [110.0] * 20], [[100.0] * 20])
    assert found.high - found.low > 0.05
    assert round(spread([[100.0] * 20, [100.0] * 20, [110.0] * 20]), 3) == round(10 / (310 / 3), 3)


def test_a_goal_is_reached_when_the_whole_interval_says_so() -> None:
    assert Ratio(0.95, 0.94, 0.96).judged(0.93) == "reached"
    assert Ratio(0.95, 0.92, 0.96).judged(0.93) == "open"
    assert Ratio(0.91, 0.90, 0.92).judged(0.93) == "not reached"
    assert str(Ratio(0.9512, 0.94, 0.96)) == "0.951 (0.940 to 0.960)"
