"""The supervisor: the only process with privileges; starts, watches and retires front ends and workers.

It has no listening socket. Front ends reach it only by the frames of messages.py over inherited sockets; they can ask
for load and unload, and hand over records. The thread of the event loop owns all state here. A front end is treated as
hostile: whatever it sends, or fails to send in time, costs at most its own life.

Not here: models (model_keeper.py), how one is loaded (loading.py), how the broker is convinced (attesting.py).
"""

import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log import Log
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.errors import BorderError, HermeticError, NotReadyError
from hermetic.server.config import FrontEndSettings, ServerConfig
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.loading import Loader
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
)
from hermetic.server.messages import Repository as RepositoryFrame
from hermetic.server.model_keeper import ModelKeeper, Reply, to_nobody
from hermetic.server.record_desk import RecordDesk
from hermetic.server.repository import RESTART_DELAYS_S, Repository
from hermetic.server.serving_key import ServingKey

PATIENCE_S: Final = 15  # beyond the drain time, for a front end to say that it is done
RENEW_AGAIN_S: Final = 60  # until the next try, where a serving key could not be renewed
RECORD_TEXT_LIMIT: Final = 1024  # characters of somebody else's words in one record


class Supervisor:
    """Owns every other process of this server."""

    def __init__(
        self,
        config: ServerConfig,
        settings: FrontEndSettings,
        serving_key: ServingKey,
        renew_key: Callable[[], ServingKey] | None,
        repository: Repository,
        loader: Loader,
        log: Log,
        on_change: Callable[[Repository], None],
    ) -> None:
        """Keep the parts; `renew_key` makes the next serving key, None where that is not ours to do.

        `on_change` sees the repository after each change. Nothing is started before `run`.
        """
        self._config = config
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
        self._models = ModelKeeper(
            repository, loader, self._loop, self._front_ends, self._record, self._publish, patience
        )

    def run(self, on_listening: Callable[[int], None]) -> None:
        """Serve until SIGTERM or SIGINT, drain, and return once no process is left.

        `on_listening` gets the port when every front end is bound and locked down. Raises what a front end's first
        start raises; a model that does not load is a state of the repository, not an error here.
        """
        self._loop.on_signals((signal.SIGTERM, signal.SIGINT), self._drain)
        try:
            on_listening(self._start_front_ends())
            self._publish()
            self._renew_in_time()
            for slot in self._models.repository:
                if slot.settings.load_at_start and not self._draining:
                    self._models.load(slot, to_nobody)
            while not (self._draining and not self._front_ends):
                self._loop.turn()
            self._models.unload_everything()
            self._record("server.stopped", {})
        finally:
            self._kill_everything()

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
        front_end = FrontEnd(
            self._settings, self._serving_key.descriptor, event_engine_listener=self._config.event_engine_listener
        )
        self._front_ends[front_end.pid] = front_end
        return front_end

    def _listening(self, front_end: FrontEnd, listening: Listening) -> None:
        """A front end is bound and locked down: hear it, and give it every model."""
        self._settings = self._settings.model_copy(update={"port": listening.port})
        self._loop.watch(front_end.channel.fileno(), partial(self._hear, front_end))
        self._record(
            "front-end.listening",
            {"pid": front_end.pid, "port": listening.port, "lock-down": listening.report.model_dump(mode="json")},
        )
        self._models.connect_all(front_end)

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
            self._models.stopped_at(front_end.pid, frame.name, frame.version)
        elif isinstance(frame, LinkLost):
            self._record("link.lost", {"pid": front_end.pid, **frame.model_dump()})
        elif isinstance(frame, Drained) and self._draining:
            self._retire(front_end)
        else:
            self._lost(front_end, f"it sent {type(frame).__name__}, unasked")

    def _obey(self, front_end: FrontEnd, command: Command) -> None:
        """Load or unload every configured version of a model, for an identity that the front end has checked."""
        self._record(f"model.{command.action}-asked", {"model": command.model, "identity": command.identity})
        reply = partial(self._answer, front_end, command.id)
        if self._draining:
            reply(NotReadyError("the server is shutting down"))
            return
        try:
            slots = self._models.repository.versions(command.model)
        except HermeticError as error:
            reply(error)
            return
        one = _AllOf(len(slots), reply)
        for slot in slots:
            (self._models.load if command.action == "load" else self._models.unload)(slot, one.outcome)

    def _answer(self, front_end: FrontEnd, command: int, error: HermeticError | None) -> None:
        name = "" if error is None else type(error).__name__
        front_end.send(CommandReply(id=command, error=name, text="" if error is None else str(error)[:1024]))

    def _lost(self, front_end: FrontEnd, reason: str) -> None:
        """Bury a front end; unless draining, have another on the same port soon."""
        front_end.end()
        self._retire(front_end)
        self._record("front-end.lost", {"pid": front_end.pid, "reason": reason[:RECORD_TEXT_LIMIT]})
        if not self._draining:
            delay = RESTART_DELAYS_S[min(self._losses, len(RESTART_DELAYS_S) - 1)] if self._losses else 0
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
            self._front_ends.pop(front_end.pid, None)
        self._record("front-end.not-started", {"reason": reason[:RECORD_TEXT_LIMIT]})
        delay = RESTART_DELAYS_S[min(self._losses, len(RESTART_DELAYS_S) - 1)]
        self._losses += 1
        self._loop.call_at(time.monotonic() + delay, self._replace)

    def _retire(self, front_end: FrontEnd) -> None:
        """Let a front end go: its records are written, and no model waits for it any more."""
        self._desk.write()
        self._loop.forget(front_end.channel.fileno())
        front_end.channel.close()
        front_end.wait()
        self._front_ends.pop(front_end.pid, None)
        for slot in self._models.repository:
            self._models.stopped_at(front_end.pid, *slot.key)

    def _publish(self) -> None:
        """Tell every front end, and whoever watches, which models are in which state."""
        frame = RepositoryFrame(models=self._models.repository.index())
        for front_end in self._front_ends.values():
            front_end.send(frame)
        self._on_change(self._models.repository)

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


class _AllOf:
    """One reply for several outcomes: the first error, or None when all went well."""

    def __init__(self, count: int, reply: Reply) -> None:
        self._waiting = count
        self._reply = reply
        self._error: HermeticError | None = None

    def outcome(self, error: HermeticError | None) -> None:
        """Take one of the outcomes."""
        self._waiting -= 1
        self._error = self._error or error
        if self._waiting == 0:
            self._reply(self._error)
