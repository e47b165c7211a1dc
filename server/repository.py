"""The models that this server is configured to hold: what each sealed file says of itself, and the state it is in.

Pure bookkeeping. Opening files and starting workers is loading.py; deciding when is supervisor.py.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from hermetic.enclave.manifest import Manifest
from hermetic.enclave.supervisor import Worker
from hermetic.errors import ConfigurationError, HermeticError, NotFoundError
from hermetic.server.config import Model
from hermetic.server.messages import REASON_LIMIT, RepositoryEntry, State

RESTART_DELAYS_S: Final = (1, 2, 5, 10, 30, 60)
"""Seconds before the first, second, ... restart of a worker that was lost; the last one repeats."""


@dataclass(slots=True)
class Slot:
    """One configured model version."""

    settings: Model
    manifest: Manifest
    state: State = "UNAVAILABLE"
    reason: str = "not loaded"
    worker: Worker | None = None
    losses: int = 0
    restart_at: float | None = None
    waiting_for_front_ends: set[int] = field(default_factory=set)
    on_unloaded: Callable[[HermeticError | None], None] = lambda _: None

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.manifest.name, self.manifest.version

    def lost(self, now: float, reason: str) -> None:
        """The worker ended unasked: not available, and a restart after a delay that grows with each loss."""
        self.worker = None
        self.state, self.reason = "UNAVAILABLE", printable(reason)
        self.restart_at = now + RESTART_DELAYS_S[min(self.losses, len(RESTART_DELAYS_S) - 1)]
        self.losses += 1

    def loading(self) -> None:
        """A load has begun."""
        self.state, self.reason, self.restart_at = "LOADING", "", None

    def ready(self, worker: Worker) -> None:
        """The worker has given its known answers."""
        self.worker, self.state, self.reason = worker, "READY", ""

    def unloading(self, front_ends: set[int], on_unloaded: Callable[[HermeticError | None], None]) -> None:
        """An unload has begun, and waits for these front ends (process ids) to let go of the model."""
        self.state, self.reason = "UNLOADING", ""
        self.waiting_for_front_ends = front_ends
        self.on_unloaded = on_unloaded

    def unavailable(self, reason: str) -> None:
        """Not loaded, for this reason; no restart is due."""
        self.worker, self.state, self.reason, self.restart_at = None, "UNAVAILABLE", printable(reason), None
        self.losses = 0


class Repository:
    """All slots by name and version."""

    def __init__(self, slots: Iterable[Slot], refused: Iterable[RepositoryEntry] = ()) -> None:
        """Keep the slots; `ConfigurationError` where two files are the same model version.

        `refused` are files whose manifest is not believed: shown, and never loaded.
        """
        self._refused = tuple(refused)
        self._slots: dict[tuple[str, int], Slot] = {}
        for slot in slots:
            if slot.key in self._slots:
                name, version = slot.key
                raise ConfigurationError(f"models: wanted each version once, got {name} version {version} twice")
            self._slots[slot.key] = slot

    def __iter__(self) -> Iterator[Slot]:
        """All slots."""
        return iter(self._slots.values())

    def slot(self, name: str, version: int) -> Slot | None:
        """The slot of this version, if it is configured."""
        return self._slots.get((name, version))

    def versions(self, name: str) -> list[Slot]:
        """All versions of a model; `NotFoundError` where there is none."""
        slots = [slot for slot in self if slot.manifest.name == name]
        if not slots:
            raise NotFoundError(f"failed to load '{name}', no such model is configured")
        return slots

    def index(self) -> tuple[RepositoryEntry, ...]:
        """What RepositoryIndex shows."""
        slots = (
            RepositoryEntry(
                name=s.manifest.name, version=s.manifest.version, state=s.state, reason=s.reason[:REASON_LIMIT]
            )
            for s in self
        )
        return (*slots, *self._refused)


def printable(text: str) -> str:
    """Return `text` on one line: a worker's words are shown in terminals and logs."""
    return "".join(character if character.isprintable() else "?" for character in text)
