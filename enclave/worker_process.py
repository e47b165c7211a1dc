"""A worker's process: how it is started, where it may run, and what its end means. Who talks to it is supervisor.py."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

from hermetic.enclave.lease_timer import ENDED_AMID_WORK_STATUS, ENDED_STATUS
from hermetic.enclave.zero_on_free import environment, program

__all__ = ["describe_end", "pin", "spawn"]

_LEASE_ENDS: Final = {
    ENDED_STATUS: "its lease was over, and it has wiped itself",
    ENDED_AMID_WORK_STATUS: "its lease was over amid a batch: it has overwritten the model",
}


def spawn(control: int, cores: tuple[int, ...], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker that has this descriptor, confined to these cores (none: any), `more` in its environment."""
    return _spawner().submit(_spawn, control, cores, more).result()


@cache
def _spawner() -> ThreadPoolExecutor:
    """The thread that starts every worker: PR_SET_PDEATHSIG kills a process when the thread that started it ends."""
    return ThreadPoolExecutor(1, thread_name_prefix="spawner")


def _spawn(control: int, cores: tuple[int, ...], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [*program("hermetic.enclave.worker"), str(control), str(os.getpid())]
    process = subprocess.Popen(
        command,
        env={**environment(), **more},
        pass_fds=(control,),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which then unloads
    )
    pin(process.pid, cores)
    return process


def pin(pid: int, cores: tuple[int, ...]) -> None:
    """Confine a process that has just been started, while it has one thread, to these cores (none: leave it)."""
    if cores:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and will be missed
            os.sched_setaffinity(pid, cores)


def describe_end(status: int) -> str:
    """Return what the exit status of a worker says, as the end of a sentence."""
    if status in _LEASE_ENDS:
        return f"ended: {_LEASE_ENDS[status]}"
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-status}"
    reasons = {
        "SIGSYS": "it made a system call that its filter forbids",
        "SIGKILL": "killed by us, by the kernel for memory, or with its parent",
        "SIGALRM": "its lease was over, and it could not wipe itself",
        "SIGXFSZ": "it wrote more than it may",
    }
    return f"was killed by {name}" + (f": {reasons[name]}" if name in reasons else "")
