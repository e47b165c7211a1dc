"""How near does a worker come to the plain loop at each batch size and number of streams? In turns A B A B; medians."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hermetic.bench.gpu.budget import Budget
from hermetic.bench.gpu.ours import LANES
from hermetic.bench.gpu.process import BARE, OURS, Sides
from hermetic.bench.gpu.sides import Pace, Turn, median_of
from hermetic.bench.gpu.utilisation import Watch

__all__ = ["ROWS", "Best", "Plan", "Point", "sweep", "taken"]

ROWS: Final[Mapping[str, Sequence[int]]] = {
    "mlp": (1, 8, 64, 512),
    "resnet50": (1, 8, 32, 128),
    "bert-base": (1, 8, 32, 128),
}
"""Batch sizes of each network."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: batch sizes of each network, batches at a time, and how long and how often."""

    rows: Mapping[str, Sequence[int]] = field(default_factory=lambda: ROWS)
    lanes: Sequence[int] = tuple(range(1, LANES + 1))
    pace: Pace = field(default_factory=Pace)
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Point:
    """Both sides at one size. `spread`: of the rounds' ratios, the highest less the lowest."""

    rows: int
    streams: int
    bare: Turn
    ours: Turn
    ratio: float
    spread: float
    copy_ms: float | None

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        numbers = {name: getattr(self, name) for name in ("rows", "streams", "ratio", "spread", "copy_ms")}
        return {**numbers, "bare": self.bare.document(), "ours": self.ours.document()}


@dataclass(frozen=True, slots=True)
class Best:
    """The sizes at which a network's two sides are quickest."""

    bare: Point
    ours: Point

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Best":
        """Return them; there is a point."""
        return cls(max(points, key=lambda point: point.bare.rate), max(points, key=lambda point: point.ours.rate))

    @property
    def ratio(self) -> float:
        """The worker's best rate, over the plain loop's."""
        return self.ours.ours.rate / self.bare.bare.rate


def sweep(sides: Sides, plan: Plan, watch: Watch, budget: Budget) -> Iterator[tuple[str, Point | None]]:
    """Give the name and the point of each size; None where there was no time for it.

    Raises `MeasurementError` where a side fails, or where the two give different answers.
    """
    for rows in plan.rows[sides.made.network.name]:
        copy_ms = None if budget.over else sides.copy_ms(rows)
        for lanes in plan.lanes:
            point = None if budget.over else _point(sides, rows, lanes, plan, watch, copy_ms)
            yield f"{rows} rows, {lanes} streams", point


def taken(sides: Sides, side: str, rows: int, lanes: int, pace: Pace, watch: Watch) -> Turn:
    """Return one turn, with the use of the GPU during it."""
    with watch.turn() as use:
        turn = sides.turn(side, rows, lanes, pace)
    return Turn.of({**turn.document(), "use": use.percent})


def _point(sides: Sides, rows: int, lanes: int, plan: Plan, watch: Watch, copy_ms: float | None) -> Point:
    rounds = [
        (
            taken(sides, BARE, rows, lanes, plan.pace, watch),
            taken(sides, OURS, rows, lanes, plan.pace, watch),
        )
        for _ in range(plan.rounds)
    ]
    ratios = [ours.rate / bare.rate for bare, ours in rounds]
    bare, ours = (median_of([turns[side] for turns in rounds]) for side in (0, 1))
    return Point(rows, lanes, bare, ours, sorted(ratios)[len(ratios) // 2], max(ratios) - min(ratios), copy_ms)
