"""Inputs that are made from the shapes of a batch's requests, and not from their data. Pure.

For batches that the front end assembles, and for those that a worker makes itself (warm-ups, known answers).
Source: Triton's `BatchInput`; docs/spec/model-configuration.md section 2.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Final, NamedTuple

from hermetic.enclave.configuration import BatchInput
from hermetic.errors import InvalidRequestError

__all__ = ["MadeInput", "batch_input"]

LARGEST: Final = 2**31 - 1  # of a size that is told

Shapes = Sequence[tuple[int, ...]]


class MadeInput(NamedTuple):
    """One batch input: whole shape, without batch dimension, and raw content."""

    shape: tuple[int, ...]
    raw: bytes


def batch_input(batch: BatchInput, shapes: Shapes) -> MadeInput:
    """Return the input for requests whose source input has these `shapes`, each with its batch dimension.

    `InvalidRequestError` where a size is too large for an INT32: a shape may have any size beside one that is 0.
    """
    shape, values = _MAKE[batch.kind](shapes)
    if max(values, default=0) > LARGEST:
        raise InvalidRequestError(f"batch input {batch.names[0]!r}: expected sizes up to {LARGEST}, got {max(values)}")
    if not values:  # only the shape says something
        return MadeInput(shape, bytes(4 * prod(shape)))
    return MadeInput(shape, struct.pack(f"<{len(values)}{'f' if batch.datatype == 'FP32' else 'i'}", *values))


_Made = tuple[tuple[int, ...], Sequence[int]]


def _counts(shapes: Shapes) -> _Made:
    return (len(shapes),), [prod(shape) for shape in shapes]


def _accumulated(shapes: Shapes) -> _Made:
    return (len(shapes),), list(accumulate(prod(shape) for shape in shapes))


def _accumulated_with_zero(shapes: Shapes) -> _Made:
    return (len(shapes) + 1,), list(accumulate((prod(shape) for shape in shapes), initial=0))


def _largest_as_shape(shapes: Shapes) -> _Made:
    return (max(map(prod, shapes), default=0),), ()


def _item_shapes(shapes: Shapes) -> _Made:
    items = [shape[1:] for shape in shapes for _ in range(shape[0])]
    return (len(items), len(shapes[0]) - 1 if shapes else 0), [size for item in items for size in item]


def _flat_item_shapes(shapes: Shapes) -> _Made:
    _, sizes = _item_shapes(shapes)
    return (len(sizes),), sizes


_MAKE: Final[Mapping[str, Callable[[Shapes], _Made]]] = {
    "BATCH_ELEMENT_COUNT": _counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": _accumulated,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": _accumulated_with_zero,
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": _largest_as_shape,
    "BATCH_ITEM_SHAPE": _item_shapes,
    "BATCH_ITEM_SHAPE_FLATTEN": _flat_item_shapes,
}
