"""What a worker says it wrote: checked against the model's description and our own layout, then cut by request. Pure.

The worker is hostile until proven otherwise: shapes and lengths in its frame are claims. Where a tensor lies follows
from the layout alone. Fixed-size elements mean something whatever their bytes; BYTES elements are copied first and
walked afterwards, so that they cannot change in between.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from hermetic.enclave.buffers import Region
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.messages import Tensor
from hermetic.errors import BorderError
from hermetic.server.contents import Buffer, string_ends


class Output(NamedTuple):
    """One output of a whole batch. `row_ends`: where each row's bytes end, for BYTES; else rows are of equal size."""

    shape: tuple[int, ...]
    data: Buffer
    row_ends: list[int] | None


def checked_outputs(
    regions: Sequence[Region], memory: Sequence[memoryview], tensors: Sequence[Tensor], rows: int, *, batched: bool
) -> list[Output]:
    """Return the outputs that `tensors` says lie in `memory`, one view per region; `BorderError` if they cannot."""
    if len(tensors) != len(regions):
        raise BorderError(f"done frame: wanted {len(regions)} outputs, got {len(tensors)}")
    outputs = []
    for region, view, tensor in zip(regions, memory, tensors, strict=True):
        _check_claim(region, tensor, rows if batched else None)
        if ELEMENT_BYTES[region.spec.datatype] is None:
            outputs.append(_strings(region, bytes(view[: tensor.nbytes]), tensor.shape, rows))
        else:
            outputs.append(Output(tensor.shape, view[: tensor.nbytes], None))
    return outputs


def cut_rows(output: Output, row: int, rows: int, total: int) -> tuple[tuple[int, ...], Buffer]:
    """Return shape and bytes of `rows` rows from `row` on, of a batched output of `total` rows."""
    if rows == total:
        return output.shape, output.data
    if output.row_ends is None:
        size = len(output.data) // total
        start, end = row * size, (row + rows) * size
    else:
        start = output.row_ends[row - 1] if row else 0
        end = output.row_ends[row + rows - 1]
    return (rows, *output.shape[1:]), output.data[start:end]


def _check_claim(region: Region, tensor: Tensor, rows: int | None) -> None:
    spec = region.spec
    wanted = spec.shape if rows is None else (rows, *spec.shape)
    if len(tensor.shape) != len(wanted) or any(
        got < 0 or want not in (-1, got) for want, got in zip(wanted, tensor.shape, strict=True)
    ):
        raise BorderError(f"output '{spec.name}': wanted shape {list(wanted)}, got {list(tensor.shape)}")
    element = ELEMENT_BYTES[spec.datatype]
    if tensor.nbytes > region.capacity or (element is not None and tensor.nbytes != element * prod(tensor.shape)):
        raise BorderError(
            f"output '{spec.name}': wanted the bytes of shape {list(tensor.shape)}, at most {region.capacity}, "
            f"got {tensor.nbytes}"
        )


def _strings(region: Region, data: bytes, shape: tuple[int, ...], rows: int) -> Output:
    count = prod(shape)
    if 4 * count > len(data):  # each element has a length of four bytes; this also bounds the walk
        raise BorderError(f"output '{region.spec.name}': wanted {count} BYTES elements, got {len(data)} bytes")
    ends = string_ends(data, count)
    if len(ends) != count or (ends[-1] if ends else 0) != len(data):
        raise BorderError(
            f"output '{region.spec.name}': wanted {count} BYTES elements in {len(data)} bytes, got {len(ends)}"
        )
    per_row = count // rows
    row_ends = [ends[(row + 1) * per_row - 1] for row in range(rows)] if per_row else [0] * rows
    return Output(shape, data, row_ends)
