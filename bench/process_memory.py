"""How much memory has a process held at most, and now? From /proc/PID/status and smaps_rollup (proc(5))."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hermetic.errors import MeasurementError


class Resident(NamedTuple):
    """Resident memory in bytes: anonymous, files' and shared memory (memfds too) together."""

    now: int  # VmRSS
    peak: int  # VmHWM, since the process began


def resident(pid: int) -> Resident:
    """Return what `pid` holds; `MeasurementError` where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise MeasurementError(f"process {pid} has ended before its memory was read") from None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        return Resident(_kib(fields["VmRSS"]), _kib(fields["VmHWM"]))
    except KeyError:  # a zombie has no memory
        raise MeasurementError(f"process {pid} has ended before its memory was read") from None


def proportional(pids: Iterable[int]) -> int:
    """Return what `pids` hold together, in bytes: a page that several map counts once (PSS).

    `MeasurementError` where one has ended. Reading another user's process needs root.
    """
    return sum(map(_proportional, pids))


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise MeasurementError(f"process {pid} has ended before its memory was read") from None
    except PermissionError:
        return resident(pid).now  # not ours to look into: what it holds, shared pages counted in full
    return next((_kib(line.partition(":")[2]) for line in lines if line.startswith("Pss:")), 0)


def _kib(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024
