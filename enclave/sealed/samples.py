"""Inputs made up for a model, for which its answers are computed and sealed as known answers.

The same for every run (a fixed seed): what makes them secret is not their choice but that they lie in the payload.
Two cases: a single row, and several, because a batch takes another path than one row.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.known_answer_file import NamedTensor
from hermetic.enclave.messages import TensorSpec
from hermetic.enclave.sealed.description import Range, SampleRules
from hermetic.enclave.sealed.golden import NUMPY_OF, to_tensor
from hermetic.errors import ConfigurationError

__all__ = ["make_inputs"]

SEED: Final = 20_261_122
INTEGERS: Final = (0.0, 2.0)  # indices into something whose length nobody told us: the smallest are safe
_WORDS: Final = ("", "a", "sealed model", "Grüße", "0123456789" * 4)


def make_inputs(specs: Sequence[TensorSpec], max_batch_size: int, rules: SampleRules) -> list[tuple[NamedTensor, ...]]:
    """Return the inputs of each case; `ConfigurationError` where a rule does not fit the model."""
    unknown = rules.ranges.keys() - {spec.name for spec in specs}
    if unknown:
        raise ConfigurationError(f"known_answer.ranges: expected names of inputs, got {sorted(unknown)}")
    generator = np.random.default_rng(SEED)
    rows = sorted({1, min(rules.rows, max_batch_size)}) if max_batch_size else [0]
    return [tuple(_make(spec, count, rules, generator) for spec in specs) for count in rows]


def _make(spec: TensorSpec, rows: int, rules: SampleRules, generator: np.random.Generator) -> NamedTensor:
    shape = tuple(rules.free_dimension if size < 0 else size for size in spec.shape)
    shape = (rows, *shape) if rows else shape
    if spec.datatype == BYTES:
        return to_tensor(spec, np.array(generator.choice(_WORDS, shape), object))
    return to_tensor(spec, _numbers(spec, shape, rules.ranges.get(spec.name), generator))


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
