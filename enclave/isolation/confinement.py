"""What the kernel says of each thread of a locked process, read from outside: the process's own word is not asked.

A filter, capabilities and a uid belong to a thread. A library that started threads before the last stage could have
left one outside: the kernel's TSYNC refuses that, and this sees it. Source: proc_pid_status(5).
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.enclave.isolation.layers import NO_CAPABILITIES, NO_NEW_PRIVILEGES, SECCOMP
from hermetic.errors import IsolationError

__all__ = ["OF_THREADS", "ThreadSeen", "check_threads", "threads_of"]

_FILTERED: Final = 2  # SECCOMP_MODE_FILTER
OF_THREADS: Final = (NO_CAPABILITIES, NO_NEW_PRIVILEGES, SECCOMP)
"""The layers that belong to each thread, as far as the kernel tells of them."""
_CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")


@dataclass(frozen=True, slots=True)
class ThreadSeen:
    """One thread: how many filters it is under, its capabilities in any set, its four uids."""

    thread: int
    name: str
    filtered: bool
    filters: int
    no_new_privileges: bool
    capabilities: int
    uids: tuple[int, ...]

    def lacks(self, layers: Collection[str]) -> list[str]:
        """Return those of `layers` that a thread can be under and this one is not."""
        holds = {
            SECCOMP: self.filtered,
            NO_NEW_PRIVILEGES: self.no_new_privileges,
            NO_CAPABILITIES: not self.capabilities,
        }
        return [layer for layer, held in holds.items() if layer in layers and not held]


def threads_of(process: int) -> list[ThreadSeen]:
    """Return every thread of a process; `OSError` where it is gone. One that ends meanwhile is left out."""
    seen = []
    for folder in Path(f"/proc/{process}/task").iterdir():
        try:
            lines = (folder / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        facts = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        seen.append(_seen(int(folder.name), facts))
    return seen


def check_threads(process: int, layers: Collection[str]) -> None:
    """Raise `IsolationError` that names each thread of a process that is not under these layers, as it says it is."""
    threads = threads_of(process)
    outside = [
        f"{seen.thread} ({seen.name}) without {', '.join(lacks)}" for seen in threads if (lacks := seen.lacks(layers))
    ]
    if len({seen.uids for seen in threads}) > 1:
        outside.append(f"uids {sorted({seen.uids for seen in threads})}")
    if outside:
        wanted = [layer for layer in OF_THREADS if layer in layers]
        raise IsolationError(f"isolation: wanted every thread under {wanted}, got {'; '.join(outside)}")


def _seen(thread: int, facts: dict[str, str]) -> ThreadSeen:
    capabilities = 0
    for name in _CAPABILITY_SETS:
        capabilities |= int(facts[name], 16)
    return ThreadSeen(
        thread=thread,
        name=facts["Name"],
        filtered=facts.get("Seccomp") == str(_FILTERED),
        filters=int(facts.get("Seccomp_filters", "0")),
        no_new_privileges=facts.get("NoNewPrivs") == "1",
        capabilities=capabilities,
        uids=tuple(map(int, facts["Uid"].split())),
    )
