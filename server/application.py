"""What stands above a transport in a front end: the gate, the services, the models, and the supervisor's wishes.

Everything here runs on the owner's thread. The life of the front end:

    listening -> models come and go (ModelReady, ModelStop) -> Drain -> nothing accepted is left -> the transport stops
"""

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from functools import partial
from typing import Final

from hermetic.enclave.buffers import BufferLayout
from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import Frame, decode_control
from hermetic.errors import BorderError, HermeticError
from hermetic.server import log_output
from hermetic.server.arrival import arrive
from hermetic.server.audit import Journal
from hermetic.server.classification import labels_of
from hermetic.server.commands import Commands
from hermetic.server.counters import Row, SharedAccounts
from hermetic.server.dispatch import Dispatcher
from hermetic.server.ensembles import Ensemble
from hermetic.server.epochs import Epochs, checked, places
from hermetic.server.evidence_rpc import EvidenceRpcs
from hermetic.server.gate import Gate
from hermetic.server.health import Health
from hermetic.server.limits import Accounts
from hermetic.server.messages import (
    LINK_REASON_LIMIT,
    TO_FRONT_END,
    CommandReply,
    Drain,
    LinkLost,
    ModelReady,
    ModelStop,
    ModelStopped,
    NewServingKey,
    RecordsWritten,
    Repository,
    RepositoryEntry,
    WorkerStopped,
)
from hermetic.server.models import LinkPlace, Models, ServedModel
from hermetic.server.put_off import PutOff
from hermetic.server.reader import Reader, Source
from hermetic.server.scheduling import new_scheduling
from hermetic.server.sequence_inference import work_of
from hermetic.server.service import InferenceMethods
from hermetic.server.settings import Epoch, FrontEndSettings
from hermetic.server.settings_rpc import SettingsRpcs
from hermetic.server.shaping import new_shaping
from hermetic.server.statistics import ModelStatistics
from hermetic.server.streams import GRPC_ERRORS
from hermetic.server.together import FRAMES, Together
from hermetic.server.totals import Totals
from hermetic.server.tracing import Tracer
from hermetic.server.transport import Call, Peer, Transport
from hermetic.server.trimming import Trimmer
from hermetic.server.worker_link import WorkerLink

SERVING_KEY_LIMIT: Final = 64 * 1024  # bytes of PEM
DRAIN_LOOK_S: Final = 0.01  # seconds between looks whether everything accepted is answered
_log: Final = logging.getLogger(__name__)


