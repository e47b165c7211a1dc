"""Rules for ensembles: every tensor is made once, before it is used; and an ensemble is nothing else beside.

Whether its steps name models of this server, and whether tensors fit them, is known only where they are served.
"""

from collections.abc import Iterator

from hermetic.enclave.configuration import Ensemble, ModelConfiguration
from hermetic.enclave.configuration_rules.subject import Subject, repeated

__all__ = ["ensemble_problems"]


def ensemble_problems(subject: Subject) -> list[str]:
    """Return what does not fit in an ensemble, or between it and the model's format."""
    ensemble = subject.configuration.ensemble
    if (subject.format == "ensemble") != (ensemble is not None):
        got = "none" if ensemble is None else "one"
        return [f"ensemble_scheduling: expected one for the format ensemble only, got {got} for {subject.format}"]
    if ensemble is None:
        return []
    return [
        *_nothing_else(subject.configuration),
        *_pairs(ensemble),
        *_flow(ensemble, {spec.name for spec in subject.inputs}, [spec.name for spec in subject.outputs]),
    ]


def _nothing_else(configuration: ModelConfiguration) -> Iterator[str]:
    reshaped = [option.name for option in configuration.inputs if option.reshape is not None]
    reshaped += [option.name for option in configuration.outputs if option.reshape is not None]
    for name, is_there in (
        ("instance_group", configuration.instances != 1 or bool(configuration.gpus)),
        ("batch_input", bool(configuration.batch_inputs)),
        ("batch_output", bool(configuration.batch_outputs)),
        ("model_warmup", bool(configuration.warmup)),
        ("reshape", bool(reshaped)),
        ("allow_ragged_batch", any(option.ragged for option in configuration.inputs)),
    ):
        if is_there:
            yield f"{name}: expected none for an ensemble, which has no worker of its own: say it of its models"


def _pairs(ensemble: Ensemble) -> Iterator[str]:
    for number, step in enumerate(ensemble.steps):
        for side, pairs in (("input_map", step.inputs), ("output_map", step.outputs)):
            for name in repeated(name for name, _ in pairs):
                yield f"ensemble_scheduling.step[{number}].{side}: expected each tensor once, got {name!r} twice"


def _flow(ensemble: Ensemble, inputs: set[str], outputs: list[str]) -> Iterator[str]:
    made = [tensor for step in ensemble.steps for _, tensor in step.outputs]
    for name in repeated([*inputs, *made]):
        yield f"ensemble_scheduling: tensor {name!r}: expected to be made once, got it twice"
    for name in sorted(set(outputs) - set(made)):
        yield f"ensemble_scheduling: output {name!r}: expected a step that makes it, got none"
    for name in sorted(inputs - {tensor for step in ensemble.steps for _, tensor in step.inputs}):
        yield f"ensemble_scheduling: input {name!r}: expected a step that takes it, got none"
    known = set(inputs)
    waiting = list(enumerate(ensemble.steps))
    while True:
        ready = [(number, step) for number, step in waiting if {tensor for _, tensor in step.inputs} <= known]
        if not ready:
            break
        known |= {tensor for _, step in ready for _, tensor in step.outputs}
        waiting = [item for item in waiting if item not in ready]
    for number, step in waiting:
        missing = sorted({tensor for _, tensor in step.inputs} - known)
        yield f"ensemble_scheduling.step[{number}]: expected inputs that are made before it, got {missing}"
