"""Where tensors lie in the memory that a front end shares with a worker: pure arithmetic, done alike on both sides.

One memfd serves one front end at one worker. It holds `buffers` equal buffers; a buffer holds one region per input
and one per output, each sized for the largest batch. Rows of one input follow each other without gaps, so a batch is
assembled by writing each request's rows at the next offset, and the worker reads it as one tensor. After the buffers
lie the few files of the payload that a front end needs; the worker writes them once, and the front end checks them by
their digests.
"""

from dataclasses import dataclass
from math import prod
from typing import Final

from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import FrontEndFile, ModelDescription, TensorSpec
from hermetic.errors import ConfigurationError

ALIGNMENT: Final = 64  # bytes: a cache line, and what vectorised kernels like
PAGE: Final = 4096  # bytes
SHARED_MEMORY_LIMIT: Final = 8 * 2**30  # bytes of one shared memory


@dataclass(frozen=True, slots=True)
class Region:
    """One tensor's place: `offset` from the start of its buffer, and `capacity`, in bytes."""

    spec: TensorSpec
    offset: int
    capacity: int


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Where one of the files that front ends need lies in the shared memory, in bytes."""

    file: FrontEndFile
    offset: int


@dataclass(frozen=True, slots=True)
class BufferLayout:
    """The whole shared memory: buffer `i` starts at `i * stride`, files come after the last; `size` in bytes."""

    buffers: int
    stride: int
    inputs: tuple[Region, ...]
    outputs: tuple[Region, ...]
    max_rows: int
    files: tuple[FilePlace, ...]

    @property
    def size(self) -> int:
        """Bytes of the shared memory."""
        end = self.buffers * self.stride
        return _round_up(max([end, *(place.offset + place.file.size for place in self.files)]), PAGE)


def row_bytes(spec: TensorSpec) -> int | None:
    """Bytes of one row of `spec` (of the whole tensor where there is no batching); None where it varies."""
    element = ELEMENT_BYTES[spec.datatype]
    if element is None or -1 in spec.shape:
        return None
    return element * prod(spec.shape)


def layout(description: ModelDescription, buffers: int, variable_tensor_bytes: int) -> BufferLayout:
    """Return the layout for a model.

    `variable_tensor_bytes` is the capacity of a tensor of free shape or of datatype BYTES, for a whole batch.
    Raises `ConfigurationError` where the memory would be larger than `SHARED_MEMORY_LIMIT`.
    """
    max_rows = max(1, description.max_batch_size)
    offset = 0
    inputs: list[Region] = []
    outputs: list[Region] = []
    for specs, regions in ((description.model_inputs, inputs), (description.model_outputs, outputs)):
        for spec in specs:
            row = row_bytes(spec)
            capacity = variable_tensor_bytes if row is None else row * max_rows
            regions.append(Region(spec, offset, capacity))
            offset = _round_up(offset + capacity, ALIGNMENT)
    stride = max(PAGE, _round_up(offset, PAGE))
    files: list[FilePlace] = []
    end = buffers * stride
    for file in description.front_end_files:
        files.append(FilePlace(file, end))
        end = _round_up(end + file.size, ALIGNMENT)
    result = BufferLayout(buffers, stride, tuple(inputs), tuple(outputs), max_rows, tuple(files))
    if result.size > SHARED_MEMORY_LIMIT:
        raise ConfigurationError(
            f"model {description.name}: wanted at most {SHARED_MEMORY_LIMIT} bytes of shared memory, got {result.size} "
            f"({buffers} buffers of {result.stride}): lower max_batch_size or buffers"
        )
    return result


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
