"""Loads, connects, watches and unloads models: one worker for each, known to every front end.

Everything here runs in the supervisor's event loop; what blocks (a load, an unload) runs beside it and comes back as an
event. How a model is loaded is loading.py's, who may ask for it is decided before.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import data_channel, shared_memory
from hermetic.enclave.supervisor import Worker
from hermetic.errors import BrokerUnreachableError, HermeticError, NotReadyError, WorkerLostError
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.loading import Loaded, Loader
from hermetic.server.messages import ModelReady, ModelStop
from hermetic.server.repository import Repository, Slot

UNLOAD_TIMEOUT_S: Final = 20
CHECKPOINT_LIMIT: Final = 4096  # characters of a broker's checkpoint that a record keeps
PASSING: Final = (BrokerUnreachableError, WorkerLostError)
"""Why a load may fail today and work tomorrow: it is tried again. Everything else is somebody's decision."""

Reply = Callable[[HermeticError | None], None]
"""Tells whoever asked how it ended; None: well."""

Recorder = Callable[[str, Mapping[str, JsonValue]], None]
"""Writes one record of this kind, durably."""


def to_nobody(_: HermeticError | None) -> None:
    """The reply where nobody asked."""


class ModelKeeper:
    """The models of this server. `front_ends` is the supervisor's own mapping, which changes."""

    def __init__(
        self,
        repository: Repository,
        loader: Loader,
        loop: EventLoop,
        front_ends: Mapping[int, FrontEnd],
        record: Recorder,
        publish: Callable[[], None],
        patience_s: float,
    ) -> None:
        """`publish` tells everyone of a change; `patience_s` is how long a front end may take to let go of a model."""
        self.repository = repository
        self._loader = loader
        self._loop = loop
        self._front_ends = front_ends
        self._record = record
        self._publish = publish
        self._patience_s = patience_s
        self._ending = False

    # Loading

    def load(self, slot: Slot, reply: Reply) -> None:
        """Begin to load; a model that is ready already is left as it is (Triton's rule for an unchanged model)."""
        if slot.state == "READY":
            reply(None)
            return
        if slot.state != "UNAVAILABLE" or self._ending:
            reply(NotReadyError(f"model {slot.manifest.name}: wanted it at rest, got {slot.state}"))
            return
        slot.loading()
        self._publish()
        self._loop.in_thread(partial(self._load_in_thread, slot, reply))

    def _load_in_thread(self, slot: Slot, reply: Reply) -> Event:
        try:
            loaded = self._loader.load(slot.settings, slot.manifest)
        except HermeticError as error:
            return partial(self._not_loaded, slot, error, reply)
        except Exception as error:  # noqa: BLE001 - one model's load may not end every other model
            return partial(self._not_loaded, slot, WorkerLostError(f"{type(error).__name__}: {error}"), reply)
        return partial(self._loaded, slot, loaded, reply)

    def _not_loaded(self, slot: Slot, error: HermeticError, reply: Reply) -> None:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, PASSING):
            self._try_again(slot, reason)
        else:
            slot.unavailable(reason)
        self._record("model.refused", {**names(slot), "error": type(error).__name__, "text": str(error)})
        self._publish()
        reply(error)

    def _try_again(self, slot: Slot, reason: str) -> None:
        """Load once more after a delay that grows, unless somebody else decides meanwhile."""
        slot.lost(time.monotonic(), reason)
        due = slot.restart_at
        if due is not None:
            self._loop.call_at(due, lambda: self.load(slot, to_nobody) if slot.restart_at == due else None)

    def _loaded(self, slot: Slot, loaded: Loaded, reply: Reply) -> None:
        """The worker has given its known answers: connect it to every front end."""
        self._record("model.loaded", {**names(slot), **_release_facts(loaded)})
        worker = loaded.worker
        slot.ready(worker)
        self._loop.watch(worker.pidfd, partial(self._worker_lost, slot, worker))
        for front_end in list(self._front_ends.values()):
            if slot.worker is worker:
                self._connect(front_end, slot, worker)
        self._publish()
        reply(None if slot.worker is worker else NotReadyError(f"model {slot.manifest.name}: {slot.reason}"))

    # Connecting

    def connect_all(self, front_end: FrontEnd) -> None:
        """Give a front end that has just started every model that is ready."""
        for slot in self.repository:
            if slot.worker is not None and slot.state == "READY":
                self._connect(front_end, slot, slot.worker)

    def _connect(self, front_end: FrontEnd, slot: Slot, worker: Worker) -> None:
        """Give a front end and a worker a data channel and shared memory of their own.

        Where the front end is gone, its end is an event that follows; a worker's end is dealt with here, because it
        has been reaped already. A worker that only says no lives on: it serves the other front ends.
        """
        settings = slot.settings
        memory = shared_memory(layout(worker.description, settings.buffers, settings.variable_tensor_bytes).size)
        front_end_side, worker_side = data_channel()
        try:
            worker.attach(
                worker_side, memory, buffers=settings.buffers, variable_tensor_bytes=settings.variable_tensor_bytes
            )
            front_end.send(_ready_frame(slot, worker), (front_end_side, memory))
        except HermeticError as error:
            self._record("model.not-connected", {**names(slot), "front-end": front_end.pid, "text": str(error)})
            if isinstance(error, WorkerLostError):
                self._worker_lost(slot, worker)
        finally:
            for descriptor in (memory, front_end_side, worker_side):
                os.close(descriptor)

    def _worker_lost(self, slot: Slot, worker: Worker) -> None:
        """A worker ended unasked: its model is not available until a new one has proved itself.

        No new one is started where an unload was under way: the weights are gone, as was asked for.
        """
        self._loop.forget(worker.pidfd)
        reason = worker.reap()
        self._record("worker.lost", {**names(slot), "reason": reason})
        if slot.state == "UNLOADING":
            self._wiped(slot, wiped=False)
            return
        self._try_again(slot, f"worker lost: {reason}")
        self._publish()

    # Unloading

    def unload(self, slot: Slot, reply: Reply) -> None:
        """Begin to unload: front ends finish what they accepted, then the worker wipes and ends."""
        if slot.state == "UNAVAILABLE":
            slot.unavailable("unloaded")
            self._publish()
            reply(None)
            return
        if slot.state != "READY" or slot.worker is None:
            reply(NotReadyError(f"model {slot.manifest.name}: wanted it ready, got {slot.state}"))
            return
        worker = slot.worker
        slot.unloading(set(self._front_ends), reply)
        self._publish()
        for front_end in self._front_ends.values():
            front_end.send(ModelStop(name=slot.manifest.name, version=slot.manifest.version))
        self._loop.call_at(time.monotonic() + self._patience_s, partial(self._out_of_patience, slot, worker))
        if not slot.waiting_for_front_ends:  # there is none just now
            self._wipe(slot, worker)

    def stopped_at(self, pid: int, name: str, version: int) -> None:
        """The front end `pid` holds nothing of this model any more; after the last one the worker goes."""
        slot = self.repository.slot(name, version)
        if slot is None or slot.state != "UNLOADING" or pid not in slot.waiting_for_front_ends:
            return
        slot.waiting_for_front_ends.discard(pid)
        if not slot.waiting_for_front_ends and slot.worker is not None:
            self._wipe(slot, slot.worker)

    def _out_of_patience(self, slot: Slot, worker: Worker) -> None:
        """A front end that does not let go of a model in time is ended: its end lets go of everything."""
        if slot.worker is not worker or slot.state != "UNLOADING":
            return
        for pid in slot.waiting_for_front_ends:
            if pid in self._front_ends:
                self._record("front-end.stuck", {**names(slot), "pid": pid})
                self._front_ends[pid].end()

    def _wipe(self, slot: Slot, worker: Worker) -> None:
        self._loop.forget(worker.pidfd)
        self._loop.in_thread(partial(self._wipe_in_thread, slot, worker))

    def _wipe_in_thread(self, slot: Slot, worker: Worker) -> Event:
        wiped = worker.unload(UNLOAD_TIMEOUT_S)
        return partial(self._wiped, slot, wiped=wiped)

    def _wiped(self, slot: Slot, *, wiped: bool) -> None:
        reply = slot.on_unloaded
        slot.unavailable("unloaded")
        self._record("model.unloaded", {**names(slot), "wiped": wiped})
        self._publish()
        reply(None)

    # The end

    def unload_everything(self) -> None:
        """Wipe and end all workers, also those that finish loading only now; no front end is left to wait for."""
        self._ending = True
        while True:
            for slot in self.repository:
                if slot.state == "READY" and slot.worker is not None:
                    slot.unloading(set(), to_nobody)
                    self._wipe(slot, slot.worker)
            if not self._loop.busy:
                return
            self._loop.turn()

    def kill_everything(self) -> None:
        """Leave no worker behind, whatever happened."""
        for slot in self.repository:
            if slot.worker is not None:
                slot.worker.kill()


