"""What was found, as one JSON document and as text: parts, points, goals and whether they are reached.

docs/guide/gpus.md describes the members. What did not run, or not all of it, says why: nothing counts as measured that
was not. Goals are judged for what ran on a GPU, and the one about small requests on a machine of its size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from hermetic.bench.context import context
from hermetic.bench.gpu.served import ServedPoint
from hermetic.bench.gpu.sweep import Best, Point
from hermetic.enclave.gpus import gpus_here

__all__ = ["Goal", "Machine", "Part", "Results", "document", "lines"]

FORMAT: Final = "hermetic-gpu/1"
GOAL_RATIO: Final = 0.95
"""Of the bare loop's best throughput, for models above `LARGE_MS` per batch."""
LARGE_MS: Final = 2.0
GOAL_SMALL: Final = 50_000
"""Small requests per second of a machine with `SMALL_CORES` cores."""
SMALL_CORES: Final = 16
GOAL_WIPE_SHARE: Final = 0.02
"""Of a batch's time."""
DIGITS: Final = 4  # significant
_DRIVER: Final = Path("/sys/module/nvidia/version")

PointT = TypeVar("PointT", Point, ServedPoint)
Status = Literal["ran", "not run", "failed"]


@dataclass(slots=True)
class Part:
    """One part: what became of it, why, and what of it there was no time for."""

    name: str
    status: Status = "ran"
    why: str = ""
    seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)

    def take(self, name: str, point: PointT | None, into: list[PointT]) -> None:
        """Have one point, or, where there was no time for it, its name."""
        if point is None:
            self.left_out.append(name)
        else:
            self.points.append(point.document())
            into.append(point)


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    parts: list[Part] = field(default_factory=list)
    sweeps: dict[tuple[str, str], list[Point]] = field(default_factory=dict)
    large: list[ServedPoint] = field(default_factory=list)
    small: list[ServedPoint] = field(default_factory=list)
    protections: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that is wanted, at least or at most. `got` None: not measured."""

    goal: str
    of: str
    wanted: float
    got: float | None
    verdict: Literal["reached", "not reached", "not measured"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran: "cuda" or "cpu", how many cores there were, and what was multiplied in."""

    device: str
    cores: int
    precision: str = "fp32"


def goals(results: Results, machine: Machine) -> list[Goal]:
    """Return every goal, judged or not."""
    on_gpu = machine.device == "cuda"
    found = []
    for (network, library), points in results.sweeps.items():
        if not points:
            continue
        best, of = Best.of(points), f"{network}, {library}"
        asked = [point for point in results.large if (point.network, point.library) == (network, library)]
        if best.bare.bare.p50_ms > LARGE_MS:
            found.append(_at_least("worker / bare loop", of, GOAL_RATIO, best.ratio, judged=on_gpu))
            ratio = max((point.ratio or 0.0 for point in asked), default=None)
            found.append(_at_least("server / bare loop", of, GOAL_RATIO, ratio, judged=on_gpu))
        found.append(_at_most("wiping in the worker", of, GOAL_WIPE_SHARE, best.ours.ours.wipe_share, judged=on_gpu))
        share = max(asked, key=lambda point: point.turn.rate).turn.wipe_share if asked else None
        found.append(_at_most("wiping in the server", of, GOAL_WIPE_SHARE, share, judged=on_gpu))
    rate = max((point.turn.rate for point in results.small), default=None)
    sized = on_gpu and machine.cores >= SMALL_CORES
    found.append(_at_least("small requests per second", f"{machine.cores} cores", GOAL_SMALL, rate, judged=sized))
    return found


def _at_least(goal: str, of: str, wanted: float, got: float | None, *, judged: bool) -> Goal:
    return _judged(goal, of, wanted, got, reached=judged and got is not None and got >= wanted, judged=judged)


def _at_most(goal: str, of: str, wanted: float, got: float | None, *, judged: bool) -> Goal:
    return _judged(goal, of, wanted, got, reached=judged and got is not None and got <= wanted, judged=judged)


def _judged(goal: str, of: str, wanted: float, got: float | None, *, reached: bool, judged: bool) -> Goal:
    if not judged or got is None:
        return Goal(goal, of, wanted, got, "not measured")
    return Goal(goal, of, wanted, got, "reached" if reached else "not reached")


def document(results: Results, machine: Machine) -> dict[str, Any]:
    """Return everything as JSON values."""
    about = {
        **context(),
        "device": machine.device,
        "precision": machine.precision,
        "gpus": [gpu.name for gpu in gpus_here()],
        "driver": _driver(),
        "protections": results.protections,
    }
    parts = [{name: getattr(part, name) for name in Part.__slots__} for part in results.parts]
    judged = [{name: getattr(goal, name) for name in Goal.__slots__} for goal in goals(results, machine)]
    rounded: dict[str, Any] = _rounded({"format": FORMAT, "context": about, "parts": parts, "goals": judged})
    return rounded


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return a document of `document` as text for people."""
    shown = []
    for part in found["parts"]:
        why = _brief(part["why"]) or f"{len(part['points'])} points"
        left = f"; no time for: {', '.join(part['left_out'])}" if part["left_out"] else ""
        shown.append(f"{part['status']:8} {part['name']} ({part['seconds']:.0f} s): {why}{left}")
        shown += [f"         {_shown(point)}" for point in part["points"]]
    for goal in found["goals"]:
        got = "-" if goal["got"] is None else f"{goal['got']:.4g}"
        shown.append(f"{goal['verdict']:12} {goal['goal']}, {goal['of']}: wanted {goal['wanted']:g}, got {got}")
    return shown


def _shown(point: Mapping[str, Any]) -> str:
    """Return one point on a line."""
    ours, ratio = point.get("ours") or point["served"], point["ratio"]
    where = f"{point['streams']} streams" if "streams" in point else f"{point['callers']} callers"
    front_ends = f", {point['front_ends']} front ends" if "front_ends" in point else ""
    of_bare = "" if ratio is None else f", {ratio:.3f} of the bare loop"
    use = "" if ours["use"] is None else f", GPU {ours['use']:.0f} %"
    return (
        f"{point['rows']} rows, {where}{front_ends}: {ours['rate']:.0f} rows/s{of_bare}, p50 {ours['p50_ms']:.3g} ms, "
        f"p99 {ours['p99_ms']:.3g} ms, wiping {ours['wipe_share']:.2%}{use}"
    )


def _brief(text: str) -> str:
    """Return the beginning of a text, and the end of a long one: what a process said last stands there."""
    first, _, rest = text.partition("\n")
    return first if not rest else f"{first} ... {rest.splitlines()[-1]}"


def _driver() -> str:
    try:
        return _DRIVER.read_text().strip()
    except OSError:
        return "none"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
