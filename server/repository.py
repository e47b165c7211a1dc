"""The models that this server knows: every version's sealed file, what serves it, and the state that callers see.

Pure bookkeeping. Finding files is catalogue.py, deciding what is to be served is curator.py, doing it model_keeper.py.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from hermetic.enclave.configuration import ModelConfiguration, VersionPolicy
from hermetic.errors import HermeticError
from hermetic.server.config import ModelSettings
from hermetic.server.generation import Generation, SealedFile, restart_delay
from hermetic.server.gpu_plan import GpuPlan, gpus_wanted
from hermetic.server.messages import REASON_LIMIT, RepositoryEntry, State
from hermetic.server.metrics import TaggedModel
from hermetic.server.overrides import NO_OVERRIDE, Override
from hermetic.server.version_policy import chosen

__all__ = ["Repository", "Shelf", "Slot", "printable"]


@dataclass(slots=True, eq=False)
class Slot:
    """One version of a model. `file` is None once it has vanished; what serves goes on until it is unloaded.

    `metric_tags` are those of what serves or served last: what it has counted keeps its labels.
    """

    name: str
    version: int
    file: SealedFile | None = None
    reason: str = "not loaded"
    current: Generation | None = None
    coming: Generation | None = None
    going: list[Generation] = field(default_factory=list)
    generations: int = 0
    losses: int = 0
    retry_at: float | None = None
    metric_tags: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.name, self.version

    @property
    def state(self) -> State:
        """The state as RepositoryIndex shows it: what serves counts first, then what comes, then what goes."""
        if self.current is not None and self.current.alive:
            return "READY"
        if self.coming is not None or (self.current and self.current.starting):
            return "LOADING"
        return "UNLOADING" if self.going else "UNAVAILABLE"

    @property
    def entry(self) -> RepositoryEntry:
        """What RepositoryIndex shows."""
        why_not = self.current.why_not() if self.current is not None else ""
        reason = printable(why_not or self.reason)[:REASON_LIMIT] if self.state == "UNAVAILABLE" else ""
        return RepositoryEntry(name=self.name, version=self.version, state=self.state, reason=reason)

    @property
    def at_rest(self) -> bool:
        """Whether there is no process of it, and none is due."""
        return self.current is None and self.coming is None and not self.going and self.retry_at is None

    def generation(self, number: int) -> Generation | None:
        """Return one of its generations, if it is there."""
        found = (self.current, self.coming, *self.going)
        return next((one for one in found if one is not None and one.number == number), None)

    def held(self) -> list[Generation]:
        """Return all generations that may have processes."""
        return [one for one in (self.current, self.coming, *self.going) if one is not None]

    def begin(self, generation: Generation) -> None:
        """A load has begun."""
        self.coming, self.retry_at = generation, None

    def take_over(self, generation: Generation) -> Generation | None:
        """`generation` serves from now on; returns the one that it takes over from."""
        before, self.current, self.coming, self.losses = self.current, generation, None, 0
        self.metric_tags = generation.configuration.metric_tags
        return before

    def failed(self, reason: str) -> None:
        """A load has come to nothing, for this reason."""
        self.coming, self.reason = None, printable(reason)

    def give_up(self, generation: Generation, reason: str) -> None:
        """`generation` is to be stopped, and nothing takes its place."""
        self.current = None if self.current is generation else self.current
        self.coming = None if self.coming is generation else self.coming
        self.reason = printable(reason)

    def try_again(self, now: float) -> float:
        """A load that failed may pass later; returns when it is due, after a delay that grows."""
        self.retry_at = now + restart_delay(self.losses)
        self.losses += 1
        return self.retry_at

    def let_go(self, reason: str) -> list[Generation]:
        """Nothing of this version is to be served; returns the generations that must stop now."""
        self.retry_at, self.losses, self.reason = None, 0, printable(reason)
        stopping = [] if self.current is None else [self.current]
        self.current = None
        return stopping


@dataclass(slots=True, eq=False)
class Shelf:
    """All versions of one model. `wanted`: an operator or the mode wants it served; `override`: how the load said."""

    name: str
    slots: dict[int, Slot] = field(default_factory=dict)
    wanted: bool = False
    override: Override = NO_OVERRIDE

    def files(self) -> dict[int, SealedFile]:
        """Return version -> sealed file, of what is there."""
        return {version: slot.file for version, slot in self.slots.items() if slot.file is not None}

    def policy(self) -> VersionPolicy:
        """Return the version policy: a load's own, else the highest version's: the operator's, or the publisher's."""
        files = self.files()
        if self.override.version_policy is not None:
            return self.override.version_policy
        if not files:
            return VersionPolicy()
        highest = files[max(files)]
        return highest.settings.version_policy or highest.manifest.configuration.version_policy

    def chosen(self) -> frozenset[int]:
        """Return the versions to serve, where the model is to be served at all."""
        return chosen(self.policy(), self.files())

    def configuration(self, file: SealedFile) -> ModelConfiguration:
        """Return the configuration that counts for one of its files: publisher's, operator's, and this load's own.

        `InvalidRequestError` where the load's own does not fit the file.
        """
        sealed, settings = file.manifest.configuration, file.settings
        gpus = () if file.manifest.is_ensemble else gpus_wanted(settings.device, sealed.gpus)
        # On each GPU one; on how many at most is decided where they are placed.
        instances = 1 if gpus else settings.instances or sealed.instances
        served = sealed.model_copy(update={"gpus": gpus, "instances": instances})
        return self.override.applied(served, file.manifest)


def workers_of(configuration: ModelConfiguration, settings: ModelSettings, gpus: GpuPlan) -> list[ModelSettings]:
    """Return the settings once for each worker of a model."""
    if not configuration.gpus:
        return [settings] * configuration.instances
    usable = len(gpus.wanted(configuration, settings))
    return [settings] * min(usable, settings.instances or usable)


class Repository:
    """All models by name; and files that are refused: shown under their file's name, and never loaded."""

    def __init__(self) -> None:
        """Begin empty."""
        self._shelves: dict[str, Shelf] = {}
        self.refused: tuple[RepositoryEntry, ...] = ()

    def generations(self) -> frozenset[tuple[str, int, int]]:
        """Return name, version and number of every generation that may have processes."""
        return frozenset((slot.name, slot.version, one.number) for slot in self for one in slot.held())

    def __iter__(self) -> Iterator[Slot]:
        """All versions of all models."""
        return iter([slot for shelf in self._shelves.values() for slot in shelf.slots.values()])

    def shelves(self) -> list[Shelf]:
        """Return every model."""
        return list(self._shelves.values())

    def shelf(self, name: str) -> Shelf | None:
        """Return the model of this name, if any of its files is, or was, there."""
        return self._shelves.get(name)

    def slot(self, name: str, version: int) -> Slot | None:
        """Return one version of a model, if it is known."""
        shelf = self._shelves.get(name)
        return None if shelf is None else shelf.slots.get(version)

    def put(self, file: SealedFile) -> Slot:
        """Take a sealed file in, in place of the one of the same name and version; returns its slot."""
        name, version = file.manifest.name, file.manifest.version
        shelf = self._shelves.setdefault(name, Shelf(name))
        slot = shelf.slots.setdefault(version, Slot(name, version))
        slot.file = file
        return slot

    def expected(self, gpus: GpuPlan) -> list[ModelSettings]:
        """Return the settings of every worker that is to serve, one entry for each process; `gpus` there are."""
        workers: list[ModelSettings] = []
        for shelf in self.shelves():
            files = shelf.files() if shelf.wanted else {}
            for version in shelf.chosen() if shelf.wanted else ():
                if files[version].manifest.is_ensemble:
                    continue
                with contextlib.suppress(HermeticError):  # it will not be loaded, which is told where it is tried
                    workers += workers_of(shelf.configuration(files[version]), files[version].settings, gpus)
        return workers

    def tidy(self) -> None:
        """Forget versions whose file has vanished and of which no process is left."""
        for shelf in self.shelves():
            gone = [version for version, slot in shelf.slots.items() if slot.file is None and slot.at_rest]
            for version in gone:
                del shelf.slots[version]
            if not shelf.slots:
                del self._shelves[shelf.name]

    def tagged(self) -> tuple[TaggedModel, ...]:
        """Return the versions whose metrics carry labels of their own."""
        tagged = (slot for slot in self if slot.metric_tags)
        return tuple(TaggedModel(name=slot.name, version=slot.version, tags=slot.metric_tags) for slot in tagged)

    def index(self) -> tuple[RepositoryEntry, ...]:
        """What RepositoryIndex shows."""
        return (*(slot.entry for slot in self), *self.refused)


def printable(text: str) -> str:
    """Return `text` as Unicode on one line: others' words and files' names are shown in terminals, logs, frames."""
    return "".join(character if character.isprintable() else "?" for character in text)
