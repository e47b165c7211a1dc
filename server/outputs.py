"""What a worker says it wrote: checked against the model's description and our own layout, then cut by request. Pure.

The worker is hostile until proven otherwise: shapes and lengths in its frame are claims. Where a tensor lies follows
from the layout alone. Fixed-size elements mean something whatever their bytes, so they are passed on as they are,
unless the server acts on them itself; BYTES elements are copied first and walked afterwards, so that they cannot change
in between (foreign.py). Walking takes time of the thread that serves everyone: so many elements a batch and no more.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final, NamedTuple

from hermetic.enclave.batch_frames import STRINGS_LIMIT, Tensor
from hermetic.enclave.buffers import Region
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.errors import BorderError
from hermetic.server.contents import Buffer, string_ends
from hermetic.server.foreign import Foreign

CLAIMS_KEPT: Final = 256  # shapes of outputs, with the rows of their batch, that were found good

Parts = dict[int, tuple[tuple[int, ...], int, int]]
"""Of a scattered output: by the first row of a request, the shape of its part, and where its bytes start and end."""


class Output(NamedTuple):
    """One output of a whole batch. `row_ends`: where each row's bytes end, for BYTES; else rows are of equal size.

    A scattered output has `Parts` there.
    """

    shape: tuple[int, ...]
    data: Buffer
    row_ends: list[int] | Parts | None


class Claims:
    """Checks what a worker says of its outputs against the regions they lie in. A claim that was good is good again.

    `batched`: the first dimension of every output is the row. `acted_on`: the server decides by outputs or keeps them,
    and does not only pass them on.
    """

    def __init__(self, regions: Sequence[Region], *, batched: bool, acted_on: bool = False) -> None:
        self.regions = tuple(regions)
        self._batched = batched
        self._acted_on = acted_on
        self._strings = [ELEMENT_BYTES[region.spec.datatype] is None for region in regions]
        self._good: set[tuple[tuple[Tensor, ...], int]] = set()

    def outputs(self, memory: Sequence[Foreign], tensors: tuple[Tensor, ...], rows: int) -> list[Output]:
        """Return the outputs that `tensors` says lie in `memory`, one piece a region; `BorderError` if they cannot."""
        if (tensors, rows) not in self._good:
            self._check(tensors, rows)
        outputs = []
        for region, place, (nbytes, shape), strings in zip(self.regions, memory, tensors, self._strings, strict=True):
            if strings:
                outputs.append(_strings(region, place.copied(nbytes), shape, rows))
            else:
                outputs.append(Output(shape, place.copied(nbytes) if self._acted_on else place.passed_on(nbytes), None))
        return outputs

    def check_count(self, tensors: Sequence[Tensor]) -> None:
        """`BorderError` unless there is one tensor per region."""
        if len(tensors) != len(self.regions):
            raise BorderError(f"done frame: wanted {len(self.regions)} outputs, got {len(tensors)}")
        strings = sum(prod(shape) for (_, shape), is_strings in zip(tensors, self._strings, strict=True) if is_strings)
        if strings > STRINGS_LIMIT:
            raise BorderError(f"done frame: wanted at most {STRINGS_LIMIT} elements of BYTES, got {strings}")

    def _check(self, tensors: tuple[Tensor, ...], rows: int) -> None:
        self.check_count(tensors)
        for region, tensor in zip(self.regions, tensors, strict=True):
            _check_claim(region, tensor, (rows, *region.spec.shape) if self._batched else region.spec.shape)
        if len(self._good) >= CLAIMS_KEPT:
            self._good.clear()
        self._good.add((tensors, rows))


def checked_output(region: Region, place: Foreign, tensor: Tensor, wanted: tuple[int, ...], rows: int) -> Output:
    """Return one output, which must be of the shape `wanted`, -1 being free; BYTES are cut into `rows` equal rows."""
    _check_claim(region, tensor, wanted)
    if ELEMENT_BYTES[region.spec.datatype] is None:
        return _strings(region, place.copied(tensor.nbytes), tensor.shape, rows)
    return Output(tensor.shape, place.passed_on(tensor.nbytes), None)


def scattered(output: Output, shapes: Mapping[int, tuple[int, ...]]) -> Output:
    """Return an output of one element per element of `shapes`, which are those of the requests by their first rows.

    The elements of one request follow those of the one before; each request gets them in its own shape.
    """
    if len(shapes) == 1:
        return Output(next(iter(shapes.values())), output.data, None)
    ends = output.row_ends
    size = len(output.data) // max(1, output.shape[0])
    parts: Parts = {}
    element = 0
    for row, shape in shapes.items():
        first, element = element, element + prod(shape)
        if isinstance(ends, list):
            parts[row] = (shape, ends[first - 1] if first else 0, ends[element - 1] if element else 0)
        else:
            parts[row] = (shape, first * size, element * size)
    return Output(output.shape, output.data, parts)


def cut_rows(output: Output, row: int, rows: int, total: int) -> tuple[tuple[int, ...], Buffer]:
    """Return shape and bytes of `rows` rows from `row` on, of a batched output of `total` rows."""
    if rows == total:
        return output.shape, output.data
    ends = output.row_ends
    if ends is None:
        size = len(output.data) // total
        start, end = row * size, (row + rows) * size
    elif isinstance(ends, list):
        start = ends[row - 1] if row else 0
        end = ends[row + rows - 1]
    else:
        shape, start, end = ends[row]
        return shape, output.data[start:end]
    return (rows, *output.shape[1:]), output.data[start:end]


def _check_claim(region: Region, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    spec = region.spec
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
    per_row = count // max(1, rows)
    row_ends = [ends[(row + 1) * per_row - 1] for row in range(rows)] if per_row else [0] * rows
    return Output(shape, data, row_ends)
