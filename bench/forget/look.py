"""Looking: every process of a stage, for canaries; and how often each kind was found."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hermetic.bench.forget.canaries import KINDS, Canary, Kind, searched
from hermetic.bench.forget.stage import Process
from hermetic.enclave.memory_scan import scan

__all__ = ["Found", "look"]


@dataclass(frozen=True, slots=True)
class Found:
    """One place of a canary: in which process, which canary, in which form, in which region of memory."""

    process: Process
    canary: Canary
    form: str
    region: str
    count: int

    def __str__(self) -> str:
        return (
            f"{self.process}: {self.canary.kind} ({self.canary.what}), {self.form}, {self.count} times in "
            f"{self.region or 'anonymous memory'}"
        )


def look(process: Process, pids: Iterable[int], canaries: Sequence[Canary]) -> list[Found]:
    """Search processes of one role; a process that has ended meanwhile holds nothing."""
    patterns, owners = searched(canaries)
    places: Counter[tuple[str, str]] = Counter()
    for pid in pids:
        try:
            places.update((hit.canary, hit.region) for hit in scan(pid, patterns).hits)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [
        Found(process, owners[name], name.split(" ", 1)[1], region, count) for (name, region), count in places.items()
    ]


def counted(found: Iterable[Found]) -> dict[Kind, int]:
    """Return how often each kind was found."""
    result: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for one in found:
        result[one.canary.kind] += one.count
    return result
