"""How much memory has a process held at most, and now? From /proc/PID/status (proc(5))."""

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


def _kib(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024
