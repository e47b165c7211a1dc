"""A worker process as the supervisor sees it: started, asked, watched, ended. The other side is worker.py.

Calls block until the worker has answered or a timeout has passed; every call may be made from any thread, one at a time
per worker. A worker that breaks the protocol, or does not answer in time, is killed. The supervisor never sees the
model's key: it carries a JWE.
"""

import math
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Final, Self, TypeVar

from hermetic import errors
from hermetic.enclave.channel import Channel, data_channel, shared_memory
from hermetic.enclave.control_frames import Frame, decode_control
from hermetic.enclave.gpus import environment_of
from hermetic.enclave.isolation import cgroup
from hermetic.enclave.isolation.cgroup import Cgroup
from hermetic.enclave.isolation.confinement import check_threads
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.messages import (
    Attach,
    Attached,
    Failed,
    LeaseKeyMade,
    LeaseTaken,
    Locked,
    NewLeaseKey,
    Opened,
    OpenModel,
    TakeLease,
    Unload,
    Wiped,
)
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.pulse import Observation, Wrist
from hermetic.enclave.worker_process import describe_end, pin, spawn
from hermetic.enclave.worker_settings import WorkerSettings
from hermetic.errors import BorderError, HermeticError, WorkerLostError, WorkerStoppedError

__all__ = ["Observation", "Worker", "WorkerSettings", "data_channel", "pin", "shared_memory"]

_Answer = TypeVar("_Answer", bound=Frame)

START_TIMEOUT_S: Final = 60.0
OPEN_TIMEOUT_S: Final = 120.0
ATTACH_TIMEOUT_S: Final = 30.0
UNLOAD_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 0.25  # between looks at the CPU time of a load
KILL_TIMEOUT_S: Final = 10.0  # a killed process is gone as soon as the kernel has freed its memory

_SURVIVED: Final = (Attached, LeaseTaken)
"""Answers whose refusal does not end the worker."""

# What a worker may say of a failure; anything else it says becomes `WorkerLostError`.
_REPORTED: Final[Mapping[str, type[HermeticError]]] = {
    error.__name__: error
    for error in (
        errors.BorderError,
        errors.ConfigurationError,
        errors.IsolationError,
        errors.KnownAnswerError,
        errors.LeaseRefusedError,
        errors.ModelFormatError,
        errors.SealedModelError,
    )
}


