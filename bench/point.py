"""What is one measured point? So many calls in so many seconds, how long they took, and which of them failed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hermetic.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class Point:
    """One run of one server at one concurrency."""

    calls: int  # that ended well within the window
    throughput: float  # inferences per second
    p50_ms: float
    p99_ms: float
    errors: Mapping[str, int] = field(default_factory=dict)  # what went wrong -> how often, warm-up included
    client_cpu_us: float | None = None  # of the load client, per call
    server_cpu_us: float | None = None  # of the server's processes, per call
    cpu_us_by_role: Mapping[str, float] = field(default_factory=dict)  # the same, by what each process is


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of an ascending, not empty, sequence; `share` is 0.99 for the 99th."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def check_clean(point: Point, what: str) -> Point:
    """Return the point if every call was answered rightly, and any was; else `MeasurementError` counts what was not."""
    if point.errors:
        counts = ", ".join(f"{error}: {count}" for error, count in sorted(point.errors.items()))
        raise MeasurementError(f"{what}: wanted every call answered rightly, got {counts} (beside {point.calls} right)")
    if point.calls == 0:
        raise MeasurementError(f"{what}: wanted at least one answer within the window, got none")
    return point
