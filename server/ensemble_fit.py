"""Whether an ensemble's steps fit together: its models are there, and each tensor is what its reader takes. Pure.

That every tensor is made once, and before it is used, stands in the manifest's own rules
(enclave/configuration_rules/ensembles.py). What is said here depends on the other models of this server, so it is said
where they are served: the supervisor shows it in the repository's index, a front end looks before it serves.
Words are Triton's where it has them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from hermetic.enclave.configuration import Ensemble, EnsembleStep
from hermetic.enclave.model_description import ModelDescription, TensorSpec
from hermetic.errors import NotReadyError

__all__ = ["Lookup", "NotThere", "misfits", "name_of_step"]

DEPTH_LIMIT: Final = 16  # ensembles within ensembles

Lookup = Callable[[str, int], ModelDescription]
"""Name, version (0: the latest) -> a model; raises `NotThere`."""


class NotThere(NotReadyError):  # noqa: N818 - a state, not a fault
    """A model that no request could go to now; the text says why."""


class _Tensor(NamedTuple):
    """A tensor of an ensemble: its datatype, and its shape with the batch dimension."""

    owner: str
    datatype: str
    shape: tuple[int, ...]


def name_of_step(number: int, step: EnsembleStep, version: int | None = None) -> str:
    """Return how errors name a step."""
    return f"step {number}: model '{step.model}'" + (f" version {version}" if version else "")


def misfits(description: ModelDescription, lookup: Lookup, known: Lookup) -> list[str]:
    """Return why an ensemble cannot be served with the models that `lookup` gives; empty where it can.

    `lookup` gives the model that a request would get now, `known` also one that is not ready: circles are found by
    that, before anything asks whether an ensemble is ready that asks in turn.
    """
    ensemble = description.configuration.ensemble
    if ensemble is None:
        return [f"model '{description.name}': expected an ensemble, got none"]
    circle = _circle(description, known, (description.name,))
    if circle is not None:
        return [f"ensemble '{description.name}' contains itself: {circle}"]
    optional = [option.name for option in description.configuration.inputs if option.optional]
    if optional:
        return [f"ensemble '{description.name}': optional inputs are not supported for an ensemble, got {optional}"]
    found: list[str] = []
    models: list[ModelDescription] = []
    for number, step in enumerate(ensemble.steps):
        try:
            models.append(lookup(step.model, step.version))
        except NotThere as error:
            found.append(f"{name_of_step(number, step)}: {error}")
    return found or [*_models_fit(description, ensemble, models), *_tensors_fit(description, ensemble, models)]


def _circle(description: ModelDescription, known: Lookup, way: tuple[str, ...]) -> str | None:
    """Return the way from an ensemble back to itself, or one that is too long."""
    ensemble = description.configuration.ensemble
    for step in ensemble.steps if ensemble is not None else ():
        onward = (*way, step.model)
        if step.model in way or len(onward) > DEPTH_LIMIT:
            return " -> ".join(onward)
        try:
            circle = _circle(known(step.model, step.version), known, onward)
        except NotThere:
            continue
        if circle is not None:
            return circle
    return None


def _models_fit(description: ModelDescription, ensemble: Ensemble, models: Sequence[ModelDescription]) -> Iterator[str]:
    name, most = description.name, description.max_batch_size
    for number, (step, model) in enumerate(zip(ensemble.steps, models, strict=True)):
        place = name_of_step(number, step)
        if model.configuration.decoupled:
            yield f"{place}: a decoupled model is not supported in an ensemble"
        if model.configuration.sequence_batching is not None:
            yield f"{place}: a model with sequence batching is not supported in an ensemble"
        if model.max_batch_size < most:
            yield (
                f"ensemble '{name}' allows maximum batch size {most}, but it contains model '{model.name}' which only "
                f"allows maximum batch size to be {model.max_batch_size}"
            )
        inputs, outputs = {spec.name for spec in model.inputs}, {spec.name for spec in model.outputs}
        optional = {option.name for option in model.configuration.inputs if option.optional}
        given, taken = {tensor for tensor, _ in step.inputs}, {tensor for tensor, _ in step.outputs}
        for tensor in sorted(given - inputs):
            yield f"{place}: expected input_map of {sorted(inputs)}, got '{tensor}'"
        for tensor in sorted(inputs - given - optional):
            yield f"{place}: expected input '{tensor}' in input_map, got {sorted(given)}"
        for tensor in sorted(taken - outputs):
            yield f"{place}: expected output_map of {sorted(outputs)}, got '{tensor}'"


def _tensors_fit(
    description: ModelDescription, ensemble: Ensemble, models: Sequence[ModelDescription]
) -> Iterator[str]:
    known = {spec.name: _tensor(description, spec) for spec in (*description.inputs, *description.outputs)}
    for step, model in zip(ensemble.steps, models, strict=True):
        made = {spec.name: spec for spec in model.outputs}
        for inside, outside in step.outputs:
            if inside in made:
                known.setdefault(outside, _tensor(model, made[inside]))
    for number, (step, model) in enumerate(zip(ensemble.steps, models, strict=True)):
        specs = {spec.name: spec for spec in model.inputs}, {spec.name: spec for spec in model.outputs}
        for side, pairs in zip(specs, (step.inputs, step.outputs), strict=True):
            for inside, outside in pairs:
                if inside in side and outside in known:
                    problem = _differ(outside, known[outside], _tensor(model, side[inside]))
                    if problem:
                        yield f"{name_of_step(number, step)}: {problem}"


def _tensor(model: ModelDescription, spec: TensorSpec) -> _Tensor:
    return _Tensor(model.name, spec.datatype, (-1, *spec.shape) if model.max_batch_size else spec.shape)


def _differ(name: str, one: _Tensor, other: _Tensor) -> str:
    if one.datatype != other.datatype:
        return (
            f"tensor '{name}': inconsistent data type: {one.datatype} is inferred from model {one.owner} while "
            f"{other.datatype} is inferred from model {other.owner}"
        )
    fits = len(one.shape) == len(other.shape) and all(
        -1 in (a, b) or a == b for a, b in zip(one.shape, other.shape, strict=False)
    )
    if fits:
        return ""
    return (
        f"tensor '{name}': inconsistent shape: {list(one.shape)} is inferred from model {one.owner} while "
        f"{list(other.shape)} is inferred from model {other.owner}"
    )
