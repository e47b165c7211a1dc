"""Is what is not found really not there? Canaries are planted in the processes themselves, and must be found.

One of each kind in each of its forms, in each kind of memory of each process: the process is stopped, its bytes are
replaced, it is searched like at any moment, its bytes are put back, and it goes on. What a process has no such memory
of is said. What a loaded model and a request in flight leave is the second control (moments.py).
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.bench.forget.canaries import KINDS, RUN, Canary, Kind
from hermetic.bench.forget.look import look
from hermetic.bench.forget.stage import Process
from hermetic.enclave.memory_scan import Region, regions
from hermetic.errors import MeasurementError

__all__ = ["MEMORY", "Planted", "plant"]

MEMORY: Final = ("heap", "mmap", "shared memory", "stack")
AREA_BYTES: Final = 16384
CANARY_BYTES: Final = 48
STOP_TIMEOUT_S: Final = 10
POLL_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Planted:
    """Of one process and kind of memory: how many forms of each kind were planted, and as many found.

    `forms` is empty where the process has no such memory.
    """

    process: Process
    memory: str
    forms: Mapping[Kind, int]


def plant(process: Process, pid: int) -> list[Planted]:
    """Plant, search, put back. `MeasurementError` where something that was planted was not found."""
    result = []
    with stopped(pid):
        for memory in MEMORY:
            region = _place(pid, memory)
            if region is None:
                result.append(Planted(process, memory, {}))
                continue
            canaries = [_canary(kind) for kind in KINDS]
            with _written(pid, region, canaries):
                found = look(process, [pid], canaries)
            forms = {canary.kind: len({f.form for f in found if f.canary is canary}) for canary in canaries}
            for canary in canaries:
                if forms[canary.kind] != len(canary.patterns):
                    raise MeasurementError(
                        f"control: wanted a {canary.kind} in the {memory} of the {process} found in "
                        f"{len(canary.patterns)} forms, got {forms[canary.kind]}: the search proves nothing"
                    )
            result.append(Planted(process, memory, forms))
    return result


def _canary(kind: str) -> Canary:
    canary = Canary.of(kind, "control", os.urandom(CANARY_BYTES))  # type: ignore[arg-type]
    if kind != "weight":
        return canary
    # As a runtime packs weights: in another order, and a constant one.
    packed = {"transposed": os.urandom(CANARY_BYTES), "packed": os.urandom(4) * RUN}
    return Canary(canary.kind, "control", {**canary.patterns, **packed})


def _place(pid: int, memory: str) -> Region | None:
    """Return a region that is writable memory of that kind; its upper end is written to."""
    fitting = [
        region
        for region in regions(pid)
        if region.permissions.startswith("rw") and region.end - region.start >= AREA_BYTES and _is(region, memory)
    ]
    return max(fitting, key=lambda region: region.end - region.start, default=None)


def _is(region: Region, memory: str) -> bool:
    shared = "s" in region.permissions
    if memory == "shared memory":
        return shared and region.name.startswith("/memfd:")
    return not shared and region.name == {"heap": "[heap]", "stack": "[stack]", "mmap": ""}[memory]


@contextmanager
def _written(pid: int, region: Region, canaries: list[Canary]) -> Iterator[None]:
    """Replace the last bytes of a region by canaries."""
    content = b"\0".join(pattern for canary in canaries for pattern in canary.patterns.values())
    at = region.end - AREA_BYTES
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        before = os.pread(descriptor, len(content), at)
        os.pwrite(descriptor, content, at)
        try:
            yield
        finally:
            os.pwrite(descriptor, before, at)
    finally:
        os.close(descriptor)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process, so that it notices nothing of what is done to its memory."""
    os.kill(pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + STOP_TIMEOUT_S
        while any(_state(task) != "T" for task in Path(f"/proc/{pid}/task").iterdir()):
            if time.monotonic() > end:
                raise MeasurementError(f"process {pid}: wanted it stopped within {STOP_TIMEOUT_S} s, got it running")
            time.sleep(POLL_S)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
