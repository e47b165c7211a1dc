"""How much CPU time has a set of processes used? From /proc, so in clock ticks of (mostly) 10 ms."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hermetic.errors import MeasurementError

# proc(5), /proc/pid/stat: fields 14 and 15, counted after the command name, which may hold spaces and brackets.
_UTIME: Final = 11
_STIME: Final = 12


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system time of all threads of `pids`; `MeasurementError` where one has ended."""
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise MeasurementError(f"process {pid} of the measured server has ended") from None
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
