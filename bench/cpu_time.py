"""How much CPU time has a set of processes used, and which of them? From their CPU clocks, which count nanoseconds."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from hermetic.errors import MeasurementError

# clock_getcpuclockid(3): the clock of a process as the kernel numbers it, all of its threads, ended ones too. /proc has
# the same time, in ticks of 10 ms: too coarse for a few hundred requests.
_SCHEDULED: Final = 2

OTHER: Final = "server"
_ROLES: Final = {
    "hermetic.server.frontend": "front end",
    "hermetic.enclave.worker": "worker",
    "triton_python_backend_stub": "model",
}
"""A word of a process's command line -> what the process is; what has none is the server itself, or its supervisor."""


def processes_by_role(pids: Iterable[int]) -> dict[str, list[int]]:
    """Return the processes of a server sorted by what they are: "front end", "worker", "model", or "server"."""
    found: dict[str, list[int]] = {}
    for pid in pids:
        found.setdefault(_role(pid), []).append(pid)
    return found


def cpu_seconds_by_role(processes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return user and system time of all threads, for each role."""
    return {role: cpu_seconds(pids) for role, pids in processes.items()}


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system time of all threads of `pids`; `MeasurementError` where one has ended."""
    return sum(map(_cpu_seconds, pids))


def _role(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return OTHER  # reading its time will say that it has ended
    return next((role for word, role in _ROLES.items() if word in line), OTHER)


def _cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED)
    except OSError:
        raise MeasurementError(f"process {pid} of the measured server has ended") from None
