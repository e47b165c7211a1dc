"""The models that this front end knows: those it serves, and those the supervisor says exist.

`resolve` gives the version that a request means, in Triton's words where it cannot: unknown -> NotFoundError, known
but not serving -> NotReadyError. Versions are positive integers; an empty version means the highest that is ready.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple, Protocol

from mypy_extensions import mypyc_attr

from hermetic.enclave.buffers import row_bytes
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import (
    HermeticError,
    InvalidRequestError,
    LeaseEndedError,
    NotFoundError,
    NotReadyError,
    WorkerStoppedError,
)
from hermetic.server.asking import NewWork
from hermetic.server.audit import model_part
from hermetic.server.messages import REASON_LIMIT, ModelReady, RepositoryEntry, WorkerStopped
from hermetic.server.reply import ReplyTemplate
from hermetic.server.scheduling import queue_delay_us
from hermetic.server.statistics import ModelStatistics
from hermetic.server.work import Work

VERSION_DIGITS: Final = 18  # digits of a version in a request
SMALL_REPLY: Final = 64 * 1024  # bytes of a whole batch's outputs that are not counted before they are there


class Runner(Protocol):
    """What runs a model's requests: a dispatcher with workers, or an ensemble of other models."""

    @property
    def has_instances(self) -> bool:
        """Whether there is something to run them."""

    @property
    def why_not(self) -> str:
        """Why nothing can be run now; "" where it can."""

    @property
    def pending(self) -> int:
        """How many requests wait for their turn."""

    def submit(self, work: Work) -> None:
        """Take a request, or raise what it is refused for."""

    def cancel(self, work: Work) -> None:
        """Let go of a request whose caller is gone."""

    def when_idle(self, action: Callable[[], None]) -> None:
        """Run `action`, once, as soon as there is no request any more."""

    def lose_stuck(self, now: float, timeout_s: float) -> None:
        """Give up on workers that have had a batch for longer than `timeout_s`."""

    def close(self) -> None:
        """Wipe and close, without a word to anyone who still waits."""


class LinkPlace(NamedTuple):
    """Which link to which instance one is, in the supervisor's numbers; `lose` gives it up for an error."""

    instance: int
    link: int
    lose: Callable[[HermeticError], None]


@mypyc_attr(allow_interpreted_subclasses=True)
class ServedModel:
    """One generation of a model version, which has, or had, workers, each behind one of `links`."""

    def __init__(
        self, settings: ModelReady, dispatcher: Runner, statistics: ModelStatistics, new_work: NewWork
    ) -> None:
        """`new_work` makes the work of a request for this model."""
        self.description: ModelDescription = settings.description
        self.generation = settings.generation
        self.answer_within_s = settings.answer_within_s
        self.links: dict[object, LinkPlace] = {}
        self.dispatcher = dispatcher
        self.new_work = self.plain_work = new_work  # the first may be another one while requests are traced
        self.statistics = statistics
        self.template = ReplyTemplate(
            self.description.name, str(self.description.version), self.description.configuration.response_parameters
        )
        self.labels: Mapping[str, Sequence[bytes]] = {}  # of outputs, for classification
        self.input_positions = {spec.name: at for at, spec in enumerate(self.description.inputs)}
        options = self.description.configuration.inputs
        self.optional_inputs = frozenset(option.name for option in options if option.optional)
        self.scatters = bool(self.description.configuration.batch_outputs)
        self.ragged_inputs = frozenset(option.name for option in options if option.ragged)
        self.output_positions = {spec.name: at for at, spec in enumerate(self.description.outputs)}
        self.record_part = model_part(self.description.name, self.description.version, self.description.manifest_digest)
        self.delay_us = queue_delay_us(settings)
        self.reply_row_bytes = reply_row_bytes(settings)
        self.stopping = False

    @property
    def key(self) -> tuple[str, int, int]:
        """Name, version and generation."""
        return self.description.name, self.description.version, self.generation

    @property
    def ready(self) -> bool:
        """Whether requests are accepted for it."""
        return not self.stopping and self.dispatcher.has_instances


