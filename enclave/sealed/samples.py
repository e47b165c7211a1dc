"""Inputs made up for a model, for which its answers are computed and sealed as known answers.

The same for every run (a fixed seed): what makes them secret is not their choice but that they lie in the payload.
A single row, and several, because a batch takes another path than one row; and once more without optional inputs.
Hidden inputs are the model's too: the single row is a sequence of its own, the several are in the middle of theirs.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hermetic.enclave.configuration import Control
from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.known_answer_file import KnownAnswer, ModelSpecs, NamedTensor
from hermetic.enclave.made_batches import ReadFile, hidden_inputs
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.model_tensors import ModelTensor, model_tensors
from hermetic.enclave.sealed.description import Range, SampleRules
from hermetic.enclave.sealed.golden import NUMPY_OF, to_tensor
from hermetic.errors import ConfigurationError

__all__ = ["make_inputs", "with_hidden_inputs"]

SEED: Final = 20_261_122
INTEGERS: Final = (0.0, 2.0)  # indices into something whose length nobody told us: the smallest are safe
_WORDS: Final = ("", "a", "sealed model", "Grüße", "0123456789" * 4)

Case = tuple[NamedTensor, ...]


def make_inputs(model: ModelSpecs, rules: SampleRules, read: ReadFile) -> list[Case]:
    """Return the inputs of each case; `ConfigurationError` where a rule does not fit the model.

    `read` gives a file of the model: the content that a state starts with.
    """
    inputs, _ = model_tensors(model.configuration, model.inputs, model.outputs)
    unknown = rules.ranges.keys() - {tensor.spec.name for tensor in inputs}
    if unknown:
        raise ConfigurationError(f"known_answer.ranges: expected names of inputs, got {sorted(unknown)}")
    maker = _Maker(model, rules, read)
    largest = model.max_batch_size
    cases = [maker.case(count) for count in (sorted({1, min(rules.rows, largest)}) if largest else [0])]
    optional = {tensor.spec.name for tensor in inputs if tensor.optional}
    if optional:
        cases.append(tuple(tensor for tensor in cases[-1] if tensor.name not in optional))
    return cases


def with_hidden_inputs(case: KnownAnswer, model: ModelSpecs, read: ReadFile) -> KnownAnswer:
    """Return a publisher's case with the controls and states that it leaves out, as a lone request has them."""
    inputs, _ = model_tensors(model.configuration, model.inputs, model.outputs)
    by_name = {tensor.name: tensor for tensor in case.inputs}
    rows = [by_name[t.spec.name].shape[:1] for t in inputs if not t.whole and t.spec.name in by_name]
    count = rows[0][0] if model.max_batch_size and rows and rows[0] else int(model.max_batch_size > 0)
    made = {name for one in model.configuration.batch_inputs for name in one.names}
    hidden = hidden_inputs(model.configuration, {}, count, read)
    missing = [tensor for name, tensor in hidden.items() if name not in by_name and name not in made]
    return case._replace(inputs=(*case.inputs, *missing))


class _Maker:
    """Makes the cases of one model, one after the other."""

    def __init__(self, model: ModelSpecs, rules: SampleRules, read: ReadFile) -> None:
        self._model = model
        self._rules = rules
        self._read = read
        self._generator = np.random.default_rng(SEED)
        self._visible = model_tensors(model.configuration, model.inputs, model.outputs)[0][: len(model.inputs)]

    def case(self, rows: int) -> Case:
        """Return one batch of `rows` rows; 0 for a model that is not batched."""
        shapes = {tensor.spec.name: self._shapes(tensor, rows) for tensor in self._visible}
        made = [self._make(tensor, shapes[tensor.spec.name], rows) for tensor in self._visible]
        hidden = hidden_inputs(self._model.configuration, shapes, rows, self._read)
        if rows > 1:
            self._vary(hidden, rows)
        return (*made, *hidden.values())

    def _shapes(self, tensor: ModelTensor, rows: int) -> list[tuple[int, ...]]:
        """Return each request's shape: alike, but for ragged inputs, each of which is one shorter than the last."""
        free = self._rules.free_dimension
        requests = []
        for at in range(max(1, rows)):
            size = max(1, free - at) if tensor.whole else free
            shape = tuple(size if dimension < 0 else dimension for dimension in tensor.spec.shape)
            requests.append((1, *shape) if rows else shape)
        return requests

    def _make(self, tensor: ModelTensor, shapes: Sequence[tuple[int, ...]], rows: int) -> NamedTensor:
        if tensor.whole:
            return self._fill(tensor.spec, (sum(map(prod, shapes)),))
        return self._fill(tensor.spec, (rows, *shapes[0][1:]) if rows else shapes[0])

    def _fill(self, spec: TensorSpec, shape: tuple[int, ...]) -> NamedTensor:
        if spec.datatype == BYTES:
            return to_tensor(spec, np.array(self._generator.choice(_WORDS, shape), object))
        return to_tensor(spec, _numbers(spec, shape, self._rules.ranges.get(spec.name), self._generator))

    def _vary(self, hidden: dict[str, NamedTensor], rows: int) -> None:
        """Put the rows into the middle of sequences: every second control is false, states hold something."""
        sequence = self._model.configuration.sequence_batching
        if sequence is None:
            return
        for control in sequence.controls:
            if control.false_true is not None:
                hidden[control.name] = _alternating(control, rows)
        for state in sequence.states:
            spec = TensorSpec(name=state.input_name, datatype=state.datatype, shape=state.start_shape)
            hidden[state.input_name] = self._fill(spec, (rows, *state.start_shape))


def _alternating(control: Control, rows: int) -> NamedTensor:
    values = [(control.false_true or (0, 1))[row % 2] for row in range(rows)]
    spec = TensorSpec(name=control.name, datatype=control.datatype, shape=(1,))
    return to_tensor(spec, np.array(values).astype(NUMPY_OF[control.datatype]).reshape(rows, 1))


def _numbers(
    spec: TensorSpec, shape: tuple[int, ...], span: Range | None, generator: np.random.Generator
) -> npt.NDArray[Any]:
    dtype = np.dtype(NUMPY_OF[spec.datatype])
    is_float = spec.datatype in ("FP16", "FP32", "FP64", "BF16")
    if span is not None and not span[0] < span[1]:
        raise ConfigurationError(f"known_answer.ranges: {spec.name!r}: expected low below high, got {span}")
    if is_float and span is None:
        return generator.standard_normal(shape).astype(dtype)
    low, high = span or INTEGERS
    if is_float:
        return generator.uniform(low, high, shape).astype(dtype)
    return generator.integers(int(low), int(high), shape).astype(dtype)
