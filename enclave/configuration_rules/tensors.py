"""Rules for inputs and outputs: reshape, optional and ragged inputs, labels, tensors that callers never see."""

import re
from collections.abc import Iterator, Sequence
from math import prod
from typing import Final

from hermetic.enclave.configuration import BatchInput, BatchOutput, InputOptions, OutputOptions, hidden_tensors
from hermetic.enclave.configuration_rules.subject import Subject, repeated
from hermetic.enclave.model_description import TENSORS_LIMIT, TensorSpec

__all__ = ["reshape_problem", "tensor_problems"]

IMAGE_RANK: Final = 3
RESERVED_PARAMETERS: Final = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers"}
)
"""Parameters of a request that mean something; a response does not give them another meaning."""
METRIC_TAG: Final = re.compile("[a-zA-Z0-9][a-zA-Z0-9_]*")
"""What is a label's name in Prometheus with one _ before it; with two it would be Prometheus' own."""


def tensor_problems(subject: Subject) -> list[str]:
    """Return what does not fit between the tensors of a model and what its configuration says of them."""
    return [*_options(subject), *_inputs(subject), *_hidden(subject), *_batch_tensors(subject), *_parameters(subject)]


def reshape_problem(dims: Sequence[int], reshape: Sequence[int], *, batched: bool) -> str | None:
    """Return why a tensor of shape `dims` cannot be seen as `reshape`, None where it can.

    Free dimensions must pair up in order, with equally many elements between them, so that the shape of one follows
    from the other without a guess (Triton's rule).
    """
    if not reshape and not batched:
        return "an empty reshape needs batching: a scalar tensor is not supported"
    if 0 in (*dims, *reshape):
        return f"expected dimensions of at least 1, or -1, got {list(dims)} and {list(reshape)}"
    if _between_free(dims) != _between_free(reshape):
        return f"expected as many elements as in dims {list(dims)}, got reshape {list(reshape)}"
    return None


def _between_free(shape: Sequence[int]) -> list[int]:
    """Return the elements before, between and after the free dimensions."""
    parts: list[list[int]] = [[]]
    for dimension in shape:
        if dimension < 0:
            parts.append([])
        else:
            parts[-1].append(dimension)
    return [prod(part) for part in parts]


def _options(subject: Subject) -> Iterator[str]:
    configuration = subject.configuration
    sides: tuple[tuple[str, Sequence[InputOptions | OutputOptions], Sequence[TensorSpec]], ...] = (
        ("input", configuration.inputs, subject.inputs),
        ("output", configuration.outputs, subject.outputs),
    )
    for side, options, specs in sides:
        by_name = {spec.name: spec for spec in specs}
        for name in repeated(option.name for option in options):
            yield f"{side} {name!r}: expected options once, got them twice"
        for option in options:
            spec = by_name.get(option.name)
            if spec is None:
                yield f"{side} {option.name!r}: expected one of {sorted(by_name)}"
            elif option.reshape is not None:
                why = reshape_problem(spec.shape, option.reshape, batched=subject.max_batch_size > 0)
                if why:
                    yield f"{side} {option.name!r}.reshape: {why}"


def _inputs(subject: Subject) -> Iterator[str]:
    options = {option.name: option for option in subject.configuration.inputs}
    ranks = {spec.name: len(spec.shape) for spec in subject.inputs}
    for option in options.values():
        if option.format != "NONE" and ranks.get(option.name, IMAGE_RANK) != IMAGE_RANK:
            yield f"input {option.name!r}.format: expected 3 dims for {option.format}, got {ranks[option.name]}"
        if option.optional and subject.format not in ("onnx", "ensemble"):
            yield f"input {option.name!r}.optional: expected an ONNX model, got {subject.format}: it takes every input"
        if option.ragged and not subject.max_batch_size:
            yield f"input {option.name!r}.ragged: expected a model that is batched, got max_batch_size 0"
        if option.ragged and option.reshape is not None:
            yield f"input {option.name!r}: expected ragged or reshape, got both"
    some_needed = any(not (spec.name in options and options[spec.name].optional) for spec in subject.inputs)
    if subject.max_batch_size and not some_needed:
        yield "inputs: expected at least one that is not optional: without it nobody knows the rows of a request"


def _hidden(subject: Subject) -> Iterator[str]:
    hidden = hidden_tensors(subject.configuration, {spec.name: spec for spec in subject.outputs})
    seen = {spec.name for spec in subject.inputs}
    for name, _, _ in hidden.inputs:
        if name in seen:
            yield f"input {name!r}: expected a tensor that callers do not send, or one meaning for it, got two"
        seen.add(name)
    for side, own, more in (("inputs", subject.inputs, hidden.inputs), ("outputs", subject.outputs, hidden.outputs)):
        if len(own) + len(more) > TENSORS_LIMIT:
            yield f"{side}: expected at most {TENSORS_LIMIT} with the hidden ones, got {len(own) + len(more)}"


def _batch_tensors(subject: Subject) -> Iterator[str]:
    batch: Sequence[BatchInput | BatchOutput] = (
        *subject.configuration.batch_inputs,
        *subject.configuration.batch_outputs,
    )
    if batch and not subject.max_batch_size:
        yield "batch_input and batch_output: expected a model that is batched, got max_batch_size 0"
    inputs = {spec.name for spec in subject.inputs}
    outputs = {spec.name for spec in subject.outputs}
    for one in batch:
        label = f"{'batch_input' if isinstance(one, BatchInput) else 'batch_output'} {list(one.names)}"
        if len(one.sources) != 1 or one.sources[0] not in inputs:
            yield f"{label}.source_input: expected one of the inputs {sorted(inputs)}, got {list(one.sources)}"
        if isinstance(one, BatchOutput) and not set(one.names) <= outputs:
            yield f"{label}.target_name: expected some of the outputs {sorted(outputs)}"
    for name in repeated(name for one in subject.configuration.batch_outputs for name in one.names):
        yield f"batch_output {name!r}: expected once, got it twice"


def _parameters(subject: Subject) -> Iterator[str]:
    configuration = subject.configuration
    for label, pairs in (
        ("response parameter", configuration.response_parameters),
        ("parameters", configuration.parameters),
        ("metric_tags", configuration.metric_tags),
    ):
        for name in repeated(name for name, _ in pairs):
            yield f"{label} {name!r}: expected once, got it twice"
    for name, _ in configuration.response_parameters:
        if name in RESERVED_PARAMETERS or name.startswith("triton_"):
            yield f"response parameter {name!r}: expected another name, got one that the protocol reserves"
    for name, _ in configuration.metric_tags:
        if not METRIC_TAG.fullmatch(name):
            yield f"metric_tags {name!r}: expected letters, digits and _ (not first), for a label of Prometheus"
