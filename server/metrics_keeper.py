"""The metrics port as the supervisor sees it: started where it is configured, renewed with key and epoch, replaced."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.zero_on_free import environment
from hermetic.errors import BorderError, HermeticError
from hermetic.server import documents
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.generation import restart_delay
from hermetic.server.locked_process import LockedProcess
from hermetic.server.messages import Listening, Records
from hermetic.server.metrics import Page
from hermetic.server.record_desk import RecordDesk
from hermetic.server.serving_key import ServingKey
from hermetic.server.settings import METRICS_MEMORY_LIMIT, METRICS_THREADS_LIMIT, MetricsSettings
from hermetic.server.shared_messages import AskPage, PageReply, StartMetrics

FROM_METRICS_PORT: Final = (Records, AskPage)
RECORD_TEXT_LIMIT: Final = 1024  # characters of somebody else's words in one record


class MetricsKeeper:
    """Keeps one process. Event loop's thread only; what waits for the process runs beside it."""

    def __init__(
        self,
        settings: MetricsSettings,
        loop: EventLoop,
        desk: RecordDesk,
        record: Callable[[str, Mapping[str, JsonValue]], None],
        page: Callable[[], Page],
    ) -> None:
        """`page` gives what is to be shown now. Nothing is started before `renew`."""
        self._settings = settings
        self._loop = loop
        self._desk = desk
        self._record = record
        self._page = page
        self._uid = OwnUid(settings.uid)
        self._settings = settings.model_copy(update={"uid": self._uid.number})
        self._key: ServingKey | None = None
        self._process: LockedProcess | None = None
        self._wanted = 0  # the number of the newest start: an older one that comes late is ended
        self._losses = 0
        self.on_listening: Callable[[int], None] = lambda _: None
        """Hears the port, each time that a process listens."""

    def renew(self, settings: MetricsSettings, serving_key: ServingKey) -> None:
        """Have a process with these settings and this key; the one before ends at once: who may see has changed."""
        port = self._settings.port  # which the first process may have chosen
        self._settings = settings.model_copy(update={"uid": self._uid.number, "port": port})
        self._key = serving_key
        self._end()
        self._start()

    @property
    def report(self) -> LockdownReport | None:
        """What the process holds; None where none listens."""
        return None if self._process is None else self._process.report

    def kill(self) -> None:
        """Leave no process behind, and start no other."""
        self._end()
        self._uid.give_back()

    def _end(self) -> None:
        """Let go of the process; what it has handed over is written."""
        self._wanted += 1
        process, self._process = self._process, None
        if process is None:
            return
        if not process.listening:  # a thread waits on its channel, and closes it then
            process.end()
            return
        self._desk.write()
        self._loop.forget(process.channel.fileno())
        process.kill()
        process.close()

    def _start(self) -> None:
        serving_key = self._key
        if serving_key is None:  # `renew` brings the first
            return
        try:
            process = LockedProcess("hermetic.server.metrics_port", environment(), FROM_METRICS_PORT)
        except OSError as error:
            self._again(str(error))
            return
        self._process = process
        process.bound(METRICS_MEMORY_LIMIT, METRICS_THREADS_LIMIT)
        document = documents.in_memory(documents.encoded(self._settings))
        try:
            with serving_key.handed_out() as key:
                process.send(StartMetrics(), (key, document))
        finally:
            os.close(document)
        self._loop.in_thread(partial(self._await_in_thread, process, self._wanted))

    def _await_in_thread(self, process: LockedProcess, number: int) -> Event:
        try:
            return partial(self._listening, process, number, process.await_listening())
        except (HermeticError, OSError) as error:
            return partial(self._not_started, process, number, str(error))

    def _not_started(self, process: LockedProcess, number: int, reason: str) -> None:
        process.close()
        if number == self._wanted:
            self._again(reason)

    def _listening(self, process: LockedProcess, number: int, listening: Listening) -> None:
        if number != self._wanted:  # ended meanwhile
            process.kill()
            process.close()
            return
        self._settings = self._settings.model_copy(update={"port": listening.port})
        self._loop.watch(process.channel.fileno(), partial(self._hear, process, number))
        about: dict[str, JsonValue] = {"pid": process.pid, "port": listening.port, "tls": self._settings.tls}
        self._record("metrics.listening", {**about, "lock-down": listening.report.model_dump(mode="json")})
        self.on_listening(listening.port)

    def _hear(self, process: LockedProcess, number: int) -> None:
        try:
            frame = process.receive()
        except (BorderError, OSError) as error:
            if number == self._wanted:
                self._again(str(error))
            return
        if isinstance(frame, Records):
            self._desk.take(process, frame)
        elif isinstance(frame, AskPage):
            document = documents.in_memory(documents.encoded(self._page()))
            try:
                process.send(PageReply(id=frame.id), (document,))
            finally:
                os.close(document)

    def _again(self, reason: str) -> None:
        self._end()
        self._record("metrics.lost", {"reason": reason[:RECORD_TEXT_LIMIT]})
        number = self._wanted
        delay = restart_delay(self._losses)
        self._losses += 1
        self._loop.call_at(time.monotonic() + delay, lambda: self._start() if number == self._wanted else None)
