"""Callers in several processes: one alone makes some 10,000 calls a second, and is then what is measured."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from hermetic.bench.child import Child
from hermetic.bench.cpu_time import cpu_seconds_by_role, processes_by_role
from hermetic.bench.load import Job, described
from hermetic.bench.point import Point, check_clean
from hermetic.bench.target import Endpoint, Target
from hermetic.bench.traffic import Question

__all__ = ["Crowd", "processes_for"]

CONNECTIONS: Final = 4
"""Of each process: the kernel deals connections out to front ends, and few would be dealt unevenly."""
WARM_UP_S: Final = 0.2  # of each turn
_SHARE: Final = 3 / 8  # of the cores


def processes_for(cores: int) -> int:
    """Return how many processes make the load: the server needs the greater part of the cores."""
    return max(1, int(cores * _SHARE))


class Crowd:
    """Callers of one server with one set of questions; a context manager that ends them."""

    def __init__(self, target: Target, questions: Sequence[Question], processes: int) -> None:
        """Start them; they connect at the first turn."""
        self._roles = processes_by_role(target.pids)
        who = Endpoint(target.address, target.ca_file, target.certificate_file, target.key_file)
        job = {"server": {**described(who, questions), "connections": CONNECTIONS}}
        with ExitStack() as started:
            self._children = [started.enter_context(Child("turns", job)) for _ in range(processes)]
            self._started = started.pop_all()

    def turn(self, callers: int, seconds: float) -> Point:
        """Return what so many callers together got; `MeasurementError` where one was answered wrongly.

        p50 is the median of the processes', p99 that of the slowest. CPU time is of the whole turn.
        """
        count = len(self._children)
        shares = [callers // count + (number < callers % count) for number in range(count)]
        asked = [(child, share) for child, share in zip(self._children, shares, strict=True) if share]
        before = cpu_seconds_by_role(self._roles)
        begun = time.perf_counter()
        for child, share in asked:
            job = Job(share, seconds, warm_up_s=WARM_UP_S)
            child.tell({"server": "server", "job": {name: getattr(job, name) for name in Job.__slots__}})
        points = [Point(**child.hear()) for child, _ in asked]
        whole, after = time.perf_counter() - begun, cpu_seconds_by_role(self._roles)
        rate = sum(point.throughput for point in points)
        errors = sum((Counter(point.errors) for point in points), Counter())
        cpu = {role: 1e6 * (after[role] - used) / (rate * whole) for role, used in before.items()} if rate else {}
        together = Point(
            calls=sum(point.calls for point in points),
            throughput=rate,
            p50_ms=statistics.median(point.p50_ms for point in points),
            p99_ms=max(point.p99_ms for point in points),
            errors=errors,
            server_cpu_us=sum(cpu.values()),
            cpu_us_by_role=cpu,
        )
        return check_clean(together, f"{callers} callers")

    def __enter__(self) -> Self:
        """Return them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        self._started.__exit__(kind, error, trace)
