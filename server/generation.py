"""One generation of a model version: the workers that serve one sealed file with one configuration. Pure bookkeeping.

A model version that is loaded again, with another file or another configuration, gets a new generation beside the one
that serves. Its life:

    loading -> connecting -> serving -> stopping            every instance has given its known answers before connecting
          `--> failed                                       one instance that cannot be loaded fails them all
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.gpus import Gpu
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.supervisor import Worker
from hermetic.errors import HermeticError
from hermetic.server.config import ModelSettings
from hermetic.server.cpu_plan import Place

RESTART_DELAYS_S: Final = (1, 2, 5, 10, 30, 60)
"""Seconds before the first, second, ... restart of what was lost; the last one repeats."""

STEADY_S: Final = 600  # seconds after which an earlier loss of an instance is forgotten

Phase = Literal["loading", "connecting", "serving", "stopping", "failed"]
Reply = Callable[[HermeticError | None], None]
"""Tells whoever asked how it ended; None: well."""


def to_nobody(_: HermeticError | None) -> None:
    """The reply where nobody asked."""


def restart_delay(losses: int) -> float:
    """Return the seconds until the next try after so many losses before this one."""
    return RESTART_DELAYS_S[min(losses, len(RESTART_DELAYS_S) - 1)]


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A sealed file whose manifest a trusted publisher has signed, and this server's settings for it."""

    path: Path
    settings: ModelSettings
    manifest: Manifest


@dataclass(slots=True, eq=False)
class Instance:
    """One place for a worker, in a generation: on the CPU, or on a GPU."""

    number: int
    gpu: Gpu | None = None
    worker: Worker | None = None
    starting: bool = False
    place: Place | None = None
    ready_at: float = 0.0
    losses: int = 0
    restart_at: float | None = None
    links: dict[int, int] = field(default_factory=dict)
    """By front end (process id): the number of its link to the worker."""
    links_made: int = 0
    fault: str = ""
    """Why its worker is ended by us; "" where it is not."""

    @property
    def over(self) -> bool:
        """Whether there is no worker, and none will come by itself."""
        return self.worker is None and not self.starting and self.restart_at is None

    def ready(self, worker: Worker, now: float) -> None:
        """The worker has given its known answers."""
        self.worker, self.starting, self.ready_at, self.restart_at = worker, False, now, None
        self.fault = ""
        self.links.clear()

    def lost(self, now: float) -> float:
        """The worker ended unasked; returns when the next one is due: after a delay that grows with each loss."""
        if self.worker is not None and now - self.ready_at > STEADY_S:
            self.losses = 0
        self.worker, self.starting = None, False
        self.links.clear()
        self.restart_at = now + restart_delay(self.losses)
        self.losses += 1
        return self.restart_at

    def given_up(self) -> None:
        """No worker, and none is started again."""
        self.worker, self.starting, self.restart_at = None, False, None
        self.links.clear()


@dataclass(slots=True, eq=False)
class Generation:
    """What serves, will serve or has served a model version."""

    number: int
    file: SealedFile
    configuration: ModelConfiguration
    reply: Reply
    gpus: tuple[Gpu | None, ...] | None = None
    """Of each instance (gpu_plan.py); None stands for: all on the CPU."""
    instances: tuple[Instance, ...] = ()
    phase: Phase = "loading"
    error: HermeticError | None = None
    wiped: bool = True
    waiting_for_front_ends: set[int] = field(default_factory=set)
    connections: int = 0  # under way
    why_not: Callable[[], str] = str
    """Of an ensemble: why it cannot serve now; "" where it can."""
    waits: Callable[[], bool] = bool
    """Of an ensemble: whether one of its models is being loaded."""

    def __post_init__(self) -> None:
        """Make the instances that the configuration says; an ensemble has none."""
        gpus = (None,) * self.configuration.instances if self.gpus is None else self.gpus
        self.instances = () if self.is_ensemble else tuple(Instance(number, gpu) for number, gpu in enumerate(gpus))

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.file.manifest.name, self.file.manifest.version

    @property
    def is_ensemble(self) -> bool:
        """Whether other models serve it."""
        return self.file.manifest.is_ensemble

    @property
    def takes_links(self) -> bool:
        """Whether front ends are connected to it."""
        return self.phase in ("connecting", "serving")

    @property
    def alive(self) -> bool:
        """Whether at least one worker serves; of an ensemble, whether all its models are there."""
        if self.is_ensemble:
            return self.phase == "serving" and not self.why_not()
        return any(instance.worker is not None for instance in self.instances)

    @property
    def starting(self) -> bool:
        """Whether a worker of it, or a model of an ensemble, is being loaded."""
        return self.waits() or any(instance.starting for instance in self.instances)

    @property
    def over(self) -> bool:
        """Whether it has no worker, and none will come by itself."""
        return all(instance.over for instance in self.instances)

    def description(self) -> ModelDescription:
        """Return what front ends are told: the manifest's description with the configuration that counts."""
        return self.file.manifest.description().model_copy(update={"configuration": self.configuration})

    def serves(self, file: SealedFile, configuration: ModelConfiguration) -> bool:
        """Whether it serves just this: the same sealed content, settings and configuration."""
        return (
            self.file.manifest.digest() == file.manifest.digest()
            and self.file.settings == file.settings
            and self.configuration == configuration
        )

    def names(self) -> dict[str, JsonValue]:
        """Return what a record says of which model."""
        name, version = self.key
        return {
            "model": name,
            "version": version,
            "generation": self.number,
            "manifest-digest": self.file.manifest.digest().hex(),
        }