class FrontEnd:
    """The application. `attach` gives it its transport before anything is accepted."""

    def __init__(self, settings: FrontEndSettings, supervisor: Channel, row: Row | None = None) -> None:
        """`supervisor` must not block; `row` is this front end's own where several share counters.

        Raises `ConfigurationError` where the settings do not fit together.
        """
        self.metadata_read: Container[str] = frozenset({GRPC_ERRORS})
        self._supervisor = supervisor
        self._several = settings.reuse_port
        self._models = Models()
        self._commands = Commands(self._send)
        self._totals = Totals(self._models, self._say)
        self._settings = SettingsRpcs(self._models, lambda: self.epochs.current, self._say)
        self._evidence = EvidenceRpcs(self._say)
        self._inference = InferenceMethods(
            self._models, self._commands, self._totals, self._settings, settings.epoch.limits
        )
        self._tracer = Tracer(self._models, self._send)
        self._models.on_change.append(self._tracer.look)
        self._health = Health(lambda: self._inference.ready)
        self._models.on_change.append(self._health.changed)
        self._entries: list[RepositoryEntry] = []  # of a repository's list that has not all come yet
        self._unsaid: deque[bytes] = deque()
        self.on_new_key: Callable[[bytes, str], None] = lambda _key, _chain: None
        """Takes a new serving key (PEM) and its certificate chain; set by whoever owns the credentials."""
        first = checked(settings.epoch)
        limits = settings.epoch.limits
        self.journal = Journal(self._send, limits.records_waiting)
        shared = None if row is None else SharedAccounts(limits, row, places(settings.epoch))
        self.gate = Gate(
            {**self._inference.table(), **self._health.table(), **self._evidence.table()},
            first.identities,
            first.access,
            limits,
            self.journal,
            self._inference.streaming(),
            shared or Accounts(limits),
        )
        self._totals.gate = self.gate
        self.epochs = Epochs(settings.epoch, self.gate, shared)
        self.epochs.on_applied += (
            self._follow,
            lambda _: self._inference.streams.judge(self.gate.check_again),
            lambda _: self._health.judge(self.gate.check_again),
        )
        self._together = Together(self.epochs, shared, self._totals, self._settings, self._evidence, self._say)
        self._follow(settings.epoch)
        self._trimmer = Trimmer()
        self._put_off = PutOff()
        self._transport: Transport | None = None
        self._reader: Reader | None = None
        self._drain_until: float | None = None
        self.failed_in_drain = 0
        self.supervisor_lost = False

    def _follow(self, epoch: Epoch) -> None:
        """Hold to an epoch's limits, and to what it says of traces and of what is printed."""
        self._limits = epoch.limits
        self._inference.streams.limit(epoch.limits)
        self._tracer.follow(epoch.trace)
        log_output.follow(epoch.logging)
        self.journal.tell = log_output.print_records if epoch.logging.verbose_level else None
        _log.info("configuration %d holds", epoch.number)

    def attach(self, transport: Transport, reader: Reader) -> None:
        """Use this transport, and this reader for workers and the supervisor."""
        self._transport, self._reader = transport, reader
        source = Source(self._supervisor, self._supervisor.receive, self._from_supervisor, self._supervisor_gone)
        reader.watch(source)

    def holder(self, peer: Peer) -> Hashable:
        """Return whose connection this is."""
        return self.gate.holder(peer)

    def accept(self, call: Call) -> None:
        """Take a new call."""
        self.gate.accept(call)

    def after_turn(self) -> bool:
        """Run what was put off until everything that had come was looked at; whether there is more to be done."""
        inflating = self.gate.inflations.run()
        return self._put_off.run() or inflating

    def tick(self) -> None:
        """Hand over records; give up on clients and workers that keep us waiting."""
        now = time.monotonic()
        self._send_unsaid()
        self.journal.flush()
        self.gate.expire(now)
        self._trimmer.look(self.gate.accounts.bytes_in_flight, now)
        self._inference.streams.tick()
        self._totals.push(now)
        self._tracer.flush()
        for model in self._models.held():
            model.dispatcher.lose_stuck(now, model.answer_within_s)
        self._health.changed()

    def close(self) -> None:
        """Wipe every buffer and let go of every worker. The transport has stopped."""
        for model in self._models.held():
            model.dispatcher.close()

    def handle(self, frame: bytes, descriptors: Sequence[int]) -> None:
        """Do what the supervisor says; `BorderError` where it is nothing that it may say."""
        message = decode_control(frame, TO_FRONT_END)
        if isinstance(message, NewServingKey):
            self.on_new_key(read_serving_key(descriptors), message.certificate_chain)
            return
        if isinstance(message, FRAMES):
            self._together.handle(message, descriptors)
            return
        if not isinstance(message, ModelReady):
            for descriptor in descriptors:
                os.close(descriptor)
            self._handle_plain(message)
            return
        if message.description.configuration.ensemble is not None and not descriptors:
            self._ensemble_ready(message)
            return
        if len(descriptors) != 2:  # noqa: PLR2004 - a data channel and a shared memory
            for descriptor in descriptors:
                os.close(descriptor)
            raise BorderError(f"ModelReady: wanted two descriptors, got {len(descriptors)}")
        try:
            self._model_ready(message, *descriptors)
        except BorderError as error:  # nothing of this worker has been used, and others may serve the model
            about = message.description
            self._say_lost(about.name, about.version, message.generation, message.instance, message.link, str(error))

    def _handle_plain(self, message: Frame) -> None:
        if isinstance(message, RecordsWritten):
            self.journal.written(message.count)
        elif isinstance(message, CommandReply):
            self._commands.answered(message)
        elif isinstance(message, Repository):
            self._entries += message.models
            if not message.more:
                entries, self._entries = self._entries, []
                self._models.set_repository(entries)
        elif isinstance(message, ModelStop):
            self._model_stop(message)
        elif isinstance(message, WorkerStopped):
            self._models.worker_stopped(message)
        elif isinstance(message, Drain):
            self._drain(message.grace_s)

    def _model_ready(self, ready: ModelReady, channel: int, memory: int) -> None:
        """Take a worker in service: of a new generation, a further instance, or a successor of a link that was lost."""
        if ready.generation < self._models.newest(ready.description.name, ready.description.version):
            # A busy worker's link, come after its successor's: it is closed, and about to be stopped.
            os.close(channel)
            os.close(memory)
            return
        arrival = arrive(ready, channel, memory)
        model = self._models.find(ready.description.name, ready.description.version, ready.generation)
        if model is None or model.stopping:
            try:
                model = self._new_model(ready, arrival.place, arrival.files)
            except Exception as error:  # noqa: BLE001 - whatever a publisher has sealed costs its own model
                arrival.close()
                raise BorderError(f"ModelReady: {type(error).__name__}: {error}") from None
            self._models.put(model)
        dispatcher = model.dispatcher
        if not isinstance(dispatcher, Dispatcher):
            arrival.close()
            raise BorderError(f"ModelReady: wanted no worker for the ensemble {model.description.name}, got one")
        worker = arrival.channel
        link = dispatcher.attach(worker, arrival.memory, arrival.place, ready.batches_in_flight)
        model.links[link] = LinkPlace(ready.instance, ready.link, partial(dispatcher.lost, link))
        if self._reader is not None:
            self._reader.watch(
                Source(
                    worker,
                    worker.receive_data,
                    lambda frame: dispatcher.received(link, frame),
                    partial(self._worker_ended, dispatcher, link),
                )
            )
        self._models.changed()

    def _worker_ended(self, dispatcher: Dispatcher, link: WorkerLink, error: Exception) -> None:
        """A worker's end is read: where its supervisor has ended it, the word why came before, and is heard first."""
        if self._reader is not None:
            self._reader.hear_out(self._supervisor)
        dispatcher.ended(link, error)

    def _new_model(self, ready: ModelReady, place: BufferLayout, files: Mapping[str, bytes]) -> ServedModel:
        description = ready.description
        statistics = ModelStatistics()
        scheduler, hidden = new_scheduling(ready, place, files, self._limits, several_front_ends=self._several)
        dispatcher = Dispatcher(
            scheduler,
            statistics,
            self._put_off.add,
            self._wake_at,
            shaping=new_shaping(description),
            hidden=hidden,
        )
        model = ServedModel(ready, dispatcher, statistics, work_of(description))
        model.labels = labels_of(description, files)
        dispatcher.on_link_lost = partial(self._link_lost, model)
        dispatcher.on_link_closed = self._forget
        return model

    def _ensemble_ready(self, ready: ModelReady) -> None:
        """Take an ensemble in service: it has no worker, and serves whenever its models do."""
        statistics = ModelStatistics()
        description = ready.description
        ensemble = Ensemble(description, self._models, statistics, self._put_off.add, ready.requests_waiting)
        model = ServedModel(ready, ensemble, statistics, work_of(ready.description))
        ensemble.on_labels = partial(setattr, model, "labels")
        self._models.put(model)

    def _link_lost(self, model: ServedModel, link: WorkerLink, error: HermeticError) -> None:
        """Tell the supervisor, who has a new link made, or a new worker."""
        place, about = model.links.pop(link), model.description
        self._say_lost(about.name, about.version, model.generation, place.instance, place.link, str(error))
        self._models.changed()

    def _say_lost(self, name: str, version: int, generation: int, instance: int, link: int, why: str) -> None:
        reason = why[:LINK_REASON_LIMIT]
        _log.warning("model %s version %d instance %d: lost a worker: %s", name, version, instance, reason)
        self.journal.append(json.dumps({"event": "worker-lost", "model": name, "version": version, "reason": reason}))
        lost = LinkLost(name=name, version=version, generation=generation, instance=instance, link=link, reason=reason)
        self._say(lost.encode())

    def _model_stop(self, stop: ModelStop) -> None:
        model = self._models.find(stop.name, stop.version, stop.generation)
        stopped = ModelStopped(name=stop.name, version=stop.version, generation=stop.generation).encode()
        if model is None:
            self._say(stopped)
            return
        model.stopping = True
        self._models.changed()

        def gone() -> None:
            model.dispatcher.close()
            self._models.remove(model)
            self._say(stopped)

        model.dispatcher.when_idle(gone)

    def _drain(self, grace_s: float) -> None:
        """Accept nothing more, and stop when everything accepted is answered, or after `grace_s` seconds."""
        self._totals.draining = True
        self._inference.drain()
        self._health.end()
        self._drain_until = time.monotonic() + grace_s
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        now = time.monotonic()
        if self._drain_until is None or self._transport is None:
            return
        if not self.gate.live or now >= self._drain_until:
            self.failed_in_drain = self.gate.live
            if self._reader is not None:  # what the supervisor says from now on is read by frontend.py, to the end
                self._reader.forget(self._supervisor)
            self._transport.stop(0.0 if self.gate.live else max(DRAIN_LOOK_S, self._drain_until - now))
            return
        self._wake_at(now + DRAIN_LOOK_S, self._look_whether_drained)

    def _from_supervisor(self, received: tuple[bytes, list[int]]) -> None:
        try:
            self.handle(*received)
        except HermeticError:
            _log.exception("supervisor's frame")

    def _supervisor_gone(self, error: Exception) -> None:
        """Without a supervisor nothing can be recorded, so nothing may be served."""
        _log.error("the supervisor is gone: %s", error)
        self.supervisor_lost = True
        self._inference.draining = True
        self._commands.fail_all("the supervisor is gone")
        self._totals.fail_all("the supervisor is gone")
        self._settings.fail_all("the supervisor is gone")
        self._evidence.fail_all("the supervisor is gone")
        if self._transport is not None:
            self._transport.stop(0)

    def _say(self, frame: bytes) -> None:
        """Send a frame that must not be lost: where the border is busy, `tick` tries again, before any record."""
        self._unsaid.append(frame)
        self._send_unsaid()

    def _send_unsaid(self) -> None:
        while self._unsaid and self._send_now(self._unsaid[0]):
            self._unsaid.popleft()

    def _send(self, frame: bytes) -> bool:
        return not self._unsaid and self._send_now(frame)

    def _send_now(self, frame: bytes) -> bool:
        try:
            self._supervisor.send(frame)
        except (BlockingIOError, BorderError, OSError):
            return False
        return True

    def _wake_at(self, moment: float, action: Callable[[], None]) -> None:
        if self._transport is not None:
            self._transport.wake_at(moment, action)

    def _forget(self, link: WorkerLink) -> None:
        if self._reader is not None:
            with contextlib.suppress(OSError):
                self._reader.forget(link.channel)


def read_serving_key(descriptors: Sequence[int]) -> bytes:
    """Return the serving key (PEM) in the one memfd beside a frame, and close what came; else `BorderError`."""
    try:
        if len(descriptors) != 1:
            raise BorderError(f"serving key: wanted one descriptor, got {len(descriptors)}")
        return os.pread(descriptors[0], SERVING_KEY_LIMIT, 0)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
