"""How many batches does one side answer, with so many at a time? The same loop for a plain library and for a worker.

A lane holds one batch at a time. Batches are begun on each lane in turn, and finished in the order of their beginning.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.gpu.networks import TOLERANCE
from hermetic.bench.point import percentile
from hermetic.errors import MeasurementError

__all__ = ["Pace", "Side", "Turn", "check_equal", "median_of", "take_turn"]

WARM_UP: Final = 3  # batches of each lane before a side is first measured
LONGEST_S: Final = 3.0


class Side(Protocol):
    """Something that computes batches of a size fixed when it was made, on lanes numbered from 0."""

    def start(self, lane: int) -> None:
        """Begin with the batch of a lane; may return before it is computed."""

    def finish(self, lane: int) -> float:
        """Have the lane's answer in main memory; return the seconds that wiping took."""

    def answer(self, lane: int) -> NDArray[np.float32]:
        """Return what `finish` brought, [rows, answers]; valid until the next `start`."""

    def close(self) -> None:
        """Give up what the batches needed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a turn is: `seconds`, and no fewer batches than `least` unless they take longer than `LONGEST_S`."""

    seconds: float = 0.3
    least: int = 5


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn gave. Rows per second; milliseconds from the beginning of a batch to its answer, and of its wipe.

    `wipe_share`: of all time. `use`: of the GPU in percent, where somebody looked.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    wipe_ms: float = 0.0
    wipe_share: float = 0.0
    use: float | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Return a turn from its JSON."""
        return cls(**document)

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def take_turn(side: Side, rows: int, lanes: int, pace: Pace) -> Turn:
    """Keep `lanes` lanes busy for a while; every batch is answered, and wiped where the side does that."""
    begun = [0.0] * lanes
    times: list[float] = []
    wiping = 0.0
    first = time.perf_counter()
    for lane in range(lanes):
        begun[lane] = time.perf_counter()
        side.start(lane)
    lane, now = 0, first
    while now - first < pace.seconds or (len(times) < pace.least and now - first < LONGEST_S):
        wiping += _finish(side, lane, begun, times)
        begun[lane] = now = time.perf_counter()
        side.start(lane)
        lane = (lane + 1) % lanes
    for _ in range(lanes):
        wiping += _finish(side, lane, begun, times)
        lane = (lane + 1) % lanes
    whole = time.perf_counter() - first
    times.sort()
    return Turn(
        rate=rows * len(times) / whole,
        p50_ms=1e3 * percentile(times, 0.50),
        p99_ms=1e3 * percentile(times, 0.99),
        wipe_ms=1e3 * wiping / len(times),
        wipe_share=wiping / whole,
    )


def warm_up(side: Side, lanes: int) -> None:
    """Run what only the first batches pay for."""
    for _ in range(WARM_UP):
        for lane in range(lanes):
            side.start(lane)
        for lane in range(lanes):
            side.finish(lane)


def check_equal(
    name: str, wanted: NDArray[np.float32], got: NDArray[np.float32], tolerance: float = TOLERANCE["fp32"]
) -> None:
    """Raise `MeasurementError` where two sides give different answers: then they do not do the same work."""
    if wanted.shape != got.shape or not np.allclose(got, wanted, rtol=tolerance, atol=tolerance):
        raise MeasurementError(f"{name}: wanted the library's own answers, got others")


def median_of(turns: Sequence[Turn]) -> Turn:
    """Return the median of each number."""
    uses = [turn.use for turn in turns if turn.use is not None]
    numbers = {
        name: statistics.median(getattr(turn, name) for turn in turns)
        for name in ("rate", "p50_ms", "p99_ms", "wipe_ms", "wipe_share")
    }
    return Turn(**numbers, use=statistics.median(uses) if uses else None)


def _finish(side: Side, lane: int, begun: Sequence[float], times: list[float]) -> float:
    wiping = side.finish(lane)
    times.append(time.perf_counter() - begun[lane] - wiping)
    return wiping
