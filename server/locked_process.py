"""A process that the supervisor starts and treats as hostile: a front end, or the metrics port."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import Frame, decode_control
from hermetic.enclave.isolation import cgroup
from hermetic.enclave.isolation.cgroup import Cgroup
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.zero_on_free import program
from hermetic.errors import BorderError, WorkerLostError
from hermetic.server.messages import Listening
from hermetic.server.printed import Printed

START_TIMEOUT_S: Final = 60
EXIT_TIMEOUT_S: Final = 10
BORDER_TIMEOUT_S: Final = 5  # a process that takes no frame for so long is ended


class LockedProcess:
    """One process and its control channel. It listens on a port, and is locked down before it says so."""

    def __init__(self, module: str, environment: Mapping[str, str], frames: Sequence[type[Frame]]) -> None:
        """Start `python -m module`; it may send `frames` once it listens. `await_listening` comes next."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        cgroup.prepare()
        self._printed = Printed()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*program(module), str(theirs.fileno())],
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=self._printed.writing,
                    stderr=self._printed.writing,
                    start_new_session=True,  # it has no terminal, and a Ctrl-C there is for the supervisor
                )
        except BaseException:
            self._printed.give_up()
            raise
        self._printed.follow(self._process.pid)
        self._group: Cgroup | None = None
        self.channel = Channel(ours)
        self.listening = False
        self.report: LockdownReport | None = None
        """What it holds, once it listens."""
        self._frames = frames

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def bound(self, memory_bytes: int, threads: int) -> None:
        """Put it into a control group of its own, where the host lets us; `memory_bytes` are beyond its libraries."""
        self._group = cgroup.around(self.pid, memory_bytes + PROFILES["front-end"].resident_bytes, threads)

    def await_listening(self) -> Listening:
        """Return what it says once it is bound and locked down; `WorkerLostError` where it never does."""
        self.channel.settimeout(START_TIMEOUT_S)
        try:
            frame, descriptors = self.channel.receive()
            for descriptor in descriptors:
                os.close(descriptor)
            listening = Listening.decode(frame)
        except (BorderError, TimeoutError, OSError) as error:
            self.kill()
            raise WorkerLostError(
                f"process {self.pid}: wanted it to listen within {START_TIMEOUT_S} s, got {error}"
            ) from None
        self.channel.settimeout(BORDER_TIMEOUT_S)
        self.listening = True
        self.report = listening.report
        return listening

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        """Send one control frame with descriptors.

        To a process that is gone, or takes nothing, it does nothing but end it: `receive` then tells of its end.
        Raises `BorderError` for a frame that none could take.
        """
        encoded = frame.encode()
        try:
            self.channel.send(encoded, descriptors)
        except (BorderError, OSError):
            self.end()

    def receive(self) -> Frame:
        """Return the next frame; `BorderError` where it is none that this process may send."""
        frame, descriptors = self.channel.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        if descriptors:
            raise BorderError(f"process {self.pid}: wanted no descriptors, got {len(descriptors)}")
        return decode_control(frame, self._frames)

    def close(self) -> None:
        """Let go of the channel; the process has ended, or soon will."""
        self.channel.close()

    def end(self) -> None:
        """Have the kernel end the process now; `wait` for it comes later."""
        self._process.kill()

    def kill(self) -> None:
        """End the process now, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._clear_away()

    def wait(self) -> int:
        """Return the exit status, after a kill where the process does not end within `EXIT_TIMEOUT_S`."""
        try:
            return self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._clear_away()

    def _clear_away(self) -> None:
        self._printed.finish()
        if self._group is not None:
            self._group.remove()
