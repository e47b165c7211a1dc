"""The supervisor: the only process with privileges; starts, watches and retires front ends and workers.

It has no listening socket. Front ends reach it only by the frames of messages.py over inherited sockets; they can ask
for load and unload, and hand over records. The thread of the event loop owns all state here. A front end is treated as
hostile: whatever it sends, or fails to send in time, costs at most its own life.

Not here: models (model_keeper.py), how one is loaded (loading.py), how the broker is convinced (attesting.py), the life
of front ends (front_end_pool.py), what all of them are told at once (reload.py), metrics (metrics_keeper.py).
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log import Log
from hermetic.enclave.control_frames import Frame
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.zero_on_free import NOT_LOOKED_AT
from hermetic.errors import BorderError, HermeticError, NotReadyError
from hermetic.server import documents
from hermetic.server.catalogue import Catalogue
from hermetic.server.change_desk import ChangeDesk
from hermetic.server.command_desk import CommandDesk
from hermetic.server.config import ServerConfig
from hermetic.server.cores import cores_here
from hermetic.server.cpu_plan import CpuPlan
from hermetic.server.curator import Curator
from hermetic.server.epoch_changes import changed_by_caller, changed_file
from hermetic.server.event_loop import EventLoop
from hermetic.server.evidence_batch import Standing
from hermetic.server.evidence_desk import EvidenceDesk
from hermetic.server.front_end_pool import FrontEndPool
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import Reply
from hermetic.server.gpu_facts import known_gpus
from hermetic.server.gpu_plan import GpuPlan
from hermetic.server.key_renewal import KeyRenewal
from hermetic.server.lease_events import LeaseEvents
from hermetic.server.leases import LeaseKeeper
from hermetic.server.loading import Loader, check_tenants
from hermetic.server.messages import (
    Command,
    Drain,
    Drained,
    LinkLost,
    ModelStopped,
    NewServingKey,
    Records,
)
from hermetic.server.messages import Repository as RepositoryFrame
from hermetic.server.metrics import Facts, Page, ProcessesZeroing, count_zeroing
from hermetic.server.metrics_keeper import MetricsKeeper
from hermetic.server.model_keeper import ModelKeeper
from hermetic.server.record_desk import RecordDesk
from hermetic.server.reload import Current, Reloader
from hermetic.server.repository import Repository
from hermetic.server.serving_key import ServingKey
from hermetic.server.settings import Epoch, FrontEndSettings, MetricsSettings
from hermetic.server.shared_messages import (
    AskEvidence,
    AskTotals,
    ChangeSettings,
    EpochApplied,
    EpochStaged,
    TallyPart,
    TotalsReply,
    Traces,
)
from hermetic.server.standing import standing
from hermetic.server.surroundings import Surroundings
from hermetic.server.tally import Tally
from hermetic.server.tally_desk import TallyDesk
from hermetic.server.trace_desk import TraceDesk

PATIENCE_S: Final = 15  # beyond the drain time, for a front end to say that it is done
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
        self._current = current
        self._log = log
        self._on_change = on_change
        self._loader = loader
        self._loop = EventLoop()
        self._desk = RecordDesk(log, self._loop)
        self._keys = KeyRenewal(serving_key, renew_key, self._loop, self._record)
        self._keys.on_renewed = self._key_renewed
        config = current.config
        self._pool = FrontEndPool(
            settings,
            serving_key,
            self._loop,
            self._record,
        )
        self._front_ends = self._pool.members
        self._draining = False
        repository = Repository()
        self._cpu = CpuPlan(cores_here(), config.cpu, config.front_ends)
        self._pool.cores = lambda number: self._cpu.front_end(number).cores
        around = Surroundings(self._loop, self._front_ends, self._record, self._publish)
        patience, at_once = config.limits.drain_s + PATIENCE_S, config.repository.loads_at_once
        self._models = ModelKeeper(
            repository,
            loader,
            self._cpu,
            around,
            patience_s=patience,
            loads_at_once=at_once,
            front_end_memory=config.limits.front_end_memory_bytes,
            gpus=GpuPlan(known_gpus()),
        )
        self._leases = LeaseKeeper(loader, around)
        self._models.on_serving = self._leases.watch
        self._models.unloading.on_leaving = self._leases.forget
        self._leases.on_over = self._models.stop_at_once
        self._curator = Curator(config.repository, catalogue, repository, self._models, self._cpu, around)
        self._commands = CommandDesk(self._obey)
        self._changes = ChangeDesk(self._change_settings, self._record)
        self.evidence = EvidenceDesk(self._loop, config.attestation.evidence_interval_ms / 1000, self._standing)
        self._tallies = TallyDesk(self._loop, self._front_ends, repository.generations)
        self._reloader = Reloader(
            current, settings.epoch, self._loop, self._front_ends, self._record, self._epoch_applied
        )
        self._metrics: MetricsKeeper | None = None
        self._traces = TraceDesk(config.trace, self._record)
        self._watch_front_ends()
        self.zeroing = NOT_LOOKED_AT
        """Whether this process itself overwrites freed memory, as its owner has found out."""
        self._reloader.check = self._check_models
        self.host_claims: Callable[[], Mapping[str, JsonValue]] = dict
        """Says what every attestation of this host says at this moment."""
        self.lease_events: LeaseEvents | None = None
        """Listens to the broker's revocations; without it only a renewal learns of them."""
        self.read_again: Callable[[], ServerConfig] | None = None
        """Reads the configuration's file once more; without it there is no reload."""
        self.on_reload: Callable[[int, HermeticError | None], None] = lambda _epoch, _error: None
        """Hears which epoch holds after a reload, and why it is no other."""
        self.on_metrics: Callable[[int], None] = lambda _port: None
        """Hears at which port metrics are offered, each time that they begin to be."""

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
            on_listening(self._pool.start(self._current.config.front_ends))
            self._publish()
            self._keys.start()
            self._listen_to_broker()
            self._start_metrics()
            if not self._draining:
                self._curator.start()
            while not (self._draining and not self._front_ends):
                self._loop.turn()
            self._models.unload_everything()
            self._record("server.stopped", {})
        finally:
            self._kill_everything()

    def _listen_to_broker(self) -> None:
        """Hear of revocations as events of the loop."""
        events, leases, loop = self.lease_events, self._leases, self._loop
        if events is not None:
            events.on_event = lambda event: loop.post(partial(leases.heard, event))
            events.on_connected = lambda connected: loop.post(partial(leases.connected, connected=connected))
            events.start()

    def _plan_cpu(self) -> None:
        """Share the cores out among front ends and the workers that are to come."""
        self._cpu.begin(self._models.repository.expected(self._models.gpus))
        self._record("cpu.planned", self._cpu.describe())

    # Front ends

    def _watch_front_ends(self) -> None:
        pool = self._pool
        pool.on_start = self._reloader.joined
        pool.on_listening = self._models.connect_all
        pool.on_replaced = self._publish
        pool.on_frame = self._hear
        pool.on_ending = lambda _: self._desk.write()
        pool.on_gone = self._front_end_gone

    def _hear(self, front_end: FrontEnd, frame: Frame) -> None:
        """Handle one frame; `BorderError` where a front end may not send it now."""
        if isinstance(frame, Records):
            self._desk.take(front_end, frame)
        elif isinstance(frame, Command):
            self._commands.take(front_end, frame)
        elif isinstance(frame, ModelStopped):
            self._models.stopped_at(front_end.pid, frame.name, frame.version, frame.generation)
        elif isinstance(frame, LinkLost):
            self._models.link_lost(front_end, frame)
        elif isinstance(frame, Drained):
            if not self._draining:
                raise BorderError("it sent Drained, unasked")
            self._pool.retire(front_end)
        else:
            self._hear_of_all(front_end, frame)

    def _hear_of_all(self, front_end: FrontEnd, frame: Frame) -> None:
        """Handle a frame about what all front ends do together."""
        if isinstance(frame, TallyPart):
            self._tallies.take(front_end, frame)
        elif isinstance(frame, AskTotals):
            self._tallies.ask(front_end.pid, partial(self._tell_totals, front_end, frame.id))
        elif isinstance(frame, ChangeSettings):
            self._changes.take(front_end, frame, time.monotonic())
        elif isinstance(frame, Traces):
            self._traces.take(frame, self._reloader.epoch.trace)
        elif isinstance(frame, AskEvidence):
            self.evidence.take(front_end, frame)
        elif isinstance(frame, EpochStaged):
            self._reloader.staged(front_end, frame)
        elif isinstance(frame, EpochApplied):
            self._reloader.applied(front_end, frame)

    def _front_end_gone(self, front_end: FrontEnd) -> None:
        self._commands.gone(front_end)
        self._changes.gone(front_end)
        self._tallies.gone(front_end.pid)
        self.evidence.gone(front_end)
        self._reloader.gone(front_end)
        self._models.front_end_gone(front_end.pid)

    def _standing(self) -> Standing:
        """What this server says of itself to callers, now."""
        return standing(self._keys.key.chain, self.host_claims(), self._models.manifests(), self._reports())

    def _tell_totals(self, front_end: FrontEnd, number: int, everyone: Tally) -> None:
        document = documents.in_memory(documents.encoded(everyone))
        try:
            front_end.send(TotalsReply(id=number), (document,))
        finally:
            os.close(document)

    def _obey(self, command: Command, reply: Reply) -> None:
        """Load or unload a model, for an identity that the front end has checked."""
        about: dict[str, JsonValue] = {"model": command.model, "identity": command.identity}
        if command.configuration:
            about["configuration"] = command.configuration[:RECORD_TEXT_LIMIT]
        self._record(f"model.{command.action}-asked", about)
        if self._draining:
            reply(NotReadyError("the server is shutting down"))
            return
        self._curator.command(command, reply)

    def _publish(self) -> None:
        """Tell every front end, and whoever watches, which models are in which state."""
        for frame in RepositoryFrame.all_of(self._models.repository.index()):
            self._pool.tell(frame)
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
            first=True,
        )

    def _change_settings(self, asked: ChangeSettings, reply: Reply) -> None:
        """Have every front end take the trace or log settings that a caller wants, or none."""
        if self._draining:
            reply(NotReadyError("the server is shutting down"))
            return
        wanted = asked.model_dump(mode="json", exclude_defaults=True, exclude={"id", "identity"})
        self._reloader.change(partial(changed_by_caller, asked), {"by": asked.identity, "asked": wanted}, reply)

    def _epoch_applied(self, config: ServerConfig, epoch: Epoch) -> None:
        """From now on this is the configuration: also for front ends and models that start."""
        self._pool.settings = self._pool.settings.model_copy(update={"epoch": epoch})
        self._loader.tenants = config.tenants
        self._traces.follow(config.trace)
        self._renew_metrics()

    def _check_models(self, config: ServerConfig) -> None:
        """Refuse a configuration under which a model that is held would serve whom it may not."""
        for slot in self._models.repository:
            for generation in slot.held():
                check_tenants(generation.file.manifest, config.tenants)

    def _key_renewed(self, key: ServingKey) -> None:
        self._pool.settings = self._pool.settings.model_copy(update={"certificate_chain": key.chain})
        self._pool.serving_key = key
        with key.handed_out() as descriptor:
            self._pool.tell(NewServingKey(certificate_chain=key.chain), (descriptor,))
        self._renew_metrics()

    # Metrics

    def _start_metrics(self) -> None:
        settings = self._metrics_settings()
        if settings is not None:
            self._metrics = MetricsKeeper(settings, self._loop, self._desk, self._record, self._page)
            self._metrics.on_listening = self.on_metrics
            self._renew_metrics()

    def _renew_metrics(self) -> None:
        settings = self._metrics_settings()
        if self._metrics is not None and settings is not None and not self._draining:
            self._metrics.renew(settings, self._keys.key)

    def _metrics_settings(self) -> MetricsSettings | None:
        config, front_end = self._current.config, self._pool.settings
        return None if config.metrics is None else MetricsSettings.of(config.metrics, front_end, config.isolation.uid)

    def _page(self) -> Page:
        """What the metrics port shows now."""
        config = self._current.config
        facts = Facts(
            profile=config.profile,
            evidence=config.attestation.kinds,
            waived=config.isolation.waived,
            epoch=self._reloader.epoch.number,
            epochs_refused=self._reloader.refused,
            front_ends=len(self._front_ends),
            front_ends_lost=self._pool.lost,
            models=tuple(self._models.repository.index()),
            tagged=self._models.repository.tagged(),
            stopped=self._models.stops.stopped(),
            quarantined=tuple(slot.key for slot in self._models.repository if self._models.stops.holds(slot.file)),
            zeroing=self._zeroing_of_processes(),
            callers=self.evidence.counts,
            leases=self._leases.facts(),
        )
        return Page(tally=self._tallies.total(), facts=facts)

    def _zeroing_of_processes(self) -> tuple[ProcessesZeroing, ...]:
        reported = [(kind, report.zeroing, report.zeroing_by) for kind, report in self._reports()]
        return count_zeroing([("supervisor", self.zeroing.state, self.zeroing.by), *reported])

    def _reports(self) -> list[tuple[str, LockdownReport]]:
        """What each locked process holds, as it has said itself."""
        reports = [("front end", one.report) for one in self._front_ends.values()]
        reports += [("worker", report) for report in self._models.reports()]
        reports += [("metrics port", self._metrics.report)] if self._metrics is not None else []
        return [(kind, report) for kind, report in reports if report is not None]

    # The end

    def _drain(self) -> None:
        """Not ready any more: front ends finish what they accepted, then everything is wiped."""
        if self._draining:
            return
        self._draining = self._pool.draining = self._keys.stopped = self._leases.stopped = True
        if self.lease_events is not None:
            self.lease_events.stop()
        self._curator.stop()
        grace = self._current.config.limits.drain_s
        self._record("server.draining", {"grace-s": grace})
        self._pool.tell(Drain(grace_s=grace))
        self._loop.call_at(time.monotonic() + grace + PATIENCE_S, self._pool.end_stuck)

    def _kill_everything(self) -> None:
        """Leave no process behind, whatever happened."""
        self._pool.kill()
        if self._metrics is not None:
            self._metrics.kill()
        self._traces.close()
        self._models.kill_everything()
        self._keys.key.close()
        self._loop.close()

    def _record(self, kind: str, fields: Mapping[str, JsonValue]) -> None:
        self._log.append({"kind": kind, "fields": dict(fields)})