def reply_row_bytes(settings: ModelReady) -> int:
    """Return the bytes that a reply of one row is expected to take; 0 where even a full batch's are not worth counting.

    A tensor of free length has its share of the region that a batch has for it.
    """
    rows = max(1, settings.description.max_batch_size)
    sizes = [row_bytes(spec) for spec in settings.description.outputs]
    one = sum(-(-settings.variable_tensor_bytes // rows) if size is None else size for size in sizes)
    return one if one * rows > SMALL_REPLY else 0


@mypyc_attr(allow_interpreted_subclasses=True)
class Models:
    """All model versions by name; `changed` is called whenever what `resolve` answers may have changed."""

    def __init__(self) -> None:
        self._served: dict[str, dict[int, ServedModel]] = {}
        self._retired: list[ServedModel] = []
        self._repository: dict[tuple[str, int], RepositoryEntry] = {}
        self.on_change: list[Callable[[], None]] = []

    def resolve(self, name: str, version: str) -> ServedModel:
        """Return the ready model that a request means, or raise."""
        number = parse_version(version)
        served = self._served.get(name, {})
        if number is None:
            ready = [model for model in served.values() if model.ready]
            if ready:
                return max(ready, key=lambda model: model.description.version)
            if served:  # its workers come back: that is worth another try
                raise NotReadyError(f"Request for unknown model: '{name}' has no available versions")
            if any(known == name for known, _ in self._repository):
                raise NotFoundError(f"Request for unknown model: '{name}' has no available versions")
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        model = served.get(number)
        if model is not None and model.ready:
            return model
        if model is not None or (name, number) in self._repository:
            raise NotReadyError(f"Request for unknown model: '{name}' version {number} is not at ready state")
        known = bool(served) or any(name == each for each, _ in self._repository)
        which = f" version {number}" if known else ""  # as Triton has it
        raise NotFoundError(f"Request for unknown model: '{name}'{which} is not found")

    def ready_versions(self, name: str) -> list[int]:
        """Return the versions of `name` that are ready, ascending."""
        return sorted(version for version, model in self._served.get(name, {}).items() if model.ready)

    def served(self) -> list[ServedModel]:
        """Return every model version held here, ready or not, by name and version."""
        return [model for _, versions in sorted(self._served.items()) for _, model in sorted(versions.items())]

    def held(self) -> list[ServedModel]:
        """Return all of `served`, and the generations that another one took over from and that still finish."""
        return [*self.served(), *self._retired]

    def find(self, name: str, version: int, generation: int) -> ServedModel | None:
        """Return this generation of a model version, if it is held here."""
        current = self._served.get(name, {}).get(version)
        for model in chain([current] if current else [], self._retired):
            if (model.description.name, model.description.version, model.generation) == (name, version, generation):
                return model
        return None

    def newest(self, name: str, version: int) -> int:
        """Return the generation that requests for a model version go to; 0 where there is none."""
        current = self._served.get(name, {}).get(version)
        return 0 if current is None or current.stopping else current.generation

    def put(self, model: ServedModel) -> None:
        """Take a generation in: requests go to it from now on, the one before finishes."""
        versions = self._served.setdefault(model.description.name, {})
        before = versions.get(model.description.version)
        if before is not None:
            before.stopping = True
            self._retired.append(before)
        versions[model.description.version] = model
        self.changed()

    def remove(self, model: ServedModel) -> None:
        """Forget a generation."""
        if model in self._retired:
            self._retired.remove(model)
            return
        versions = self._served.get(model.description.name, {})
        if versions.get(model.description.version) is model:
            del versions[model.description.version]
            if not versions:
                del self._served[model.description.name]
        self.changed()

    def worker_stopped(self, stopped: WorkerStopped) -> None:
        """Fail what a worker was running, with the reason for which the supervisor ends it."""
        model = self.find(stopped.name, stopped.version, stopped.generation)
        for place in list(model.links.values()) if model is not None else ():
            if (place.instance, place.link) == (stopped.instance, stopped.link):
                error = LeaseEndedError if stopped.lease_over else WorkerStoppedError
                place.lose(error(stopped.reason))

    def set_repository(self, entries: Iterable[RepositoryEntry]) -> None:
        """Take over the supervisor's list of what exists."""
        self._repository = {(entry.name, entry.version): entry for entry in entries}
        self.changed()

    def index(self) -> list[RepositoryEntry]:
        """Return every model version with its state as callers of this front end find it."""
        entries = dict(self._repository)
        for model in self.served():
            key = (model.description.name, model.description.version)
            if model.ready:
                entries[key] = RepositoryEntry(name=key[0], version=key[1], state="READY")
            elif key not in entries or entries[key].state == "READY":
                reason = model.dispatcher.why_not[:REASON_LIMIT]
                entries[key] = RepositoryEntry(name=key[0], version=key[1], state="UNAVAILABLE", reason=reason)
        return [entry for _, entry in sorted(entries.items())]

    def changed(self) -> None:
        """Tell whoever keeps answers of `resolve`."""
        for action in self.on_change:
            action()


def parse_version(version: str) -> int | None:
    """Return the number in a request's version, None for an empty one, or raise `InvalidRequestError`."""
    if not version:
        return None
    if not version.isascii() or not version.removeprefix("-").isdigit() or len(version) > VERSION_DIGITS:
        raise InvalidRequestError(
            f"failed to get model version from specified version string '{version[: VERSION_DIGITS + 2]}' "
            "(details: stol), version should be an integral value > 0"
        )
    if int(version) < 0:
        raise InvalidRequestError(
            f"invalid model version specified '{version}' , version should be an integral value > 0"
        )
    return int(version)
