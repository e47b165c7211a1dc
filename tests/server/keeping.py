"""Doubles around a model keeper: workers and front ends within this process, and a loader that is told what to do.

The event loop, the threads and the descriptors are real.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from hermetic.enclave.control_frames import Frame
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.messages import Opened
from hermetic.enclave.pulse import Observation
from hermetic.enclave.supervisor import Worker
from hermetic.errors import HermeticError
from hermetic.server.attesting import Release
from hermetic.server.config import CpuSettings
from hermetic.server.cpu_plan import Cores, CpuPlan, Place
from hermetic.server.event_loop import EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import SealedFile
from hermetic.server.loading import Loaded, Loader
from hermetic.server.model_keeper import ModelKeeper
from hermetic.server.repository import Repository
from hermetic.server.surroundings import Surroundings

TIMEOUT_S = 60


class WorkerDouble:
    """A worker without a process. `answers` are what its next `attach` calls raise; none: it takes the link."""

    pids = iter(range(1000, 100_000))

    def __init__(self, file: SealedFile) -> None:
        self.pid = next(self.pids)
        self.pidfd = os.eventfd(0)
        self.description = file.manifest.description()
        self.report = LockdownReport(properties={}, waived=(), warnings=(), zeroing="enforced")
        self.answers: deque[HermeticError] = deque()
        self.attached = 0
        self.may_attach = threading.Event()
        self.may_attach.set()
        self.ended = ""
        self.seen = Observation(0, 0.0)

    def observe(self) -> Observation:
        if self.ended:
            raise ProcessLookupError
        return self.seen

    def attach(
        self, channel: int, memory: int, *, front_end: int, buffers: int, variable_tensor_bytes: int, timeout_s: float
    ) -> None:
        assert self.may_attach.wait(TIMEOUT_S)
        if self.answers:
            raise self.answers.popleft()
        self.attached += 1

    def crash(self) -> None:
        """End it unasked."""
        self.ended = "crashed"
        os.eventfd_write(self.pidfd, 1)

    def end(self) -> None:
        self.crash()

    def reap(self) -> str:
        return "was killed"

    def unload(self, _timeout_s: float) -> bool:
        self.ended = "unloaded"
        return True

    def kill(self) -> None:
        self.ended = self.ended or "killed"


class FrontEndDouble:
    """A front end without a process: it keeps what it is told."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.frames: list[Frame] = []
        self.over = False

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        for descriptor in descriptors:
            os.fstat(descriptor)  # open
        frame.encode()  # a frame that is too long would end the supervisor
        self.frames.append(frame)

    def end(self) -> None:
        self.over = True

    def told(self, kind: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]


@dataclass
class LoaderDouble:
    """`errors` are what the next loads raise; none: they succeed. They wait as long as `may_load` is not set."""

    errors: deque[HermeticError] = field(default_factory=deque)
    workers: list[WorkerDouble] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    may_load: threading.Event = field(default_factory=threading.Event)

    def load(self, file: SealedFile, place: Place) -> Loaded:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.may_load.wait(TIMEOUT_S)
        self.at_once -= 1
        if self.errors:
            raise self.errors.popleft()
        worker = WorkerDouble(file)
        self.workers.append(worker)
        opened = Opened(description=worker.description, unseal_ms=0, load_ms=0, known_answer_ms=0)
        return Loaded(cast(Worker, worker), opened, Release(b"", "", None))


class Keeping:
    """A model keeper and everything around it."""

    def __init__(self, *, loads_at_once: int = 8, loader: LoaderDouble | None = None) -> None:
        self.loop = EventLoop()
        self.loader = loader or LoaderDouble()
        self.loader.may_load.set()
        self.front_ends: dict[int, FrontEndDouble] = {}
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.repository = Repository()
        self.published: list[tuple[tuple[str, int, str], ...]] = []
        self.cpu = CpuPlan(Cores((0, 1)), CpuSettings(), front_ends=1)
        self.around = Surroundings(
            self.loop,
            cast(dict[int, FrontEnd], self.front_ends),
            lambda kind, fields: self.records.append((kind, dict(fields))),
            self._publish,
        )
        self.keeper = ModelKeeper(
            self.repository,
            cast(Loader, self.loader),
            self.cpu,
            self.around,
            patience_s=TIMEOUT_S,
            loads_at_once=loads_at_once,
            front_end_memory=64 << 30,
        )

    def _publish(self) -> None:
        self.published.append(tuple((e.name, e.version, e.state) for e in self.repository.index()))

    def front_end(self, pid: int) -> FrontEndDouble:
        """Add a front end."""
        double = FrontEndDouble(pid)
        self.front_ends[pid] = double
        self.keeper.connect_all(cast(FrontEnd, double))
        return double

    def turn_until(self, what: Callable[[], bool]) -> None:
        """Run the loop until something holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not what():
            assert time.monotonic() < deadline, "wanted it to come"
            self.loop.call_at(time.monotonic() + 0.05, lambda: None)
            self.loop.turn()

    def settle(self) -> None:
        """Run the loop until no thread is at work."""
        self.turn_until(lambda: not self.loop.busy)

    def recorded(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.records if name == kind]


class Told:
    """A reply, and what it was told."""

    def __init__(self) -> None:
        self.outcomes: list[HermeticError | None] = []

    def __call__(self, error: HermeticError | None) -> None:
        self.outcomes.append(error)
