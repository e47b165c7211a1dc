"""The supervisor: the only process with privileges; starts, watches and retires front ends and workers.

It has no listening socket. Front ends reach it only by the frames of messages.py over inherited sockets; they can ask
for load and unload, and hand over records. The thread of the event loop owns all state here; what blocks (a load, an
unload) runs beside it and comes back as an event.

Not here: how a model is loaded (loading.py), how the broker is convinced (attesting.py).
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log import Log
from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import data_channel, shared_memory
from hermetic.enclave.supervisor import Worker
from hermetic.errors import BorderError, HermeticError, NotReadyError, WorkerLostError
from hermetic.server.config import FrontEndSettings, ServerConfig
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.loading import Loaded, Loader
from hermetic.server.messages import (
    Command,
    CommandReply,
    Drain,
    Drained,
    ModelReady,
    ModelStop,
    ModelStopped,
    Records,
    RecordsWritten,
)
from hermetic.server.messages import Repository as RepositoryFrame
from hermetic.server.repository import Repository, Slot
from hermetic.server.serving_key import ServingKey

UNLOAD_TIMEOUT_S: Final = 20
EXIT_TIMEOUT_S: Final = 10
RECORDS_DELAY_S: Final = 0.05  # between a request's record and its sync, at most
RECORD_FRAMES_LIMIT: Final = 64  # frames of records written with one sync

Reply = Callable[[HermeticError | None], None]
"""Tells whoever asked how it ended; None: well."""


def _to_nobody(_: HermeticError | None) -> None:
    """The reply where nobody asked."""


class Supervisor:
    """Owns every other process of this server."""

    def __init__(
        self,
        config: ServerConfig,
        settings: FrontEndSettings,
        serving_key: ServingKey,
        repository: Repository,
        loader: Loader,
        log: Log,
        on_change: Callable[[Repository], None],
    ) -> None:
        """Keep the parts; `on_change` sees the repository after each change. Nothing is started before `run`."""
        self._config = config
        self._settings = settings
        self._serving_key = serving_key
        self._repository = repository
        self._loader = loader
        self._log = log
        self._on_change = on_change
        self._loop = EventLoop()
        self._front_ends: dict[int, FrontEnd] = {}
        self._draining = False
        self._records: list[tuple[FrontEnd, Records]] = []
        self._records_due = 0.0

    def run(self, on_listening: Callable[[int], None]) -> None:
        """Serve until SIGTERM or SIGINT, drain, and return once no process is left.

        `on_listening` gets the port when every front end is bound and locked down. Raises what a front end's start
        raises; a model that does not load is a state of the repository, not an error here.
        """
        self._loop.on_signals((signal.SIGTERM, signal.SIGINT), self._drain)
        try:
            on_listening(self._start_front_ends())
            self._publish()
            for slot in self._repository:
                if slot.settings.load_at_start and not self._draining:
                    self._load(slot, _to_nobody)
            while not (self._draining and not self._front_ends):
                self._loop.turn(self._until_next_due())
                self._restart_due()
                self._write_records_due()
            self._unload_everything()
        finally:
            self._kill_everything()

    # Front ends

    def _start_front_ends(self) -> int:
        """Start them all on one port, which the first one may choose; returns the port."""
        for _ in range(self._config.front_ends):
            self._start_front_end()
        return self._settings.port

    def _start_front_end(self) -> FrontEnd:
        """Start one on the port of the others, or on the one that it chooses as the first."""
        front_end = FrontEnd(
            self._settings, self._serving_key.descriptor, event_engine_listener=self._config.event_engine_listener
        )
        self._front_ends[front_end.pid] = front_end
        listening = front_end.await_listening()
        self._settings = self._settings.model_copy(update={"port": listening.port})
        self._loop.watch(front_end.channel.fileno(), partial(self._hear, front_end))
        self._record(
            "front-end.listening",
            {"pid": front_end.pid, "port": listening.port, "lock-down": listening.report.model_dump(mode="json")},
        )
        return front_end

    def _hear(self, front_end: FrontEnd) -> None:
        """Handle one frame; a front end that breaks the protocol or is gone is replaced."""
        try:
            frame = front_end.receive()
        except (BorderError, OSError) as error:
            self._front_end_lost(front_end, str(error))
            return
        if isinstance(frame, Records):
            self._take_records(front_end, frame)
        elif isinstance(frame, Command):
            self._obey(front_end, frame)
        elif isinstance(frame, ModelStopped):
            self._stopped_at(front_end, frame.name, frame.version)
        elif isinstance(frame, Drained):
            self._retire(front_end)

    def _take_records(self, front_end: FrontEnd, frame: Records) -> None:
        """Keep records for a moment: what arrives within `RECORDS_DELAY_S` is written with one sync."""
        if not self._records:
            self._records_due = time.monotonic() + RECORDS_DELAY_S
        self._records.append((front_end, frame))
        if len(self._records) >= RECORD_FRAMES_LIMIT:
            self._write_records()

    def _write_records_due(self) -> None:
        if self._records and time.monotonic() >= self._records_due:
            self._write_records()

    def _write_records(self) -> None:
        """Make the kept records durable, then tell each front end; what cannot be written stops the server."""
        taken, self._records = self._records, []
        self._log.append_all(
            [
                {"kind": "requests", "fields": {"front-end": front_end.pid, "requests": list(frame.records)}}
                for front_end, frame in taken
            ]
        )
        for front_end, frame in taken:
            if front_end.pid in self._front_ends:
                front_end.send(RecordsWritten(count=len(frame.records)))

    def _obey(self, front_end: FrontEnd, command: Command) -> None:
        """Load or unload every configured version of a model, for an identity that the front end has checked."""
        self._record(f"model.{command.action}-asked", {"model": command.model, "identity": command.identity})
        reply = _Once(partial(self._answer, front_end, command.id))
        try:
            slots = self._repository.versions(command.model)
        except HermeticError as error:
            reply.all_of(1)(error)
            return
        one = reply.all_of(len(slots))
        for slot in slots:
            (self._load if command.action == "load" else self._unload)(slot, one)

    def _answer(self, front_end: FrontEnd, command: int, error: HermeticError | None) -> None:
        if front_end.pid in self._front_ends:
            name = "" if error is None else type(error).__name__
            front_end.send(CommandReply(id=command, error=name, text="" if error is None else str(error)[:1024]))

    def _front_end_lost(self, front_end: FrontEnd, reason: str) -> None:
        """Bury a front end; unless draining, start another on the same port and give it every ready model."""
        self._retire(front_end)
        self._record("front-end.lost", {"pid": front_end.pid, "reason": reason})
        for slot in self._repository:
            self._stopped_at(front_end, *slot.key)
        if self._draining:
            return
        successor = self._start_front_end()
        for slot in self._repository:
            if slot.worker is not None and slot.state == "READY":
                self._connect(successor, slot, slot.worker)
        self._publish()

    def _retire(self, front_end: FrontEnd) -> None:
        if self._records:
            self._write_records()
        self._loop.forget(front_end.channel.fileno())
        front_end.channel.close()
        front_end.wait(EXIT_TIMEOUT_S)
        self._front_ends.pop(front_end.pid, None)

    # Models

    def _load(self, slot: Slot, reply: Reply) -> None:
        """Begin to load; a model that is ready already is left as it is (Triton's rule for an unchanged model)."""
        if slot.state == "READY":
            reply(None)
            return
        if slot.state != "UNAVAILABLE":
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
        return partial(self._loaded, slot, loaded, reply)

    def _not_loaded(self, slot: Slot, error: HermeticError, reply: Reply) -> None:
        slot.unavailable(f"{type(error).__name__}: {error}")
        self._record("model.refused", {**_names(slot), "error": type(error).__name__, "text": str(error)})
        self._publish()
        reply(error)

    def _loaded(self, slot: Slot, loaded: Loaded, reply: Reply) -> None:
        """The worker has given its known answers: connect it to every front end."""
        self._record("model.loaded", {**_names(slot), **_release_facts(loaded)})
        worker = loaded.worker
        slot.ready(worker)
        self._loop.watch(worker.pidfd, partial(self._worker_lost, slot, worker))
        for front_end in self._front_ends.values():
            if slot.worker is worker:
                self._connect(front_end, slot, worker)
        self._publish()
        reply(None if slot.worker is worker else NotReadyError(f"model {slot.manifest.name}: {slot.reason}"))

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
        except HermeticError as error:
            os.close(front_end_side)
            os.close(memory)
            self._record("model.not-connected", {**_names(slot), "front-end": front_end.pid, "text": str(error)})
            if isinstance(error, WorkerLostError):
                self._worker_lost(slot, worker)
            return
        finally:
            os.close(worker_side)
        try:
            front_end.send(
                ModelReady(
                    description=worker.description,
                    instance=0,
                    buffers=settings.buffers,
                    batches_in_flight=settings.batches_in_flight,
                    variable_tensor_bytes=settings.variable_tensor_bytes,
                    max_queue_delay_us=settings.max_queue_delay_us,
                    requests_waiting=settings.requests_waiting,
                ),
                (front_end_side, memory),
            )
        finally:
            os.close(front_end_side)
            os.close(memory)

    def _worker_lost(self, slot: Slot, worker: Worker) -> None:
        """A worker ended unasked: its model is not available until a new one has proved itself.

        No new one is started where an unload was under way: the weights are gone, as was asked for.
        """
        self._loop.forget(worker.pidfd)
        reason = worker.reap()
        self._record("worker.lost", {**_names(slot), "reason": reason})
        if slot.state == "UNLOADING":
            self._wiped(slot, wiped=False)
            return
        slot.lost(time.monotonic(), f"worker lost: {reason}")
        self._publish()

    def _unload(self, slot: Slot, reply: Reply) -> None:
        """Begin to unload: front ends finish what they accepted, then the worker wipes and ends."""
        if slot.state == "UNAVAILABLE":
            slot.unavailable("unloaded")
            self._publish()
            reply(None)
            return
        if slot.state != "READY":
            reply(NotReadyError(f"model {slot.manifest.name}: wanted it ready, got {slot.state}"))
            return
        slot.unloading(set(self._front_ends), reply)
        self._publish()
        for front_end in self._front_ends.values():
            front_end.send(ModelStop(name=slot.manifest.name, version=slot.manifest.version))

    def _stopped_at(self, front_end: FrontEnd, name: str, version: int) -> None:
        """A front end holds nothing of this model any more; after the last one the worker goes."""
        slot = self._repository.slot(name, version)
        if slot is None or front_end.pid not in slot.waiting_for_front_ends:
            return
        slot.waiting_for_front_ends.discard(front_end.pid)
        if not slot.waiting_for_front_ends and slot.worker is not None:
            self._wipe(slot, slot.worker)

    def _wipe(self, slot: Slot, worker: Worker) -> None:
        self._loop.forget(worker.pidfd)
        self._loop.in_thread(partial(self._wipe_in_thread, slot, worker))

    def _wipe_in_thread(self, slot: Slot, worker: Worker) -> Event:
        wiped = worker.unload(UNLOAD_TIMEOUT_S)
        return partial(self._wiped, slot, wiped=wiped)

    def _wiped(self, slot: Slot, *, wiped: bool) -> None:
        reply = slot.on_unloaded
        slot.unavailable("unloaded")
        self._record("model.unloaded", {**_names(slot), "wiped": wiped})
        self._publish()
        reply(None)

    def _until_next_due(self) -> float | None:
        """Seconds until a restart or kept records are due; None where nothing is."""
        restart = None if self._draining else self._repository.next_restart()
        due = [moment for moment in (restart, self._records_due if self._records else None) if moment is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _restart_due(self) -> None:
        if not self._draining:
            for slot in self._repository.due(time.monotonic()):
                self._load(slot, _to_nobody)

    def _publish(self) -> None:
        """Tell every front end, and whoever watches, which models are in which state."""
        frame = RepositoryFrame(models=self._repository.index())
        for front_end in self._front_ends.values():
            front_end.send(frame)
        self._on_change(self._repository)

    # The end

    def _drain(self) -> None:
        """Not ready any more: front ends finish what they accepted, then everything is wiped."""
        if self._draining:
            return
        self._draining = True
        self._record("server.draining", {"grace-s": self._config.limits.drain_s})
        for front_end in self._front_ends.values():
            front_end.send(Drain(grace_s=self._config.limits.drain_s))

    def _unload_everything(self) -> None:
        """Wipe and end all workers, also those that finish loading only now."""
        while True:
            for slot in self._repository:
                if slot.state == "READY" and slot.worker is not None:
                    slot.unloading(set(), _to_nobody)
                    self._wipe(slot, slot.worker)
            if not self._loop.busy:
                break
            self._loop.turn(timeout_s=None)
        self._record("server.stopped", {})

    def _kill_everything(self) -> None:
        """Leave no process behind, whatever happened."""
        for front_end in self._front_ends.values():
            front_end.kill()
        for slot in self._repository:
            if slot.worker is not None:
                slot.worker.kill()

    def _record(self, kind: str, fields: Mapping[str, JsonValue]) -> None:
        self._log.append({"kind": kind, "fields": dict(fields)})


class _Once:
    """One reply for several outcomes: the first error, or None when all went well."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._waiting = 0
        self._error: HermeticError | None = None

    def all_of(self, count: int) -> Reply:
        """Return what each of `count` outcomes is told to."""
        self._waiting = count
        return self._outcome

    def _outcome(self, error: HermeticError | None) -> None:
        self._waiting -= 1
        self._error = self._error or error
        if self._waiting == 0:
            self._reply(self._error)


def _names(slot: Slot) -> dict[str, JsonValue]:
    return {
        "model": slot.manifest.name,
        "version": slot.manifest.version,
        "manifest-digest": slot.manifest.digest().hex(),
    }


def _release_facts(loaded: Loaded) -> dict[str, JsonValue]:
    """What the log keeps of a release: the broker's own signed checkpoint, so that it cannot rewrite its history."""
    checkpoint = loaded.release.checkpoint
    opened = loaded.opened
    return {
        "pid": loaded.worker.pid,
        "lock-down": loaded.worker.report.model_dump(mode="json"),
        "broker-checkpoint": None if checkpoint is None else checkpoint.decode(),
        "unseal-ms": round(opened.unseal_ms, 3),
        "load-ms": round(opened.load_ms, 3),
        "known-answer-ms": round(opened.known_answer_ms, 3),
    }
