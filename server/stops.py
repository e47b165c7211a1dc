"""Workers that are ended because they take too long: seen, told to their front ends, recorded, counted, ended.

The watchdog (watchdog.py) sees; after too many stops a model version is out of service (quarantine.py). What becomes of
a worker's place is model_keeper.py's. Event loop's thread only.
"""

import time
from functools import partial

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.supervisor import Worker
from hermetic.errors import HermeticError, NotReadyError, WorkerStoppedError
from hermetic.server.cpu_plan import UNPLANNED
from hermetic.server.generation import Generation, Instance, SealedFile
from hermetic.server.messages import LINK_REASON_LIMIT, WorkerStopped
from hermetic.server.metrics import StoppedWorkers
from hermetic.server.quarantine import Quarantine
from hermetic.server.repository import printable
from hermetic.server.surroundings import Surroundings
from hermetic.server.watchdog import Limit, Overrun, Watchdog, bounds_of

__all__ = ["Stops"]


class Stops:
    """Every worker that serves is watched here from `watch` to `forget`."""

    def __init__(self, around: Surroundings) -> None:
        """Begin with nobody to watch."""
        self._front_ends = around.front_ends
        self._record = around.record
        self._watchdog = Watchdog(around.loop)
        self._quarantine = Quarantine()
        self._reasons: dict[Worker, str] = {}
        self._counts: dict[tuple[str, int, Limit], int] = {}

    def watch(self, generation: Generation, instance: Instance, worker: Worker) -> None:
        """Look at a worker that serves."""
        bounds = bounds_of(generation.file.settings, (instance.place or UNPLANNED).threads)
        self._watchdog.watch(worker, bounds, partial(self._overran, generation, instance, worker))

    def forget(self, worker: Worker) -> str | None:
        """Look at it no more; returns why it was ended, if it was ended here."""
        self._watchdog.forget(worker)
        return self._reasons.pop(worker, None)

    def load_failed(self, generation: Generation, instance: Instance, error: HermeticError) -> HermeticError:
        """Take note of a load that failed; returns the error that counts: another one where the version is out now."""
        if not isinstance(error, WorkerStoppedError):
            return error
        self._note(generation, instance, error.limit, str(error))
        why = self.why_out(generation.file)
        return error if why is None else NotReadyError(f"{why}; the last: {error}")

    def why_out(self, file: SealedFile) -> str | None:
        """Return why a sealed file is not served, where it is out of service."""
        if not self.holds(file):
            return None
        return f"quarantined: its workers were ended more than {file.settings.stops_allowed} times"

    def holds(self, file: SealedFile | None) -> bool:
        """Whether there is such a file, and it is out of service."""
        return file is not None and self._quarantine.holds(_key(file))

    def stopped(self) -> tuple[StoppedWorkers, ...]:
        """Return how many workers were ended, for the metrics page."""
        return tuple(
            StoppedWorkers(name=name, version=version, limit=limit, count=count)
            for (name, version, limit), count in sorted(self._counts.items())
        )

    def lift(self, file: SealedFile) -> None:
        """An operator wants it served again: its stops are forgotten."""
        self._quarantine.lift(_key(file))

    def tell(self, generation: Generation, instance: Instance, reason: str, *, lease_over: bool = False) -> None:
        """Tell the front ends that an instance's worker is being ended, so that callers hear why."""
        name, version = generation.key
        for pid, link in instance.links.items():
            if pid in self._front_ends:
                told = WorkerStopped(
                    name=name,
                    version=version,
                    generation=generation.number,
                    instance=instance.number,
                    link=link,
                    reason=reason[:LINK_REASON_LIMIT],
                    lease_over=lease_over,
                )
                self._front_ends[pid].send(told)
        instance.links.clear()  # what they say of these links from now on says nothing of anybody

    def _overran(self, generation: Generation, instance: Instance, worker: Worker, overrun: Overrun) -> None:
        """Tell the front ends, then end it: its end is an event that follows."""
        reason = str(overrun)
        self._reasons[worker] = reason
        self.tell(generation, instance, reason)
        self._note(generation, instance, overrun.limit, reason)
        worker.end()

    def _note(self, generation: Generation, instance: Instance, limit: Limit, reason: str) -> None:
        name, version = generation.key
        about: dict[str, JsonValue] = {**generation.names(), "instance": instance.number}
        self._record("worker.stopped", {**about, "limit": limit, "reason": printable(reason)})
        self._counts[name, version, limit] = self._counts.get((name, version, limit), 0) + 1
        settings = generation.file.settings
        takes_s = max(settings.batch_timeout_s, settings.load_timeout_s)
        key, was_out = _key(generation.file), self.holds(generation.file)
        out = self._quarantine.stopped(key, time.monotonic(), allowed=settings.stops_allowed, takes_s=takes_s)
        if out and not was_out:
            self._record("model.quarantined", {**generation.names(), "stops-allowed": settings.stops_allowed})


def _key(file: SealedFile) -> tuple[str, int, bytes]:
    """What is out of service: this content of this version. Another file of the same version begins anew."""
    return file.manifest.name, file.manifest.version, file.manifest.digest()
