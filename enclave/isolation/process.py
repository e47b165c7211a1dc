"""What a process sets on itself with `prctl`: not dumpable, no new privileges, dies with its parent, W^X."""

import os
import signal
from pathlib import Path
from typing import Final

from hermetic.enclave.isolation.kernel import (
    PR_SET_DUMPABLE,
    PR_SET_MDWE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    prctl,
)

_MDWE_REFUSE_EXEC_GAIN: Final = 1


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends; exit at once where `parent` is already gone.

    A change of uid clears the setting: call it again after one. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent not in (os.getppid(), 0):
        raise ProcessLookupError(f"parent process: wanted {parent}, got {os.getppid()}")


def make_undumpable() -> None:
    """No core dump, and no ptrace or /proc/PID/mem by processes of the same uid. Does not stop root."""
    prctl(PR_SET_DUMPABLE, 0)


def make_dumpable() -> None:
    """Undo `make_undumpable` for the moment in which a process writes its own uid map."""
    prctl(PR_SET_DUMPABLE, 1)


def refuse_new_privileges() -> None:
    """From here on no exec gains a privilege. Landlock and seccomp require it."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def refuse_executable_memory() -> None:
    """Memory that was writable never becomes executable, and the other way round (Linux >= 6.3)."""
    prctl(PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN)


def thread_count() -> int:
    """Threads of this process now. Needs /proc, so ask before the root is empty."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())
