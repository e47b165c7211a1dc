"""What one front end has counted since it started, as a document; sums of such documents. Pure.

A front end tells the supervisor every second, and whenever another one is asked for statistics, what has changed; the
supervisor knows the tally of each, and adds up those of front ends that have ended, so that nothing that was told is
lost with them. The border's rules hold: what a front end sends is checked, and believed for its own counts only.
"""

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.messages import Name
from hermetic.server.messages import MODELS_LIMIT

BATCH_SIZES_LIMIT: Final = 4096  # different sizes of one model's batches
METHODS_LIMIT: Final = 512  # pairs of method and status

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Sum = tuple[Count, Count]
"""How often, and nanoseconds altogether."""

Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
_NOTHING: Final[Sum] = (0, 0)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelTally(_Part):
    """Counts of one generation of a model version. `batches`: rows, how often, nanoseconds of input, infer, output."""

    name: Name
    version: Annotated[int, Field(ge=1)]
    generation: Annotated[int, Field(ge=0)]
    success: Sum = _NOTHING
    fail: Sum = _NOTHING
    queue: Sum = _NOTHING
    compute_input: Sum = _NOTHING
    compute_infer: Sum = _NOTHING
    compute_output: Sum = _NOTHING
    inferences: Count = 0
    executions: Count = 0
    last_inference_ms: Count = 0
    failures: dict[Reason, Count] = Field(default={}, max_length=4)
    batches: tuple[tuple[Count, Count, Count, Count, Count], ...] = Field(default=(), max_length=BATCH_SIZES_LIMIT)
    pending: Count = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """Name, version, generation."""
        return self.name, self.version, self.generation


class Tally(_Part):
    """Counts of one front end, or of several. `requests`: method, gRPC status code, how many have ended so."""

    models: tuple[ModelTally, ...] = Field(default=(), max_length=MODELS_LIMIT)
    requests: tuple[tuple[Annotated[str, Field(max_length=256)], Count, Count], ...] = Field(
        default=(), max_length=METHODS_LIMIT
    )
    undelivered: Count = 0
    live: Count = 0
    bytes_in_flight: Count = 0
    records_waiting: Count = 0
    draining: Count = 0

    def followed_by(self, news: "Tally") -> "Tally":
        """Return what is known after `news`, which has only the models that have counted since."""
        models = {model.key: model for model in (*self.models, *news.models)}
        return news.model_copy(update={"models": tuple(models.values())})

    def ended(self) -> "Tally":
        """Return what is left of a front end that has ended: what it counted, not what it held."""
        models = tuple(model.model_copy(update={"pending": 0}) for model in self.models)
        held = {"live": 0, "bytes_in_flight": 0, "records_waiting": 0, "draining": 0}
        return self.model_copy(update={"models": models, **held})


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum."""
    every = list(tallies)
    models: dict[tuple[str, int, int], list[ModelTally]] = {}
    requests: dict[tuple[str, int], int] = {}
    for tally in every:
        for model in tally.models:
            models.setdefault(model.key, []).append(model)
        for method, code, count in tally.requests:
            requests[method, code] = requests.get((method, code), 0) + count
    return Tally(
        models=tuple(_total_of_model(models[key]) for key in sorted(models)),
        requests=tuple((method, code, count) for (method, code), count in sorted(requests.items())),
        undelivered=sum(tally.undelivered for tally in every),
        live=sum(tally.live for tally in every),
        bytes_in_flight=sum(tally.bytes_in_flight for tally in every),
        records_waiting=sum(tally.records_waiting for tally in every),
        draining=sum(tally.draining for tally in every),
    )


def _total_of_model(tallies: list[ModelTally]) -> ModelTally:
    first = tallies[0]
    if len(tallies) == 1:
        return first
    failures: dict[Reason, int] = {}
    batches: dict[int, list[int]] = {}
    for tally in tallies:
        for reason, count in tally.failures.items():
            failures[reason] = failures.get(reason, 0) + count
        for rows, *counts in tally.batches:
            before = batches.get(rows, [0, 0, 0, 0])
            batches[rows] = [one + other for one, other in zip(before, counts, strict=True)]
    return ModelTally(
        name=first.name,
        version=first.version,
        generation=first.generation,
        success=_sum(tally.success for tally in tallies),
        fail=_sum(tally.fail for tally in tallies),
        queue=_sum(tally.queue for tally in tallies),
        compute_input=_sum(tally.compute_input for tally in tallies),
        compute_infer=_sum(tally.compute_infer for tally in tallies),
        compute_output=_sum(tally.compute_output for tally in tallies),
        inferences=sum(tally.inferences for tally in tallies),
        executions=sum(tally.executions for tally in tallies),
        last_inference_ms=max(tally.last_inference_ms for tally in tallies),
        failures=failures,
        batches=tuple((rows, n, one, two, three) for rows, (n, one, two, three) in sorted(batches.items())),
        pending=sum(tally.pending for tally in tallies),
    )


def _sum(parts: Iterable[Sum]) -> Sum:
    counts, nanoseconds = zip(*parts, strict=True)
    return sum(counts), sum(nanoseconds)