def names(slot: Slot) -> dict[str, JsonValue]:
    """Return what a record says of which model."""
    return {
        "model": slot.manifest.name,
        "version": slot.manifest.version,
        "manifest-digest": slot.manifest.digest().hex(),
    }


def _ready_frame(slot: Slot, worker: Worker) -> ModelReady:
    settings = slot.settings
    return ModelReady(
        description=worker.description,
        instance=0,
        buffers=settings.buffers,
        batches_in_flight=settings.batches_in_flight,
        variable_tensor_bytes=settings.variable_tensor_bytes,
        max_queue_delay_us=settings.max_queue_delay_us,
        requests_waiting=settings.requests_waiting,
    )


def _release_facts(loaded: Loaded) -> dict[str, JsonValue]:
    """What the log keeps of a release: the broker's own signed checkpoint, so that it cannot rewrite its history."""
    checkpoint = loaded.release.checkpoint
    opened = loaded.opened
    return {
        "pid": loaded.worker.pid,
        "lock-down": loaded.worker.report.model_dump(mode="json"),
        "broker-checkpoint": None if checkpoint is None else checkpoint.decode(errors="replace")[:CHECKPOINT_LIMIT],
        "unseal-ms": round(opened.unseal_ms, 3),
        "load-ms": round(opened.load_ms, 3),
        "known-answer-ms": round(opened.known_answer_ms, 3),
    }
