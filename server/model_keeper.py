"""Loads, watches and unloads generations of models: a worker for each instance, known to every front end.

Everything here runs in the supervisor's event loop; what blocks (a load, an unload) runs beside it and comes back as an
event. How one worker is loaded is loading.py's, how many start at a time starting.py's, how front ends are linked to
one links.py's, how one ends unloading.py's; what is to be loaded and unloaded, and who may ask for it, is decided
before (curator.py).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.gpus import Gpu
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.supervisor import Worker
from hermetic.errors import (
    HermeticError,
    InvalidRequestError,
    LeaseEndedError,
    NotReadyError,
    WorkerLostError,
)
from hermetic.server.cpu_plan import UNPLANNED, CpuPlan
from hermetic.server.ensemble_states import introduce
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import Generation, Instance, Reply, SealedFile, to_nobody
from hermetic.server.gpu_plan import NO_GPUS, GpuPlan
from hermetic.server.links import Links, check_can_be_linked, ready_frame
from hermetic.server.loading import Loaded, Loader
from hermetic.server.messages import LinkLost
from hermetic.server.repository import Repository, Slot, printable
from hermetic.server.starting import Start, Starting
from hermetic.server.stops import Stops
from hermetic.server.surroundings import Surroundings
from hermetic.server.unloading import PASSING, Unloading, words_of

AT_ONCE_S: Final = 3.0  # for a worker whose lease is over to wipe in order; it is killed then


class ModelKeeper:
    """The generations of this server's models."""

    def __init__(
        self,
        repository: Repository,
        loader: Loader,
        cpu: CpuPlan,
        around: Surroundings,
        *,
        patience_s: float,
        loads_at_once: int,
        front_end_memory: int,
        gpus: GpuPlan = NO_GPUS,
    ) -> None:
        """`patience_s` is how long a front end may take to let go of a model, `front_end_memory` what it may map."""
        self.repository = repository
        self.on_serving: Callable[[Generation, Instance, Loaded], None] = lambda _generation, _instance, _loaded: None
        """Told of each worker that has given its known answers."""
        self._loop = around.loop
        self._front_ends = around.front_ends
        self._record = around.record
        self._publish = around.publish
        self._front_end_memory = front_end_memory
        self.gpus = gpus
        self._starting = Starting(loader, cpu, around.loop, loads_at_once)
        self._links = Links(around, self._worker_lost)
        self.stops = Stops(around)
        self.unloading = Unloading(repository, self._starting, self.stops, around, patience_s)
        self._ending = False

    # Loading

    def load(self, slot: Slot, file: SealedFile, configuration: ModelConfiguration, reply: Reply) -> None:
        """Begin a generation beside what serves; it takes over once all its instances have given their answers."""
        if slot.coming is not None or self._ending:
            reply(NotReadyError(f"model {slot.name}: wanted version {slot.version} at rest, got {slot.state}"))
            return
        if (why := self.stops.why_out(file)) is not None:
            reply(NotReadyError(f"model {slot.name}: version {slot.version} is {why}"))
            return
        try:
            gpus = self.gpus.place(slot.name, configuration, file.settings, self._gpus_in_use())
            generation = Generation(slot.generations + 1, file, configuration, reply, gpus)
            check_can_be_linked(generation, max(1, len(self._front_ends)), self._front_end_memory)
        except HermeticError as error:
            reply(error)
            return
        slot.generations += 1
        slot.begin(generation)
        if generation.is_ensemble:
            self._introduce_ensemble(slot, generation)
            return
        for instance in generation.instances:
            self._start(slot, generation, instance)
        self._publish()

    def _gpus_in_use(self) -> list[tuple[Gpu, int]]:
        """Return the GPU of each worker that has one, or will, and the memory there that it may take."""
        held = (generation for slot in self.repository for generation in slot.held())
        return [
            (one.gpu, generation.file.settings.gpu.memory_limit_bytes)
            for generation in held
            for one in generation.instances
            if one.gpu is not None and not one.over
        ]

    def _introduce_ensemble(self, slot: Slot, generation: Generation) -> None:
        """Tell every front end of an ensemble: other models' workers serve it, whenever they are there."""
        generation.phase = "connecting"
        introduce(generation, self.repository, self._front_ends.values())
        self._record("ensemble.loaded", generation.names())
        self._take_over(slot, generation)

    def _start(self, slot: Slot, generation: Generation, instance: Instance) -> None:
        instance.starting, instance.restart_at = True, None
        about = (slot, generation, instance)
        self._starting.add(
            Start(
                generation,
                instance,
                loaded=partial(self._loaded, *about),
                refused=partial(self._not_loaded, *about),
                dropped=partial(self._not_started, *about),
            )
        )

    def _not_loaded(self, slot: Slot, generation: Generation, instance: Instance, error: HermeticError) -> None:
        about = {**generation.names(), "instance": instance.number}
        self._record("model.refused", {**about, "error": type(error).__name__, "text": str(error)})
        error = self.stops.load_failed(generation, instance, error)
        if not generation.takes_links:
            self._not_started(slot, generation, instance, error)
        elif self.stops.why_out(generation.file) is not None:
            self._take_out(slot, generation, instance, str(error))
        elif isinstance(error, PASSING):
            self._restart_later(slot, generation, instance, words_of(error))
        else:
            instance.given_up()
            slot.reason = printable(words_of(error))
            self._publish()

    def _not_started(
        self, slot: Slot, generation: Generation, instance: Instance, error: HermeticError | None = None
    ) -> None:
        """An instance does not come; while loading this fails the whole generation, which leaves nothing behind."""
        instance.given_up()
        if generation.phase == "loading":
            self.unloading.fail(slot, generation, error or NotReadyError("the server is shutting down"))
        self.unloading.look_whether_gone(slot, generation)

    def _loaded(self, slot: Slot, generation: Generation, instance: Instance, loaded: Loaded) -> None:
        """A worker has given its known answers."""
        worker = loaded.worker
        about = {**generation.names(), "instance": instance.number}
        self._record("model.loaded", {**about, **loaded.facts(), **_place_facts(instance)})
        self.unloading.workers.add(worker)
        instance.ready(worker, time.monotonic())
        self.stops.watch(generation, instance, worker)
        self.on_serving(generation, instance, loaded)
        if worker not in self.unloading.workers:  # its lease is over already
            return
        self._loop.watch(worker.pidfd, partial(self._worker_lost_here, slot, generation, instance, worker))
        if generation.phase in ("failed", "stopping"):
            self.unloading.wipe(slot, generation, instance)
        elif generation.takes_links:  # in the place of one that was lost
            self._links.connect(generation, instance, list(self._front_ends.values()), self._publish)
        elif all(one.worker is not None for one in generation.instances):
            self._connect_whole(slot, generation)

    def _connect_whole(self, slot: Slot, generation: Generation) -> None:
        """Link every worker of a new generation with every front end, then let it take over."""
        generation.phase = "connecting"
        generation.connections = len(generation.instances)
        front_ends = list(self._front_ends.values())
        for instance in generation.instances:
            self._links.connect(generation, instance, front_ends, partial(self._connected, slot, generation))

    def _connected(self, slot: Slot, generation: Generation) -> None:
        generation.connections -= 1
        if not generation.connections and generation.phase == "connecting":
            self._take_over(slot, generation)

    def _take_over(self, slot: Slot, generation: Generation) -> None:
        generation.phase = "serving"
        before = slot.take_over(generation)
        if before is not None:
            self.unloading.stop(slot, before)
        self._publish()
        reply, generation.reply = generation.reply, to_nobody
        reply(None if generation.alive else _not_alive(slot, generation))

    # Front ends

    def connect_all(self, front_end: FrontEnd) -> None:
        """Give a front end that has just started every model that is ready."""
        for slot in self.repository:
            for generation in slot.held():
                if not generation.takes_links:
                    continue
                if generation.is_ensemble:
                    front_end.send(ready_frame(generation))
                for instance in generation.instances:
                    self._links.connect(generation, instance, [front_end])

    def link_lost(self, front_end: FrontEnd, frame: LinkLost) -> None:
        """A front end has given up its link to a worker."""
        slot = self.repository.slot(frame.name, frame.version)
        generation = slot and slot.generation(frame.generation)
        if generation and generation.takes_links:
            self._links.lost(generation, front_end, frame)

    def front_end_gone(self, pid: int) -> None:
        """A front end has ended: it holds nothing any more."""
        self._links.forget(pid)
        for slot in self.repository:
            for generation in slot.held():
                for instance in generation.instances:
                    instance.links.pop(pid, None)
            for generation in list(slot.going):
                self.unloading.let_go(slot, generation, pid)

    # Loss

    def _worker_lost(self, generation: Generation, instance: Instance, worker: Worker) -> None:
        slot = self.repository.slot(*generation.key)
        if slot is not None:
            self._worker_lost_here(slot, generation, instance, worker)

    def _worker_lost_here(self, slot: Slot, generation: Generation, instance: Instance, worker: Worker) -> None:
        """A worker ended unasked: another is started after a delay, and the model's other workers serve on.

        None is started where an unload was under way: the weights are gone, as was asked for.
        """
        if worker not in self.unloading.workers:  # it is being wiped, or its end has been told before
            return
        stopped = self.unloading.lose(worker)
        self._links.forget(worker.pid)
        self._starting.give_place_back(instance)
        end = worker.reap()
        reason = instance.fault or end if stopped is None else f"ended by the watchdog: {stopped}"
        self._record("worker.lost", {**generation.names(), "instance": instance.number, "reason": reason})
        if generation.takes_links:
            why = self.stops.why_out(generation.file)
            if stopped is None or why is None:
                self._restart_later(slot, generation, instance, f"worker lost: {reason}")
            else:
                self._take_out(slot, generation, instance, f"{why}; the last: {stopped}")
            return
        if generation.phase == "stopping":
            generation.wiped = False
        self._not_started(slot, generation, instance, WorkerLostError(reason))

    def _take_out(self, slot: Slot, generation: Generation, instance: Instance, reason: str) -> None:
        """Its workers had to be ended too often: what is left of this generation finishes, and nothing is restarted."""
        instance.given_up()
        generation.wiped = False
        reply, generation.reply = generation.reply, to_nobody
        slot.give_up(generation, reason)
        self.unloading.stop(slot, generation)
        self._publish()
        reply(NotReadyError(reason))

    def _restart_later(self, slot: Slot, generation: Generation, instance: Instance, reason: str) -> None:
        slot.reason = printable(reason)
        due = instance.lost(time.monotonic())
        self._loop.call_at(due, partial(self._restart, slot, generation, instance, due))
        self._publish()

    def _restart(self, slot: Slot, generation: Generation, instance: Instance, due: float) -> None:
        if instance.restart_at == due and generation.takes_links and not self._ending:
            self._start(slot, generation, instance)
            self._publish()

    # Unloading

    def unload(self, slot: Slot, reason: str, reply: Reply) -> None:
        """Begin to unload: front ends finish what they accepted, then the workers wipe and end.

        A generation that is loading fails. `reply` comes when nothing of what served is left.
        """
        stopping = slot.let_go(reason)
        if slot.coming is not None and slot.coming.takes_links:
            stopping.append(slot.coming)
            slot.coming = None
        elif slot.coming is not None and slot.coming.phase == "loading":
            self.unloading.fail(slot, slot.coming, NotReadyError(f"model {slot.name}: unloaded while it was loading"))
        for generation in stopping:
            generation.reply = reply
            self.unloading.stop(slot, generation)
        self._publish()
        if not stopping:
            reply(None)

    def stop_at_once(self, generation: Generation, reason: str) -> None:
        """Its lease is over: callers are told, nothing more is answered, and no front end is waited for."""
        slot = self.repository.slot(*generation.key)
        if slot is None or generation not in slot.held():
            return
        for instance in generation.instances:
            self.stops.tell(generation, instance, reason, lease_over=True)
        if generation.phase == "loading":
            self.unloading.fail(slot, generation, LeaseEndedError(reason))
        elif generation.takes_links:
            reply, generation.reply = generation.reply, to_nobody
            slot.give_up(generation, reason)
            self.unloading.stop(slot, generation)
            reply(LeaseEndedError(reason))
        for instance in generation.instances:
            self.unloading.wipe(slot, generation, instance, AT_ONCE_S)
        self.unloading.look_whether_gone(slot, generation)
        self._publish()

    def stopped_at(self, pid: int, name: str, version: int, number: int) -> None:
        """The front end `pid` holds nothing of this generation any more; after the last one its workers go."""
        slot = self.repository.slot(name, version)
        for generation in list(slot.going) if slot else ():
            if slot is not None and generation.number == number:
                self.unloading.let_go(slot, generation, pid)

    # The end

    def unload_everything(self) -> None:
        """Wipe and end all workers, also those that finish loading only now; no front end is left to wait for."""
        self._ending = True
        self.unloading.on_passing = lambda _: None
        self._starting.end()
        while True:
            for slot in list(self.repository):
                self.unload(slot, "unloaded", to_nobody)
            if not self._loop.busy:
                return
            self._loop.turn()

    def reports(self) -> list[LockdownReport]:
        """Return what each worker that serves holds."""
        return [worker.report for worker in self.unloading.workers]

    def manifests(self) -> list[bytes]:
        """Return the digests of the manifests of what serves."""
        return [slot.current.file.manifest.digest() for slot in self.repository if slot.current is not None]

    def kill_everything(self) -> None:
        """Leave no worker behind, whatever happened."""
        for worker in self.unloading.workers:
            worker.kill()


def _not_alive(slot: Slot, generation: Generation) -> HermeticError:
    if generation.is_ensemble:
        return InvalidRequestError(f"load failed for model '{slot.name}': {generation.why_not()}")
    return WorkerLostError(f"model {slot.name}: {slot.reason}")


def _place_facts(instance: Instance) -> dict[str, JsonValue]:
    """What the log keeps of where a worker runs."""
    place = instance.place or UNPLANNED
    return {
        "threads": place.threads,
        "spinning": place.spinning,
        "cores": list(place.cores),
        "batches-in-flight": place.batches_in_flight,
    }
