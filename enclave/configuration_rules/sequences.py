"""Rules for models whose requests belong together: controls, states, strategies; and for decoupled answers."""

import math
from collections.abc import Iterator
from typing import Final

from hermetic.enclave.configuration import (
    FINAL_OUTPUT,
    ITERATIONS_LIMIT,
    MAX_ITERATIONS,
    Control,
    ModelConfiguration,
    SequenceBatching,
    State,
)
from hermetic.enclave.configuration_rules.subject import Subject, element_bytes, repeated
from hermetic.enclave.datatypes import ELEMENT_BYTES

__all__ = ["sequence_problems"]

INITIAL_STATE_LIMIT: Final = 64 << 20  # bytes of a state that a sequence starts with; a front end has it for each model
FLAG_DATATYPES: Final[tuple[str, ...]] = ("BOOL", "INT32", "FP32")  # of START, READY and END
CORRELATION_DATATYPES: Final[tuple[str, ...]] = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")
_INT32: Final = range(-(2**31), 2**31)


def sequence_problems(subject: Subject) -> list[str]:
    """Return what does not fit in `sequence_batching`, and between it and a decoupled model."""
    sequence = subject.configuration.sequence_batching
    if sequence is None:
        return list(_only_iterative(subject.configuration))
    return [
        *_whole_rows(subject.configuration),
        *_controls(sequence),
        *(problem for state in sequence.states for problem in _state(state, subject)),
        *_states(sequence),
        *_strategy(sequence, subject.largest_batch),
        *_iterative(sequence, subject),
    ]


def _controls(sequence: SequenceBatching) -> Iterator[str]:
    for what, values in (("name", [c.name for c in sequence.controls]), ("kind", [c.kind for c in sequence.controls])):
        for value in repeated(values):
            yield f"sequence_batching.control_input: expected each {what} once, got {value!r} twice"
    for control in sequence.controls:
        why = _control_problem(control)
        if why:
            yield f"sequence_batching.control_input {control.name!r}: {why}"


def _control_problem(control: Control) -> str | None:
    allowed = CORRELATION_DATATYPES if control.kind == "CORRID" else FLAG_DATATYPES
    if (control.false_true is None) != (control.kind == "CORRID"):
        return f"expected a false and a true value for START, READY and END only, got {control.false_true}"
    if control.datatype not in allowed:
        return f"expected a datatype of {', '.join(allowed)} for {control.kind}, got {control.datatype}"
    if control.false_true is not None and not all(_fits(control.datatype, value) for value in control.false_true):
        return f"expected values of {control.datatype}, got {list(control.false_true)}"
    return None


def _fits(datatype: str, value: float) -> bool:
    if datatype == "FP32":
        return math.isfinite(value) and abs(value) <= 3.4028234663852886e38  # noqa: PLR2004 - the largest FP32
    return value.is_integer() and int(value) in ((0, 1) if datatype == "BOOL" else _INT32)


def _states(sequence: SequenceBatching) -> Iterator[str]:
    for name in repeated(state.output_name for state in sequence.states):
        yield f"sequence_batching.state: expected each output once, got {name!r} twice"


def _state(state: State, subject: Subject) -> Iterator[str]:
    label = f"sequence_batching.state {state.input_name!r}"
    if state.datatype not in ELEMENT_BYTES:
        yield f"{label}.data_type: expected one of {', '.join(ELEMENT_BYTES)}, got {state.datatype}"
        return
    output = next((spec for spec in subject.outputs if spec.name == state.output_name), None)
    if output is not None and (output.datatype, output.shape) != (state.datatype, state.shape):
        yield (
            f"{label}: expected {state.datatype}{list(state.shape)} as output {state.output_name!r}, "
            f"got {output.datatype}{list(output.shape)}"
        )
    start = state.start_shape
    if len(start) != len(state.shape) or any(
        have < 0 or want not in (-1, have) for want, have in zip(state.shape, start, strict=False)
    ):
        yield f"{label}.initial_state.dims: expected a shape that fits {list(state.shape)}, got {list(start)}"
    elif (ELEMENT_BYTES[state.datatype] or 4) * math.prod(start) > INITIAL_STATE_LIMIT:
        yield f"{label}.initial_state.dims: expected at most {INITIAL_STATE_LIMIT} bytes, got {list(start)}"
    elif state.initial_file in subject.files:
        size = element_bytes(state.datatype, start)
        got = subject.files[state.initial_file or ""]
        if size is not None and size != got:
            yield f"{label}.initial_state: expected {size} bytes in {state.initial_file!r}, got {got}"


