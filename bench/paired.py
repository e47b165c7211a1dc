"""By how much do two servers differ, and how sure is that? Ratios of turns that lie close together, and an interval.

Two things make the same server differ from itself: the moment (what else the machine does) and the start (where its
memory came to lie). So servers take turns, a ratio is made of turns of one round, and where it matters each server is
started several times. The interval is a bootstrap over both: rounds and starts are drawn again, with replacement, as
often as there are, and the ratio is made anew each time (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 8
and 13: percentile intervals, pairs drawn together). The draw has a fixed seed: the same numbers give the same interval.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, Literal

DRAWS: Final = 2000
INTERVAL: Final = 0.95
SEED: Final = 20

Starts = Sequence[Sequence[float]]
"""What was measured of one server: of each start, a number for each round."""
Verdict = Literal["reached", "not reached", "open"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over the rounds, and the ends of its 95 % interval."""

    middle: float
    low: float
    high: float

    def judged(self, wanted: float) -> Verdict:
        """Return "reached" or "not reached" where the whole interval says so, else "open"."""
        if self.low >= wanted:
            return "reached"
        return "not reached" if self.high < wanted else "open"

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(ours: Starts, theirs: Starts) -> Ratio:
    """Return ours / theirs: in each round the means over the starts, of these the median over the rounds.

    Every start has the same rounds, at least one.
    """
    draw = random.Random(SEED)
    rounds = range(len(ours[0]))
    drawn = sorted(
        _middle(
            draw.choices(ours, k=len(ours)), draw.choices(theirs, k=len(theirs)), draw.choices(rounds, k=len(rounds))
        )
        for _ in range(DRAWS)
    )
    left_out = int(DRAWS * (1 - INTERVAL) / 2)
    return Ratio(_middle(ours, theirs, rounds), drawn[left_out], drawn[-1 - left_out])


def spread(starts: Starts) -> float:
    """Return by what part the starts of one server differ: (most - least) / mean of their medians."""
    middles = [median(rounds) for rounds in starts]
    return (max(middles) - min(middles)) / fmean(middles)


def _middle(ours: Starts, theirs: Starts, rounds: Sequence[int]) -> float:
    return median(fmean(one[at] for one in ours) / fmean(one[at] for one in theirs) for at in rounds)
