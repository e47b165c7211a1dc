"""How much CPU time has a set of processes used, and which of them? From /proc, so in clock ticks of (mostly) 10 ms."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from hermetic.errors import MeasurementError

# proc(5), /proc/pid/stat: fields 14 and 15, counted after the command name, which may hold spaces and brackets.
_UTIME: Final = 11
_STIME: Final = 12

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
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise MeasurementError(f"process {pid} of the measured server has ended") from None
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
