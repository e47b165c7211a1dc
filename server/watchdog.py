"""The watchdog: ends workers that take more time or CPU than their model may. The supervisor's, and nobody else's word.

What it judges by is its own: whether a worker's pulse has changed (enclave/pulse.py), how long that was ago by this
process' clock, and the CPU time that the kernel has counted. No front end is asked: one that lies could have workers
ended at will. A worker that lies about its pulse is ended for nothing, which harms its own model, or not at all; then
its front ends wait in vain until their patience ends (`answer_within_s`, links.py).

    in one turn, wall clock    more than `batch_timeout_s`
    in one turn, CPU           more than `batch_cpu_s`, over all threads
    between turns, CPU         more than `idle_cpu_s` while the pulse did not change: something was left running
    over a minute, CPU         more than the runtime's threads and one core more could have used

A load has bounds of its own, by the clock and in CPU time: whoever waits for it looks (enclave/supervisor.py).
Time in which nobody looked (a stopped supervisor, a paused machine) does not count. `Watch` is pure; `Watchdog` looks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from hermetic.enclave.supervisor import Observation
from hermetic.server.config import ModelSettings
from hermetic.server.event_loop import EventLoop

__all__ = ["LOOK_S", "Bounds", "Limit", "Overrun", "Watch", "Watchdog", "bounds_of", "load_cpu_s"]

LOOK_S: Final = 0.25  # seconds between looks: how late a worker may be ended
LOOKS_COUNTED: Final = 2  # of the time since the last look, as much as so many looks are apart counts
SHARE_WINDOW_S: Final = 60.0  # seconds over which the cores in use are averaged
SPARE_CORES: Final = 1  # beside one for each of the runtime's threads: the interpreter's own work

Limit = Literal["load_timeout_s", "load_cpu_s", "batch_timeout_s", "batch_cpu_s", "idle_cpu_s", "threads"]
"""What was exceeded: the setting of that name (`threads`: the cores that they can use)."""


class Bounds(NamedTuple):
    """What one worker may take: seconds by the clock and CPU seconds, and how many threads its runtime has."""

    batch_s: float
    batch_cpu_s: float
    idle_cpu_s: float
    threads: int


class Overrun(NamedTuple):
    """A limit that was exceeded, what was wanted and what was seen: seconds, or cores for `threads`."""

    limit: Limit
    wanted: float
    got: float

    def __str__(self) -> str:
        """Return it as a clause."""
        what = {
            "load_timeout_s": "s for the load",
            "load_cpu_s": "CPU seconds for the load",
            "batch_timeout_s": "s for a batch",
            "batch_cpu_s": "CPU seconds for a batch",
            "idle_cpu_s": "CPU seconds without a batch",
            "threads": "cores over a minute",
        }[self.limit]
        return f"{self.limit}: wanted at most {self.wanted:g} {what}, got {self.got:.3g}"


def load_cpu_s(settings: ModelSettings, threads: int) -> float:
    """Return how many CPU seconds a load may take in a worker whose runtime has so many threads."""
    return float(settings.load_timeout_s * threads if settings.load_cpu_s == "auto" else settings.load_cpu_s)


def bounds_of(settings: ModelSettings, threads: int) -> Bounds:
    """Return the bounds of a worker whose runtime has so many threads."""
    cpu = settings.batch_timeout_s * threads if settings.batch_cpu_s == "auto" else settings.batch_cpu_s
    return Bounds(settings.batch_timeout_s, cpu, settings.idle_cpu_s, threads)


@dataclass(slots=True)
class Watch:
    """What is known of one worker. Moments are monotonic seconds."""

    bounds: Bounds
    _last: Observation | None = None
    _at: float = 0.0
    _wall_s: float = 0.0
    _cpu_s: float = 0.0
    _window_wall_s: float = 0.0
    _window_cpu_s: float = 0.0

    def look(self, seen: Observation, now: float) -> Overrun | None:
        """Take what is seen now; returns the limit that is exceeded, if one is."""
        last, self._last = self._last, seen
        passed, self._at = min(now - self._at, LOOKS_COUNTED * LOOK_S), now
        if last is None:
            return None
        used = seen.cpu_s - last.cpu_s
        if seen.beats == last.beats:
            self._wall_s += passed
            self._cpu_s += used
        else:  # another turn, or between others: what it has used of this one is not known yet
            self._wall_s = self._cpu_s = 0.0
        self._window_wall_s += passed
        self._window_cpu_s += used
        return self._of_turn(in_turn=seen.in_turn) or self._of_window()

    def _of_turn(self, *, in_turn: bool) -> Overrun | None:
        bounds = self.bounds
        if not in_turn:
            return _over("idle_cpu_s", bounds.idle_cpu_s, self._cpu_s)
        late = _over("batch_timeout_s", bounds.batch_s, self._wall_s)
        return late or _over("batch_cpu_s", bounds.batch_cpu_s, self._cpu_s)

    def _of_window(self) -> Overrun | None:
        if self._window_wall_s < SHARE_WINDOW_S:
            return None
        cores = self._window_cpu_s / self._window_wall_s
        self._window_wall_s = self._window_cpu_s = 0.0
        return _over("threads", self.bounds.threads + SPARE_CORES, cores)


def _over(limit: Limit, wanted: float, got: float) -> Overrun | None:
    return Overrun(limit, wanted, got) if got > wanted else None


class Observed(Protocol):
    """A worker, as far as it is looked at."""

    def observe(self) -> Observation:
        """Return what is to be seen of it; `ProcessLookupError` where it is gone."""


@dataclass(slots=True, eq=False)
class _Ward:
    watch: Watch
    on_overrun: Callable[[Overrun], None]


@dataclass(slots=True)
class Watchdog:
    """Looks at every worker that serves. Event loop's thread only."""

    loop: EventLoop
    clock: Callable[[], float] = time.monotonic
    _wards: dict[Observed, _Ward] = field(default_factory=dict)
    _due: bool = False

    def watch(self, worker: Observed, bounds: Bounds, on_overrun: Callable[[Overrun], None]) -> None:
        """Look at a worker from now on; it is forgotten when it exceeds its bounds, which `on_overrun` is told."""
        self._wards[worker] = _Ward(Watch(bounds), on_overrun)
        self._look_later()

    def forget(self, worker: Observed) -> None:
        """Look at it no more."""
        self._wards.pop(worker, None)

    def _look_later(self) -> None:
        if self._wards and not self._due:
            self._due = True
            self.loop.call_at(self.clock() + LOOK_S, self._look)

    def _look(self) -> None:
        self._due = False
        for worker, ward in list(self._wards.items()):
            try:
                seen = worker.observe()
            except ProcessLookupError:  # its end is an event of its own
                continue
            overrun = ward.watch.look(seen, self.clock())
            if overrun is not None:
                self.forget(worker)
                ward.on_overrun(overrun)
        self._look_later()
