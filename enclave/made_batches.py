"""Batches that are made up and not sent by anyone: what a hidden input holds where nobody says. Pure.

Used by warm-ups (warm_up.py) and, when a model is sealed, by known answers (sealed/samples.py).
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Final

from hermetic.enclave.batch_inputs import batch_input
from hermetic.enclave.configuration import Control, ModelConfiguration, State
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.known_answer_file import NamedTensor

__all__ = ["ReadFile", "hidden_inputs", "zeros"]

CORRELATION_ID: Final = 1  # of a sequence that nobody began
_CODES: Final = {"UINT64": "Q", "INT64": "q", "UINT32": "I", "INT32": "i", "FP32": "f", "BOOL": "?"}

ReadFile = Callable[[str], bytes | memoryview]


def hidden_inputs(
    configuration: ModelConfiguration, shapes: Mapping[str, Sequence[tuple[int, ...]]], rows: int, read: ReadFile
) -> dict[str, NamedTensor]:
    """Return every hidden input for `rows` rows (0: not batched), each a sequence of one request that begins and ends.

    `shapes`: of each visible input, one shape per request, with its batch dimension. `read` gives a file of the
    payload.
    """
    made: dict[str, NamedTensor] = {}
    sequence = configuration.sequence_batching
    if sequence is not None:
        for control in sequence.controls:
            made[control.name] = _control(control, rows)
        for state in sequence.states:
            made[state.input_name] = _state(state, rows, read)
    for batch in configuration.batch_inputs:
        shape, raw = batch_input(batch, shapes.get(batch.sources[0], ()))
        made |= {name: NamedTensor(name, batch.datatype, shape, raw) for name in batch.names}
    return made


def zeros(datatype: str, count: int) -> bytes:
    """Return `count` elements of zero; of BYTES, empty strings."""
    return bytes(4 * count if datatype == BYTES else count * (ELEMENT_BYTES[datatype] or 0))


def _control(control: Control, rows: int) -> NamedTensor:
    value: float = CORRELATION_ID if control.false_true is None else control.false_true[1]
    if control.datatype == BYTES:
        text = str(CORRELATION_ID).encode()
        one = struct.pack("<I", len(text)) + text
    else:
        code = _CODES[control.datatype]
        one = struct.pack(f"<{code}", value if code == "f" else int(value))
    return NamedTensor(control.name, control.datatype, (rows, 1) if rows else (1,), one * max(1, rows))


def _state(state: State, rows: int, read: ReadFile) -> NamedTensor:
    shape = state.start_shape
    one = zeros(state.datatype, prod(shape)) if state.initial_file is None else bytes(read(state.initial_file))
    return NamedTensor(state.input_name, state.datatype, (rows, *shape) if rows else shape, one * max(1, rows))
