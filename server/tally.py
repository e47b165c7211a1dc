"""What one front end has counted since it started, as a document; sums of such documents. Pure.

A front end tells the supervisor every second, and whenever another one is asked for statistics, what has changed; the
supervisor knows the tally of each, and adds up those of front ends that have ended, so that nothing that was told is
lost with them. The border's rules hold: what a front end sends is checked, and believed for its own counts only.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.model_description import Name
from hermetic.server.messages import MODELS_LIMIT

BATCH_SIZES_LIMIT: Final = 4096  # different sizes of one model's batches
BATCHES_LIMIT: Final = 1 << 17  # sizes of batches of all models of one tally: 14 MB as a document
METHODS_LIMIT: Final = 512  # pairs of method and status
LARGEST: Final = (1 << 63) - 1

Count = Annotated[int, Field(ge=0, le=LARGEST)]
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
    wipe_ns: Count = 0
    unlocked_bytes: Count = 0
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
    """Return the sum; it stays within the bounds of a tally, whatever front ends say: no number is an error here."""
    every = list(tallies)
    models: dict[tuple[str, int, int], list[ModelTally]] = {}
    requests: dict[tuple[str, int], int] = {}
    for tally in every:
        for model in tally.models:
            models.setdefault(model.key, []).append(model)
        for method, code, count in tally.requests:
            requests[method, code] = _added((requests.get((method, code), 0), count))
    return Tally(
        models=tuple(_models(models)),
        requests=tuple((method, code, count) for (method, code), count in sorted(requests.items())),
        undelivered=_added(tally.undelivered for tally in every),
        live=_added(tally.live for tally in every),
        bytes_in_flight=_added(tally.bytes_in_flight for tally in every),
        records_waiting=_added(tally.records_waiting for tally in every),
        draining=_added(tally.draining for tally in every),
    )


def _added(counts: Iterable[int]) -> int:
    return min(sum(counts), LARGEST)


def _models(tallies: Mapping[tuple[str, int, int], list[ModelTally]]) -> Iterator[ModelTally]:
    """Give the sum of each model, as many models and sizes of batches as a tally may have."""
    room = BATCHES_LIMIT
    for key in sorted(tallies)[:MODELS_LIMIT]:
        model = _total_of_model(tallies[key])
        if len(model.batches) > room:
            model = model.model_copy(update={"batches": model.batches[:room]})
        room -= len(model.batches)
        yield model


def _total_of_model(tallies: list[ModelTally]) -> ModelTally:
    first = tallies[0]
    if len(tallies) == 1:
        return first
    failures: dict[Reason, int] = {}
    batches: dict[int, list[int]] = {}
    for tally in tallies:
        for reason, count in tally.failures.items():
            failures[reason] = _added((failures.get(reason, 0), count))
        for rows, *counts in tally.batches:
            before = batches.get(rows, [0, 0, 0, 0])
            batches[rows] = [_added(pair) for pair in zip(before, counts, strict=True)]
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
        wipe_ns=_added(tally.wipe_ns for tally in tallies),
        unlocked_bytes=_added(tally.unlocked_bytes for tally in tallies),
        inferences=_added(tally.inferences for tally in tallies),
        executions=_added(tally.executions for tally in tallies),
        last_inference_ms=max(tally.last_inference_ms for tally in tallies),
        failures=failures,
        batches=tuple(
            (rows, n, one, two, three) for rows, (n, one, two, three) in sorted(batches.items())[:BATCH_SIZES_LIMIT]
        ),
        pending=_added(tally.pending for tally in tallies),
    )


def _sum(parts: Iterable[Sum]) -> Sum:
    counts, nanoseconds = zip(*parts, strict=True)
    return _added(counts), _added(nanoseconds)
