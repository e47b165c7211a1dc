"""The supervisor: the only process with privileges; starts, watches and retires front ends and workers.

It has no listening socket. Front ends reach it only by the frames of messages.py over inherited sockets; they can ask
for load and unload, and hand over records. The thread of the event loop owns all state here. A front end is treated as
hostile: whatever it sends, or fails to send in time, costs at most its own life.

Not here: models (model_keeper.py), how one is loaded (loading.py), how the broker is convinced (attesting.py).
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log import Log
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.errors import BorderError, HermeticError, NotReadyError
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import Epoch, FrontEndSettings, ServerConfig
from hermetic.server.cores import cores_here
from hermetic.server.cpu_plan import CpuPlan
from hermetic.server.curator import Curator
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import restart_delay
from hermetic.server.loading import Loader, check_tenants
from hermetic.server.messages import (
    Command,
    CommandReply,
    Drain,
    Drained,
    LinkLost,
    Listening,
    ModelStopped,
    NewServingKey,
    Records,
    RepositoryEntry,
)
from hermetic.server.messages import Repository as RepositoryFrame
from hermetic.server.model_keeper import ModelKeeper
from hermetic.server.record_desk import RecordDesk
from hermetic.server.reload import Current, Reloader, changed_file
from hermetic.server.repository import Repository
from hermetic.server.serving_key import ServingKey
from hermetic.server.shared_messages import (
    CountersGone,
    CountersOf,
    EpochApplied,
    EpochStaged,
)
from hermetic.server.surroundings import Surroundings

PATIENCE_S: Final = 15  # beyond the drain time, for a front end to say that it is done
RENEW_AGAIN_S: Final = 60  # until the next try, where a serving key could not be renewed
ENTRIES_IN_FRAME: Final = 24  # models of the list: at most 2.5 KiB each in JSON
RECORD_TEXT_LIMIT: Final = 1024  # characters of somebody else's words in one record


class Supervisor:
    """Owns every other process of this server."""

    def __init__(
        self,
        current: Current,
        settings: FrontEndSettings,
        serving_key: ServingKey,
        renew_key: Callable[[], ServingKey] | None,
        catalogue: Catalogue,
        loader: Loader,
        log: Log,
        on_change: Callable[[Repository], None],
    ) -> None:
        """Keep the parts; `renew_key` makes the next serving key, None where that is not ours to do.

        `on_change` sees the repository after each change. Nothing is started before `run`.
        """
        self._config = config = current.config
        self._settings = settings
        self._serving_key = serving_key
        self._renew_key = renew_key
        self._log = log
        self._on_change = on_change
        self._loop = EventLoop()
        self._desk = RecordDesk(log, self._loop)
        self._front_ends: dict[int, FrontEnd] = {}
        self._uid: OwnUid | None = None
        self._losses = 0
        self._draining = False
        patience = config.limits.drain_s + PATIENCE_S
        repository = Repository()
        self._cpu = CpuPlan(cores_here(), config.cpu, config.front_ends)
        around = Surroundings(self._loop, self._front_ends, self._record, self._publish)
        at_once = config.repository.loads_at_once
        self._models = ModelKeeper(repository, loader, self._cpu, around, patience_s=patience, loads_at_once=at_once)
        self._curator = Curator(config.repository, catalogue, repository, self._models, self._cpu, around)
        self._loader = loader
        self._reloader = Reloader(
            current, settings.epoch, self._loop, self._front_ends, self._record, self._epoch_applied
        )
        self._reloader.check = self._check_models
        self.read_again: Callable[[], ServerConfig] | None = None
        """Reads the configuration's file once more; without it there is no reload."""
        self.on_reload: Callable[[int, HermeticError | None], None] = lambda _epoch, _error: None
        """Hears which epoch holds after a reload, and why it is no other."""

    def run(self, on_listening: Callable[[int], None]) -> None:
        """Serve until SIGTERM or SIGINT, drain, and return once no process is left.

        `on_listening` gets the port when every front end is bound and locked down. Raises what a front end's first
        start raises; a model that does not load is a state of the repository, not an error here.
        """
        self._loop.on_signals((signal.SIGTERM, signal.SIGINT), self._drain)
        self._loop.on_signals((signal.SIGHUP,), self._reload)
        try:
            self._curator.find()
            self._plan_cpu()
            on_listening(self._start_front_ends())
            self._publish()
            self._renew_in_time()
            if not self._draining:
                self._curator.start()
            while not (self._draining and not self._front_ends):
                self._loop.turn()
            self._models.unload_everything()
            self._record("server.stopped", {})
        finally:
            self._kill_everything()

    def _plan_cpu(self) -> None:
        """Share the cores out among front ends and the workers that are to come."""
        self._cpu.begin(self._models.repository.expected())
        self._record("cpu.planned", self._cpu.describe())

    # Front ends

    def _start_front_ends(self) -> int:
        """Start them all on one port, which the first one may choose; returns the port."""
        # One uid for all of them: the kernel shares a port only among processes of one.
        self._uid = OwnUid(self._settings.uid)
        self._settings = self._settings.model_copy(update={"uid": self._uid.number})
        for _ in range(self._config.front_ends):
            front_end = self._spawn()
            self._listening(front_end, front_end.await_listening())
        return self._settings.port

    def _spawn(self) -> FrontEnd:
        taken = {front_end.number for front_end in self._front_ends.values()}
        number = next(number for number in range(self._config.front_ends) if number not in taken)
        front_end = FrontEnd(
            self._settings,
            self._serving_key.descriptor,
            event_engine_listener=self._config.event_engine_listener,
            number=number,
            cores=self._cpu.front_end(number).cores,
        )
        self._front_ends[front_end.pid] = front_end
        self._reloader.joined(front_end)
        return front_end

    def _listening(self, front_end: FrontEnd, listening: Listening) -> None:
        """A front end is bound and locked down: hear it, and give it every model."""
        self._settings = self._settings.model_copy(update={"port": listening.port})
        self._loop.watch(front_end.channel.fileno(), partial(self._hear, front_end))
        self._record(
            "front-end.listening",
            {"pid": front_end.pid, "port": listening.port, "lock-down": listening.report.model_dump(mode="json")},
        )
        self._introduce(front_end)
        self._models.connect_all(front_end)

    def _introduce(self, new: FrontEnd) -> None:
        """Let a front end and all others that listen count each other's rows."""
        for other in list(self._front_ends.values()):
            if new.row is None or other.row is None or not other.listening or other is new:
                continue
            new.send(CountersOf(pid=other.pid), (other.row,))
            other.send(CountersOf(pid=new.pid), (new.row,))

    def _hear(self, front_end: FrontEnd) -> None:
        """Handle one frame; a front end that breaks the protocol or is gone is replaced."""
        try:
            frame = front_end.receive()
        except (BorderError, OSError) as error:
            self._lost(front_end, str(error))
            return
        if isinstance(frame, Records):
            self._desk.take(front_end, frame)
        elif isinstance(frame, Command):
            self._obey(front_end, frame)
        elif isinstance(frame, ModelStopped):
            self._models.stopped_at(front_end.pid, frame.name, frame.version, frame.generation)
        elif isinstance(frame, LinkLost):
            self._models.link_lost(front_end, frame)
        elif isinstance(frame, EpochStaged):
            self._reloader.staged(front_end, frame)
        elif isinstance(frame, EpochApplied):
            self._reloader.applied(front_end, frame)
        elif isinstance(frame, Drained) and self._draining:
            self._retire(front_end)
        else:
            self._lost(front_end, f"it sent {type(frame).__name__}, unasked")

    def _obey(self, front_end: FrontEnd, command: Command) -> None:
        """Load or unload a model, for an identity that the front end has checked."""
        about: dict[str, JsonValue] = {"model": command.model, "identity": command.identity}
        if command.configuration:
            about["configuration"] = command.configuration[:RECORD_TEXT_LIMIT]
        self._record(f"model.{command.action}-asked", about)
        reply = partial(self._answer, front_end, command.id)
        if self._draining:
            reply(NotReadyError("the server is shutting down"))
            return
        self._curator.command(command, reply)

    def _answer(self, front_end: FrontEnd, command: int, error: HermeticError | None) -> None:
        name = "" if error is None else type(error).__name__
        front_end.send(CommandReply(id=command, error=name, text="" if error is None else str(error)[:1024]))

    def _lost(self, front_end: FrontEnd, reason: str) -> None:
        """Bury a front end; unless draining, have another on the same port soon."""
        front_end.end()
        self._retire(front_end)
        self._record("front-end.lost", {"pid": front_end.pid, "reason": reason[:RECORD_TEXT_LIMIT]})
        if not self._draining:
            delay = restart_delay(self._losses) if self._losses else 0
            self._losses += 1
            self._loop.call_at(time.monotonic() + delay, self._replace)

    def _replace(self) -> None:
        """Start a front end beside the loop: spawned here, because it dies with the thread that spawned it."""
        if self._draining:
            return
        try:
            front_end = self._spawn()
        except OSError as error:
            self._not_replaced(None, str(error))
            return
        self._loop.in_thread(partial(self._await_in_thread, front_end))

    def _await_in_thread(self, front_end: FrontEnd) -> Event:
        try:
            listening = front_end.await_listening()
        except (HermeticError, OSError) as error:
            return partial(self._not_replaced, front_end, str(error))
        return partial(self._replaced, front_end, listening)

    def _replaced(self, front_end: FrontEnd, listening: Listening) -> None:
        self._listening(front_end, listening)
        self._publish()
        if self._draining:
            front_end.send(Drain(grace_s=0))

    def _not_replaced(self, front_end: FrontEnd | None, reason: str) -> None:
        if front_end is not None:
            self._forget(front_end)
            front_end.close()
        self._record("front-end.not-started", {"reason": reason[:RECORD_TEXT_LIMIT]})
        delay = restart_delay(self._losses)
        self._losses += 1
        self._loop.call_at(time.monotonic() + delay, self._replace)

    def _retire(self, front_end: FrontEnd) -> None:
        """Let a front end go: its records are written, and no model waits for it any more."""
        self._desk.write()
        self._loop.forget(front_end.channel.fileno())
        front_end.close()
        front_end.wait()
        self._forget(front_end)
        self._models.front_end_gone(front_end.pid)

    def _forget(self, front_end: FrontEnd) -> None:
        """A front end is gone: its counters count no more, and no epoch waits for it."""
        self._front_ends.pop(front_end.pid, None)
        for other in list(self._front_ends.values()):
            other.send(CountersGone(pid=front_end.pid))
        self._reloader.gone(front_end)

    def _publish(self) -> None:
        """Tell every front end, and whoever watches, which models are in which state."""
        for frame in _frames(self._models.repository.index()):
            for front_end in self._front_ends.values():
                front_end.send(frame)
        self._on_change(self._models.repository)

    # The configuration

    def _reload(self) -> None:
        """Have every front end take what server.toml says now, or none."""
        read_again = self.read_again
        if read_again is None or self._draining:
            self._record("epoch.refused", {"reason": "there is no reload: draining, or no file"})
            return
        self._reloader.change(
            lambda now, epoch: changed_file(read_again(), now, epoch),
            {"by": "SIGHUP"},
            lambda error: self.on_reload(self._reloader.epoch.number, error),
        )

    def _epoch_applied(self, config: ServerConfig, epoch: Epoch) -> None:
        """From now on this is the configuration: also for front ends and models that start."""
        self._config = config
        self._settings = self._settings.model_copy(update={"epoch": epoch})
        self._loader.tenants = config.tenants

    def _check_models(self, config: ServerConfig) -> None:
        """Refuse a configuration under which a model that is held would serve whom it may not."""
        for slot in self._models.repository:
            for generation in slot.held():
                check_tenants(generation.file.manifest, config.tenants)

    # The serving key

    def _renew_in_time(self) -> None:
        """Have another serving key when half of this one's life is over; whoever connects then gets it."""
        if self._renew_key is not None:
            left = (self._serving_key.not_after - datetime.now(UTC)).total_seconds()
            self._loop.call_at(time.monotonic() + max(left / 2, 0), partial(self._renew, self._renew_key))

    def _renew(self, renew_key: Callable[[], ServingKey]) -> None:
        if not self._draining:
            self._loop.in_thread(partial(self._renew_in_thread, renew_key))

    def _renew_in_thread(self, renew_key: Callable[[], ServingKey]) -> Event:
        try:
            return partial(self._renewed, renew_key())
        except (HermeticError, OSError) as error:
            return partial(self._not_renewed, renew_key, str(error))

    def _renewed(self, serving_key: ServingKey) -> None:
        self._serving_key.close()
        self._serving_key = serving_key
        self._settings = self._settings.model_copy(update={"certificate_chain": serving_key.chain})
        for front_end in self._front_ends.values():
            front_end.send(NewServingKey(certificate_chain=serving_key.chain), (serving_key.descriptor,))
        self._record("serving-key.renewed", {"not-after": serving_key.not_after.isoformat()})
        self._renew_in_time()

    def _not_renewed(self, renew_key: Callable[[], ServingKey], reason: str) -> None:
        self._record("serving-key.not-renewed", {"reason": reason[:RECORD_TEXT_LIMIT]})
        self._loop.call_at(time.monotonic() + RENEW_AGAIN_S, partial(self._renew, renew_key))

    # The end

    def _drain(self) -> None:
        """Not ready any more: front ends finish what they accepted, then everything is wiped."""
        if self._draining:
            return
        self._draining = True
        self._curator.stop()
        grace = self._config.limits.drain_s
        self._record("server.draining", {"grace-s": grace})
        for front_end in self._front_ends.values():
            front_end.send(Drain(grace_s=grace))
        self._loop.call_at(time.monotonic() + grace + PATIENCE_S, self._out_of_patience)

    def _out_of_patience(self) -> None:
        for front_end in self._front_ends.values():
            self._record("front-end.stuck", {"pid": front_end.pid})
            front_end.end()

    def _kill_everything(self) -> None:
        """Leave no process behind, whatever happened."""
        for front_end in self._front_ends.values():
            front_end.kill()
        self._models.kill_everything()
        if self._uid is not None:
            self._uid.give_back()
        self._loop.close()

    def _record(self, kind: str, fields: Mapping[str, JsonValue]) -> None:
        self._log.append({"kind": kind, "fields": dict(fields)})


def _frames(entries: Sequence[RepositoryEntry]) -> list[RepositoryFrame]:
    """Return the list of all models in frames that are not too large, however long its texts are."""
    parts = [tuple(entries[at : at + ENTRIES_IN_FRAME]) for at in range(0, max(len(entries), 1), ENTRIES_IN_FRAME)]
    return [RepositoryFrame(models=part, more=at < len(parts) - 1) for at, part in enumerate(parts)]
