"""Which process gets which cores, how many threads a worker's runtime has, and whether those may spin. Pure.

The rules, measured on two cores (docs/performance.md) unless they say otherwise:

- Threads that wait actively win a little where each has a core, and double CPU and p90 where cores are shared. So they
  spin only where every thread of every process has a core of its own and two are left.
- A worker gets an equal share of the cores that front ends leave, at least one thread, and no more than
  `AUTO_THREADS_LIMIT`. On two cores that is one thread: a second one gains nothing while a front end is at work. Where
  that leaves it several, two cores are kept free, so that they may spin (reasoned, not measured).
- Processes are pinned only where each can have cores of its own; on shared cores the scheduler knows better. A front
  end then has two, for its one thread and for what the kernel does for its sockets (reasoned, not measured).
- A worker is given its next batch while it runs one, unless cores are so few that front end and worker would only take
  turns: then larger batches cost less. On two cores that is one batch at a time.
- A front end with at most one call open waits actively for a moment before it sleeps (ADR 0143), where there is a core
  beside those of front ends: with so little to do, a core is idle.
- A CPU quota (cgroup) below the number of cores is time shared out over all of them: then nothing is pinned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.gpus import Gpu
from hermetic.errors import ConfigurationError
from hermetic.server.config import CpuSettings, ModelSettings

__all__ = ["UNPLANNED", "Cores", "CpuPlan", "Place", "front_end_spin_us"]

AUTO_THREADS_LIMIT: Final = 16  # threads that a worker gets unasked: more seldom help one batch
FRONT_END_CORES: Final = 2  # cores of one front end that is pinned
SPARE_TO_PIN: Final = 1  # cores that pinned processes leave to the supervisor and the system
SPARE_TO_OVERLAP: Final = 1  # cores that make it worth while to have a batch wait at a worker that runs one
BATCHES_WHERE_ROOMY: Final = 2  # batches that a worker has then: one runs, one waits
SPARE_TO_SPIN: Final = 2  # cores that spinning threads leave to whoever they wait for


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores that this process may use, and the CPU time that its cgroup may, in cores (None: no quota)."""

    usable: tuple[int, ...]
    quota: float | None = None

    @property
    def count(self) -> int:
        """How many cores' worth of time there is; at least 1."""
        count = len(self.usable)
        return count if self.quota is None else max(1, min(count, int(self.quota)))

    @property
    def whole(self) -> bool:
        """Whether each usable core is there all the time."""
        return self.count == len(self.usable)


@dataclass(frozen=True, slots=True)
class Place:
    """What one process gets: threads of its runtime, whether they spin, the cores it is pinned to (none: any).

    `batches_in_flight`: so many batches a worker has at a time, from each front end. `gpu`: where it computes.
    """

    threads: int = 1
    spinning: bool = False
    cores: tuple[int, ...] = ()
    batches_in_flight: int = 1
    gpu: Gpu | None = None


UNPLANNED: Final = Place()


def front_end_spin_us(cores: Cores, settings: CpuSettings, front_ends: int) -> int:
    """For how long a front end waits actively, in microseconds; 0: not at all."""
    return settings.front_end_spin_us if cores.count > front_ends else 0