def _strategy(sequence: SequenceBatching, largest_batch: int) -> Iterator[str]:
    for size in sequence.preferred_batch_sizes:
        if size > largest_batch:
            yield f"sequence_batching.oldest.preferred_batch_size: expected at most {largest_batch}, got {size}"
    if sequence.strategy == "direct":
        if sequence.preferred_batch_sizes or sequence.max_candidate_sequences or sequence.preserve_ordering:
            yield "sequence_batching.direct: expected none of the members of oldest, got some"
    else:
        if sequence.max_candidate_sequences < 1:
            yield "sequence_batching.oldest.max_candidate_sequences: expected at least 1, got 0"
        if sequence.minimum_slot_utilization:
            yield "sequence_batching.oldest: expected none of the members of direct, got minimum_slot_utilization"


def _iterative(sequence: SequenceBatching, subject: Subject) -> Iterator[str]:
    if not sequence.iterative:
        yield from _only_iterative(subject.configuration)
        return
    final = _parameter(subject.configuration, FINAL_OUTPUT)
    most = _parameter(subject.configuration, MAX_ITERATIONS) or "1"
    if not (most.isascii() and most.isdigit() and len(most) <= len(str(ITERATIONS_LIMIT))):
        yield f"parameters: {MAX_ITERATIONS}: expected a number of 1 to {ITERATIONS_LIMIT}, got {most[:32]!r}"
    elif not 1 <= int(most) <= ITERATIONS_LIMIT:
        yield f"parameters: {MAX_ITERATIONS}: expected a number of 1 to {ITERATIONS_LIMIT}, got {most}"
    if not subject.configuration.decoupled:
        yield "sequence_batching.iterative_sequence: expected model_transaction_policy.decoupled, got false"
    output = next((spec for spec in subject.outputs if spec.name == final), None)
    if output is None:
        yield (
            f"sequence_batching.iterative_sequence: expected the parameter {FINAL_OUTPUT} to name one of the outputs "
            f"{sorted(spec.name for spec in subject.outputs)}, got {final!r}"
        )
    elif output.datatype not in ("BOOL", "INT32") or output.shape != (1,):
        got = f"{output.datatype}{list(output.shape)}"
        yield f"output {final!r}: expected BOOL[1] or INT32[1] as {FINAL_OUTPUT}, got {got}"


def _only_iterative(configuration: ModelConfiguration) -> Iterator[str]:
    for name in (FINAL_OUTPUT, MAX_ITERATIONS):
        if _parameter(configuration, name):
            yield f"parameters: {name}: expected an iterative sequence"


def _whole_rows(configuration: ModelConfiguration) -> Iterator[str]:
    """A row without a request must be possible, and each request is one row."""
    if any(options.ragged for options in configuration.inputs):
        yield "input.allow_ragged_batch: expected none with sequence_batching, got some"
    if any(options.optional for options in configuration.inputs):
        yield "input.optional: expected none with sequence_batching, got some"
    if configuration.batch_inputs or configuration.batch_outputs:
        yield "batch_input and batch_output: expected none with sequence_batching, got some"


def _parameter(configuration: ModelConfiguration, name: str) -> str:
    return dict(configuration.parameters).get(name, "")
