"""What a model of sequences is given beside its callers' tensors: controls, and the states that are kept for it.

A row in which no request runs has zeros everywhere, so that its READY, if the model has one, must be written too: false
is not zero for every model. States are copied out of shared memory when a batch has been answered; where it failed they
stay what they were, as in Triton.
"""

import struct
from collections.abc import Mapping
from collections.abc import Sequence as Many
from math import prod
from typing import Final

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.configuration import Control, SequenceBatching
from hermetic.enclave.configuration import State as StateOptions
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.model_description import ModelDescription
from hermetic.server.foreign import Foreign
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.sequence_call import correlation
from hermetic.server.sequences import Sequence, SequenceWork, State
from hermetic.server.slots import Slot
from hermetic.server.work import Work

_FLAGS: Final = {"BOOL": "<?", "INT32": "<i", "FP32": "<f"}
_SMALLEST_IDS: Final = 2**31 - 1  # ids that every datatype of CORRID can hold
_NO_STRING: Final = 4  # bytes of an empty element of BYTES: its length


class SequenceTensors:
    """Fills the hidden inputs of batches of sequences, and keeps the states: a `HiddenTensors`."""

    def __init__(
        self,
        description: ModelDescription,
        sequence: SequenceBatching,
        capacities: Many[int],
        files: Mapping[str, bytes],
    ) -> None:
        """`capacities`: bytes per hidden input; `files`: the content of those that states begin with."""
        self._batched = description.max_batch_size > 0
        self._controls = [_ControlInput(control) for control in sequence.controls]
        self._states = sequence.states
        self._initial = [(state.start_shape, _initial(state, files)) for state in sequence.states]
        self._capacities = tuple(capacities)
        names = [spec.name for spec in description.model_outputs]
        self._outputs = [names.index(state.output_name) for state in sequence.states]
        self._start_shapes = tuple(shape for shape, _ in self._initial)

    def shapes(self, sequence: Sequence, work: SequenceWork) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the states with which `work` will run: those of one batch must be the same."""
        return self._start_shapes if work.starts else tuple(state.shape for state in sequence.states)

    def begin(self, sequence: Sequence) -> None:
        """Give `sequence` the states that a sequence starts with."""
        sequence.forget_states()
        sequence.states = [State(shape, bytearray(data)) for shape, data in self._initial]

    def fit(self, chosen: Mapping[int, SequenceWork], rows: int) -> bool:
        """Whether the hidden inputs of these requests, by row, have room in a buffer."""
        sizes = [self._sizes(chosen.get(row), next(iter(chosen.values()))) for row in range(rows)]
        return all(sum(column) <= most for column, most in zip(zip(*sizes, strict=True), self._capacities, strict=True))

    def write(self, slot: Slot[Work], memory: Many[Foreign]) -> list[Tensor]:
        """Write controls and states of every row of the batch in `slot`."""
        by_row = {work.row: work for work in slot.entries if isinstance(work, SequenceWork)}
        some = next(iter(by_row.values()))
        columns = [[control.content(by_row.get(row)) for row in range(slot.rows)] for control in self._controls] + [
            [self._state(by_row.get(row), some, at) for row in range(slot.rows)] for at in range(len(self._states))
        ]
        shapes = [(1,)] * len(self._controls) + [state.shape for state in _of(some).states]
        head = (slot.rows,) if self._batched else ()
        tensors = []
        for place, column, shape in zip(memory, columns, shapes, strict=True):
            at = 0
            for content in column:
                place.put(content, at)
                at += len(content)
            tensors.append(Tensor(at, head + shape))
        return tensors

    def answered(self, slot: Slot[Work], outputs: Many[Output]) -> None:
        """Keep the states that the model has written for each sequence."""
        for work in slot.entries:
            if not isinstance(work, SequenceWork) or not self._states:
                continue
            sequence = _of(work)
            fresh = []
            for at in self._outputs:
                shape, data = cut_rows(outputs[at], work.row, 1, slot.rows)
                fresh.append(State(shape[1:] if self._batched else shape, bytearray(data)))
            sequence.forget_states()
            sequence.states = fresh

    def _state(self, work: SequenceWork | None, some: SequenceWork, at: int) -> bytes | bytearray:
        if work is not None:
            return _of(work).states[at].data
        return bytes(_null_bytes(self._states[at].datatype, _of(some).states[at].shape))

    def _sizes(self, work: SequenceWork | None, some: SequenceWork) -> list[int]:
        shapes = self.shapes(_of(some), some)
        sizes = [len(control.content(work)) for control in self._controls]
        for at, shape in enumerate(shapes):
            if work is None:
                sizes.append(_null_bytes(self._states[at].datatype, shape))
            else:
                sizes.append(len(self._initial[at][1] if work.starts else _of(work).states[at].data))
        return sizes


class _ControlInput:
    """One control: what it is for a row."""

    def __init__(self, control: Control) -> None:
        self._kind = control.kind
        self._datatype = control.datatype
        false, true = control.false_true or (0.0, 0.0)
        self._values = (b"", b"") if control.kind == "CORRID" else (self._pack(false), self._pack(true))

    def content(self, work: SequenceWork | None) -> bytes:
        """Return the content for a request, or for a row without one."""
        if self._kind == "CORRID":
            if work is None:
                return bytes(_null_bytes(self._datatype, (1,)))
            name = work.call.id or _number(_of(work).number, self._datatype)  # iterative requests need not have one
            return correlation(self._datatype, name)
        if work is None:
            return self._values[False]
        return self._values[{"START": work.starts, "END": work.call.end, "READY": True}[self._kind]]

    def _pack(self, value: float) -> bytes:
        return struct.pack(_FLAGS[self._datatype], value if self._datatype == "FP32" else int(value))


def _of(work: SequenceWork) -> Sequence:
    if work.sequence is None:
        raise TypeError("a request that was never placed")
    return work.sequence


def _number(number: int, datatype: str) -> int | str:
    return str(number) if datatype == BYTES else 1 + number % _SMALLEST_IDS


def _initial(state: StateOptions, files: Mapping[str, bytes]) -> bytes:
    if state.initial_file is not None:
        return files[state.initial_file]
    return bytes(_null_bytes(state.datatype, state.start_shape))


def _null_bytes(datatype: str, shape: tuple[int, ...]) -> int:
    return (ELEMENT_BYTES[datatype] or _NO_STRING) * prod(shape)
