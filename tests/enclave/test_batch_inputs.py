"""Inputs made from shapes: Triton's six kinds."""

import struct
from typing import Any

import pytest

from hermetic.enclave.batch_inputs import batch_input
from hermetic.enclave.configuration import BatchInput
from hermetic.errors import InvalidRequestError

SHAPES = [(1, 3), (2, 2), (1, 0)]  # requests of 3, 4 and no elements


@pytest.mark.parametrize(
    ("kind", "shape", "values"),
    [
        ("BATCH_ELEMENT_COUNT", (3,), (3, 4, 0)),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", (3,), (3, 7, 7)),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", (4,), (0, 3, 7, 7)),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", (4,), (0, 0, 0, 0)),
        ("BATCH_ITEM_SHAPE", (4, 1), (3, 2, 2, 0)),
        ("BATCH_ITEM_SHAPE_FLATTEN", (4,), (3, 2, 2, 0)),
    ],
)
@pytest.mark.parametrize(("datatype", "code"), [("FP32", "f"), ("INT32", "i")])
def test_kinds(kind: Any, shape: tuple[int, ...], values: tuple[int, ...], datatype: Any, code: str) -> None:
    made = batch_input(BatchInput(kind=kind, names=("n",), datatype=datatype, sources=("x",)), SHAPES)
    assert made.shape == shape
    assert struct.unpack(f"<{len(values)}{code}", made.raw) == values


def test_shapes_of_higher_rank() -> None:
    batch = BatchInput(kind="BATCH_ITEM_SHAPE", names=("n",), datatype="INT32", sources=("x",))
    assert batch_input(batch, [(2, 5, 6), (1, 7, 8)]).shape == (3, 2)


@pytest.mark.parametrize("kind", ["BATCH_ITEM_SHAPE", "BATCH_ITEM_SHAPE_FLATTEN"])
def test_a_size_that_no_int32_holds_is_refused(kind: Any) -> None:
    """A request without elements may say any size beside the 0."""
    batch = BatchInput(kind=kind, names=("n",), datatype="INT32", sources=("x",))
    with pytest.raises(InvalidRequestError, match="2147483647"):
        batch_input(batch, [(1, 0, 2**35)])