@dataclass(slots=True)
class CpuPlan:
    """Gives places to processes as they start, and takes them back as they end."""

    cores: Cores
    settings: CpuSettings
    front_ends: int
    _named: set[int] = field(default_factory=set)
    _free: list[int] = field(default_factory=list)
    _front_end_places: list[Place] = field(default_factory=list)
    _threads: int = 1
    _pinned: bool = False
    _spinning: bool = False
    _batches: int = 1

    def begin(self, workers: Sequence[ModelSettings]) -> None:
        """Decide for these workers, one entry for each process; `ConfigurationError` where the settings cannot hold."""
        self._check_named(workers)
        self.expect(workers)
        of_front_ends = len(self.settings.front_end_cores) or FRONT_END_CORES * self.front_ends
        needed = self._needed(workers) + of_front_ends + SPARE_TO_PIN
        fits = self.cores.whole and len(self.cores.usable) >= needed
        if self.settings.pinning == "on" and not fits:
            raise ConfigurationError(
                f'cpu.pinning: "on" wanted {needed} cores that are there all the time, got {self.cores.count}'
            )
        self._pinned = fits and self.settings.pinning != "off"
        self._free = [core for core in self.cores.usable if core not in self._named] if self._pinned else []
        self._front_end_places = [self._front_end_place() for _ in range(self.front_ends)]

    def expect(self, workers: Sequence[ModelSettings]) -> None:
        """Share the cores out anew among these workers, one entry for each process; those that run keep what they have.

        Workers that say how many threads they want get them; the others share equally what is left.
        """
        said = sum(worker.threads for worker in workers if worker.threads != "auto")
        sharing = sum(worker.threads == "auto" for worker in workers)
        left = self.cores.count - self.front_ends - said
        share, roomy_share = left // max(sharing, 1), (left - SPARE_TO_SPIN) // max(sharing, 1)
        # A few threads that may spin do more than as many more that may not; one alone has nobody to wait for.
        self._threads = max(1, min(share if roomy_share <= 1 else roomy_share, AUTO_THREADS_LIMIT))
        busy = self.front_ends + self._needed(workers)
        roomy = self.cores.count >= busy + SPARE_TO_SPIN
        self._batches = BATCHES_WHERE_ROOMY if self.cores.count >= busy + SPARE_TO_OVERLAP else 1
        self._spinning = self.settings.spinning == "on" or (self.settings.spinning == "auto" and roomy)

    def front_end(self, number: int) -> Place:
        """Return the place of one of the front ends, which it has as often as it is started."""
        return self._front_end_places[number]

    def take(self, worker: ModelSettings) -> Place:
        """Return a place for a worker that starts; where no core is free any more, any core, and no spinning."""
        threads = self._threads if worker.threads == "auto" else worker.threads
        spinning = self._spinning if worker.spinning is None else worker.spinning
        batches = self._batches if worker.batches_in_flight == "auto" else worker.batches_in_flight
        if worker.cores:
            return Place(threads, spinning, worker.cores, batches)
        if not self._pinned:
            return Place(threads, spinning, (), batches)
        if len(self._free) < threads:
            return Place(threads, bool(worker.spinning), (), batches)
        return Place(threads, spinning, self._taken(threads), batches)

    def give_back(self, place: Place) -> None:
        """The worker of a place has ended."""
        if self._pinned:
            self._free = sorted({*self._free, *place.cores} - self._named)

    def describe(self) -> dict[str, JsonValue]:
        """Return the decisions, for the log and for `hermetic doctor`."""
        return {
            "cores": len(self.cores.usable),
            "quota": self.cores.quota,
            "front-ends": self.front_ends,
            "threads-per-worker": self._threads,
            "batches-in-flight": self._batches,
            "spinning": self._spinning,
            "front-end-spin-us": front_end_spin_us(self.cores, self.settings, self.front_ends),
            "pinned": self._pinned,
            "front-end-cores": [list(place.cores) for place in self._front_end_places],
        }

    def _needed(self, workers: Sequence[ModelSettings]) -> int:
        return sum(self._threads if worker.threads == "auto" else worker.threads for worker in workers)

    def _front_end_place(self) -> Place:
        if self.settings.front_end_cores:
            return Place(cores=self.settings.front_end_cores)
        return Place(cores=self._taken(FRONT_END_CORES) if self._pinned else ())

    def _taken(self, count: int) -> tuple[int, ...]:
        taken, self._free = tuple(self._free[:count]), self._free[count:]
        return taken

    def _check_named(self, workers: Sequence[ModelSettings]) -> None:
        """Cores that the configuration names must be there; nobody else gets them."""
        self._named = {*self.settings.front_end_cores, *(core for worker in workers for core in worker.cores)}
        missing = sorted(self._named - set(self.cores.usable))
        if missing:
            raise ConfigurationError(f"cpu: wanted cores out of {list(self.cores.usable)}, got {missing}")