class Worker:
    """One worker process. `start` makes it; it is over after `unload` or `kill`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: Channel,
        uid: OwnUid,
        wrist: Wrist,
        group: Cgroup | None,
    ) -> None:
        self._process = process
        self._group = group
        self._control = control
        self._uid = uid
        self._wrist = wrist
        self._lock = threading.Lock()
        self._burial = threading.Lock()
        self._buried = False
        self._report: LockdownReport | None = None
        self._public_key: dict[str, str] = {}
        self._hybrid_key = ""
        self._opened: Opened | None = None
        self.pidfd: Final = os.pidfd_open(process.pid)
        """Readable once the process has ended."""

    @classmethod
    def start(cls, settings: WorkerSettings, *, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Start a worker and return it once it is locked down and has made its key pair.

        Raises `IsolationError` where a property without a layer is not waived, `ConfigurationError`, or
        `WorkerLostError` where it ends or does not answer in time. No process is left then.
        """
        ours, theirs = Channel.pair()
        uid = OwnUid(settings.uid)
        cgroup.prepare()
        with theirs:
            process = spawn(theirs.fileno(), settings.cores, environment_of(settings.gpu))
        wrist = Wrist()
        group = cgroup.around(
            process.pid,
            settings.resident_bytes,
            settings.tasks,
        )
        worker = cls(process, ours, uid, wrist, group)
        try:
            locked = worker._ask(settings.prepare(uid.number), (wrist.descriptor,), Locked, timeout_s)
            check_threads(process.pid, locked.report.layers)
        except HermeticError:
            worker.kill()
            raise
        worker._public_key, worker._hybrid_key, worker._report = locked.public_key, locked.hybrid_key, locked.report
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def public_key(self) -> dict[str, str]:
        """The public half of the attested key pair, as a JWK."""
        return self._public_key

    @property
    def hybrid_key(self) -> str:
        """The public half of the attested hybrid pair, base64url; empty where the worker has no ML-KEM."""
        return self._hybrid_key

    @property
    def report(self) -> LockdownReport:
        """Which isolation properties hold, by which layers; what is waived; whether freed memory is overwritten."""
        if self._report is None:
            raise WorkerLostError(f"worker {self.pid}: wanted one that is locked down, got one that is starting")
        return self._report

    @property
    def description(self) -> ModelDescription:
        """What it serves; `WorkerLostError` before `open`."""
        if self._opened is None:
            raise WorkerLostError(f"worker {self.pid}: wanted one with an open model, got one without")
        return self._opened.description

    def observe(self) -> Observation:
        """Return its pulse and the CPU time it has used; `ProcessLookupError` where it is gone, or being buried."""
        if not self._burial.acquire(blocking=False):
            raise ProcessLookupError(f"worker {self.pid}: wanted a process, got a burial")
        try:
            if self._buried:
                raise ProcessLookupError(f"worker {self.pid}: wanted a process, got a grave")
            return self._wrist.observe(self.pid)
        finally:
            self._burial.release()

    def open(
        self,
        sealed: int,
        jwe: bytes,
        manifest_digest: bytes,
        *,
        lease: str = "",
        at_most_ms: int | None = None,
        timeout_s: float = OPEN_TIMEOUT_S,
        cpu_s: float = math.inf,
    ) -> Opened:
        """Hand over the sealed file's descriptor (read-only; it stays the caller's), its key as a JWE, and its lease.

        Returns when the model has given its known answers. Raises `SealedModelError`, `ModelFormatError`,
        `KnownAnswerError`, `LeaseRefusedError`, `BorderError` (the JWE is not for this worker), `WorkerStoppedError`
        (it took longer than `timeout_s`, or more than `cpu_s` seconds of CPU over all threads, as the kernel counts
        them) or `WorkerLostError`; the worker is gone then.
        """
        request = OpenModel(jwe=jwe, manifest_digest=manifest_digest.hex(), lease=lease, at_most_ms=at_most_ms)
        self._opened = self._ask(request, (sealed,), Opened, timeout_s, late=WorkerStoppedError, cpu_s=cpu_s)
        return self._opened

    def attach(
        self,
        channel: int,
        memory: int,
        *,
        front_end: int,
        buffers: int,
        variable_tensor_bytes: int,
        timeout_s: float = ATTACH_TIMEOUT_S,
    ) -> None:
        """Let it serve one more front end: a data channel's descriptor and shared memory's, which stay the caller's.

        The memory has the size of `buffers.layout(description, buffers, variable_tensor_bytes)`. `front_end` is its
        number: it has one link, and another one takes the place of that.
        """
        request = Attach(front_end=front_end, buffers=buffers, variable_tensor_bytes=variable_tensor_bytes)
        attached = self._ask(request, (channel, memory), Attached, timeout_s)
        if attached.front_end != front_end:
            self._end_and_wait()
            raise WorkerLostError(
                f"worker {self.pid}: wanted the front end {front_end} attached, got {attached.front_end}"
            )

    def new_lease_key(self, timeout_s: float) -> dict[str, str]:
        """Have it make a key for another lease; returns the public half, a JWK. It answers between two batches."""
        return self._ask(NewLeaseKey(), (), LeaseKeyMade, timeout_s).public_key

    def take_lease(self, lease: str, at_most_ms: int | None, timeout_s: float) -> float:
        """Hand it another lease, in the place of the one in force; returns the seconds until that is over.

        Raises `LeaseRefusedError`: then the one before is still in force. It answers between two batches.
        """
        return self._ask(TakeLease(lease=lease, at_most_ms=at_most_ms), (), LeaseTaken, timeout_s).left_s

    def unload(self, timeout_s: float = UNLOAD_TIMEOUT_S) -> bool:
        """Let it finish the batches at hand, wipe and end; whether it said that everything is wiped.

        The process is gone in any case: killed where it does not end in time.
        """
        try:
            self._ask(Unload(), (), Wiped, timeout_s)
        except HermeticError:  # whatever it says instead of `Wiped`, it has not said that
            self.kill()
            return False
        self._bury(timeout_s)
        return True

    def end(self) -> None:
        """Have the kernel end it now; `pidfd` tells when it is gone, and `reap` comes then."""
        self._process.kill()

    def kill(self) -> None:
        """End it now, whatever it does, and free what is left. Can be called again, and on one that has ended."""
        self._process.kill()
        self._bury(KILL_TIMEOUT_S)

    def reap(self) -> str:
        """Return how a worker that has ended came to its end, and free what is left of it."""
        self._bury(KILL_TIMEOUT_S)
        return describe_end(self._process.returncode)

    def _ask(
        self,
        request: Frame,
        descriptors: tuple[int, ...],
        wanted: type[_Answer],
        timeout_s: float,
        *,
        late: type[WorkerLostError] = WorkerLostError,
        cpu_s: float = math.inf,
    ) -> _Answer:
        """Send a frame and return its answer, or raise what the worker says.

        `late` where it says nothing in time, `WorkerStoppedError` where it takes more than `cpu_s` of CPU for it. A
        worker that fails here is ended, and not buried: whoever owns it may still wait on `pidfd`.
        """
        if not self._lock.acquire(timeout=timeout_s):
            self._end_and_wait()
            raise WorkerLostError(f"worker {self.pid}: wanted it idle within {timeout_s:g} s, got one that is busy")
        try:
            self._control.settimeout(timeout_s)
            if self._control.has_frame():
                raise BorderError("worker: wanted nothing unasked, got a frame")
            self._control.send(request.encode(), descriptors)
            answer = self._receive(wanted) if cpu_s == math.inf else self._receive_within(wanted, timeout_s, cpu_s)
        except TimeoutError:
            self._end_and_wait()
            raise late(f"worker {self.pid}: wanted {wanted.__name__} within {timeout_s:g} s, got nothing") from None
        except WorkerStoppedError:
            self._end_and_wait()
            raise
        except (BorderError, OSError) as error:
            end = describe_end(self._end_and_wait())
            raise WorkerLostError(f"worker {self.pid}: wanted {wanted.__name__}, got: {error}; it {end}") from None
        finally:
            self._lock.release()
        if isinstance(answer, Failed):
            if wanted not in _SURVIVED:  # it ends by itself, except for a front end or a lease that it cannot take
                self._bury(KILL_TIMEOUT_S)
            raise _REPORTED.get(answer.error, WorkerLostError)(answer.text)
        return answer

    def _receive_within(self, wanted: type[_Answer], timeout_s: float, cpu_s: float) -> "_Answer | Failed":
        """Receive, and look meanwhile at the CPU time; `TimeoutError` and `WorkerStoppedError` where it is too much."""
        begun, end = self._cpu_s(), time.monotonic() + timeout_s
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._control.settimeout(min(left, LOOK_S))
            try:
                return self._receive(wanted)
            except TimeoutError:
                used = self._cpu_s() - begun
            if used > cpu_s:
                raise WorkerStoppedError(
                    f"worker {self.pid}: load_cpu_s: wanted at most {cpu_s:g} CPU seconds for the load, got {used:.3g}",
                    limit="load_cpu_s",
                )

    def _cpu_s(self) -> float:
        """Return the CPU seconds of all its threads so far; none of one that is gone, which its channel will say."""
        try:
            return self._wrist.observe(self.pid).cpu_s
        except ProcessLookupError:
            return 0.0

    def _receive(self, wanted: type[_Answer]) -> "_Answer | Failed":
        frame, descriptors = self._control.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        if descriptors:
            raise BorderError(f"worker: wanted no descriptors, got {len(descriptors)}")
        answer = decode_control(frame, (wanted, Failed))
        if not isinstance(answer, wanted | Failed):  # decode_control has checked: this tells the type checker
            raise BorderError(f"worker: wanted {wanted.__name__}, got {type(answer).__name__}")
        return answer

    def _end_and_wait(self) -> int:
        """Kill the process, and return its status once it is gone."""
        self._process.kill()
        return self._process.wait()

    def _bury(self, timeout_s: float) -> None:
        """Wait for the end of the process, kill it where that takes too long, and free what is left, once."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._burial:
            if not self._buried:
                self._buried = True
                self._control.shut()  # someone else may hold the worker's end, and keep it open
                with self._lock:  # whoever still waits for an answer gets the end of the process first
                    self._control.close()
                self._uid.give_back()
                if self._group is not None:
                    self._group.remove()
                self._wrist.close()
                os.close(self.pidfd)
