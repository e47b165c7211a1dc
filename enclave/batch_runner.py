"""One batch, from the frame that announces it to the frame that answers it. The same for front ends and known answers.

    BatchBorder   what comes from a front end is checked and copied; what goes there is checked
    BatchRunner   one batch after the other, on the CPU; on a GPU: device_runner.py

Inputs are copied once into private memory before they are checked or used: the front end could change shared memory
between a runtime's check of an index and its use. Outputs are written where the front end reads them. Private copies
are zeroed after each batch, however it ends (memory.py). Source of shapes and places: the manifest and buffers.py,
never the frame.
"""

import mmap
import time
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Final

from hermetic.enclave.batch_frames import (
    STATUS_FAILED,
    STATUS_FULL,
    STATUS_REFUSED,
    STRINGS_LIMIT,
    Batch,
    Tensor,
    encode_done,
    encode_not_done,
)
from hermetic.enclave.buffers import BufferLayout, Region
from hermetic.enclave.configuration import ABSENT_SHAPE
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.host_memory import address_of
from hermetic.enclave.memory import BatchMemory, Memory
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.model_tensors import ModelTensor, fits, inputs_of, outputs_of, reshaped
from hermetic.enclave.runtimes.interface import Input, Output, Runtime
from hermetic.errors import BorderError, DeviceFullError, HermeticError, InvalidRequestError, ModelFormatError

__all__ = ["BatchBorder", "BatchRunner", "SharedBuffers", "not_done"]

_FALSE_AND_TRUE: Final = bytes(1) + bytes([1]) * 255


class SharedBuffers:
    """Mapped memory, cut into regions by its layout."""

    def __init__(self, memory: mmap.mmap, layout: BufferLayout) -> None:
        self.layout = layout
        self._memory = memory
        self._whole = memoryview(memory)
        self._address = address_of(self._whole)

    def region(self, buffer: int, region: Region) -> tuple[memoryview, int]:
        """Return the memory of one region of one buffer, and its address."""
        start = buffer * self.layout.stride + region.offset
        return self._whole[start : start + region.capacity], self._address + start

    @property
    def extent(self) -> tuple[int, int]:
        """Where it begins, and its bytes: whole pages."""
        return self._address, len(self._whole)

    def close(self) -> None:
        """Unmap the memory, unless somebody still holds a view of it: then with that view."""
        with suppress(BufferError):
            self._whole.release()
            self._memory.close()


class BatchRunner:
    """A loaded model with the private memory that its inputs are copied into."""

    def __init__(self, runtime: Runtime, description: ModelDescription, memory: Memory) -> None:
        self._runtime = runtime
        self._private = memory.batch(len(inputs_of(description)))
        self._border = BatchBorder(description, self._private)

    def run(self, batch: Batch, buffers: SharedBuffers) -> bytes:
        """Return the frame that answers `batch`; a failure of the model or of a request's content is an answer too.

        Raises `BorderError` where the frame points outside of what the layout allows.
        """
        started = time.monotonic_ns()
        self._border.check_frame(batch, buffers.layout)
        failed = True
        try:
            self._private.begin(tenant=None)  # on the CPU nothing is kept that a tenant could leave
            inputs, outputs = self._border.take(batch, buffers)
            copied = time.monotonic_ns()
            tensors = self._border.checked(self._runtime.run(inputs, outputs))
            ran = time.monotonic_ns()
            failed = False
        except Exception as error:  # noqa: BLE001 - whatever a model makes a runtime raise ends this batch only
            return not_done(batch, error)
        finally:
            self._private.forget(failed=failed)
        wiped = time.monotonic_ns()
        wiping = wiped - ran
        return encode_done(batch.buffer, batch.sequence, tensors, copied - started, ran - copied, wiping, wiping)

    def close(self) -> None:
        """Give up the runtime. The private memory goes with `Memory.unload`."""
        self._runtime.close()


class BatchBorder:
    """What a front end says and gives, taken with care, and what it is given, checked, for batches of one model."""

    def __init__(self, description: ModelDescription, private: BatchMemory) -> None:
        self._inputs = inputs_of(description)
        self._outputs = outputs_of(description)
        self._max_rows = description.max_batch_size
        self._private = private
        self._reshapes = any(tensor.own.shape != tensor.spec.shape and not tensor.whole for tensor in self._outputs)

    def take(self, batch: Batch, buffers: SharedBuffers) -> tuple[list[Input], list[Output]]:
        """Return the inputs, copied into private memory, and where the outputs go.

        Raises `InvalidRequestError` where a request's content is at fault.
        """
        rows = self._check_shapes(batch)
        return self._copy_inputs(batch, buffers), self._places(batch.buffer, rows, buffers)

    def checked(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the outputs as callers see them. Raises `ModelFormatError`."""
        self._check_strings(tensors)
        if self._reshapes:
            return [self._as_callers_see(*pair) for pair in zip(self._outputs, tensors, strict=True)]
        return tensors

    def check_frame(self, batch: Batch, layout: BufferLayout) -> None:
        """Raise `BorderError` where the frame points outside of what the layout allows."""
        if batch.buffer >= layout.buffers or len(batch.inputs) != len(self._inputs):
            raise BorderError(
                f"batch: wanted a buffer below {layout.buffers} and {len(self._inputs)} inputs, "
                f"got {batch.buffer} and {len(batch.inputs)}"
            )
        for known, region, (nbytes, shape) in zip(self._inputs, layout.inputs, batch.inputs, strict=True):
            if known.optional and (nbytes, shape) == (0, ABSENT_SHAPE):
                continue
            element = ELEMENT_BYTES[region.spec.datatype]
            fits = element is None or nbytes == element * prod(shape)
            if nbytes > region.capacity or any(dimension < 0 for dimension in shape) or not fits:
                raise BorderError(
                    f"batch: wanted {region.spec.name!r} {list(shape)} in at most {region.capacity} bytes, got {nbytes}"
                )

    def _check_shapes(self, batch: Batch) -> int | None:
        """Return the rows of the batch: 1 without batching, None where no tensor of the batch tells."""
        rows: int | None = None
        for known, (_, shape) in zip(self._inputs, batch.inputs, strict=True):
            if shape == ABSENT_SHAPE:
                continue
            if known.whole or not self._max_rows:
                wanted = known.own.shape if known.whole else known.spec.shape
            else:
                rows = shape[0] if rows is None and shape else rows
                wanted = (-1 if rows is None else rows, *known.spec.shape)
            if len(wanted) != len(shape) or not all(map(fits, wanted, shape)):
                raise InvalidRequestError(f"input {known.spec.name!r}: wanted {list(wanted)}, got {list(shape)}")
        if not self._max_rows:
            return 1
        if rows is not None and not 1 <= rows <= self._max_rows:
            raise InvalidRequestError(f"batch: wanted 1 to {self._max_rows} rows, got {rows}")
        return rows

    def _check_strings(self, tensors: Sequence[Tensor]) -> None:
        """A front end would call it a lie."""
        strings = sum(
            prod(shape) for known, (_, shape) in zip(self._outputs, tensors, strict=True) if known.own.datatype == BYTES
        )
        if strings > STRINGS_LIMIT:
            raise ModelFormatError(f"outputs: wanted at most {STRINGS_LIMIT} elements of BYTES, got {strings}")

    def _copy_inputs(self, batch: Batch, buffers: SharedBuffers) -> list[Input]:
        inputs = []
        for index, (known, region, (nbytes, shape)) in enumerate(
            zip(self._inputs, buffers.layout.inputs, batch.inputs, strict=True)
        ):
            if shape == ABSENT_SHAPE:
                continue
            view, address = buffers.region(batch.buffer, region)
            private, private_address = self._private.take(index, address, nbytes, len(view))
            if region.spec.datatype == "BOOL":
                # A byte that is neither 0 nor 1 is undefined behaviour in a runtime.
                private[:] = bytes(private).translate(_FALSE_AND_TRUE)
            same = known.own is known.spec or known.whole
            own = shape if same else reshaped(shape, known.spec.shape, known.own.shape)
            inputs.append(Input(known.own, own, private, private_address))
        return inputs

    def _places(self, buffer: int, rows: int | None, buffers: SharedBuffers) -> list[Output]:
        outputs = []
        for known, region in zip(self._outputs, buffers.layout.outputs, strict=True):
            view, address = buffers.region(buffer, region)
            outputs.append(Output(known.own, self._known_shape(known, rows), view, address))
        return outputs

    def _known_shape(self, known: ModelTensor, rows: int | None) -> tuple[int, ...] | None:
        spec = known.own
        if rows is None or known.whole or -1 in spec.shape or ELEMENT_BYTES[spec.datatype] is None:
            return None
        return (rows, *spec.shape) if self._max_rows else spec.shape

    def _as_callers_see(self, known: ModelTensor, tensor: Tensor) -> Tensor:
        if known.own is known.spec or known.whole:
            return tensor
        rows = 1 if self._max_rows else 0
        if len(tensor.shape) != rows + len(known.own.shape):
            raise ModelFormatError(
                f"output {known.own.name!r}: wanted {list(known.own.shape)}, got {list(tensor.shape)}"
            )
        return tensor._replace(shape=reshaped(tensor.shape, known.own.shape, known.spec.shape))


def not_done(batch: Batch, error: Exception) -> bytes:
    """Return the frame for a batch that ended with `error`, which its callers are told as far as they may be."""
    if isinstance(error, InvalidRequestError):
        return encode_not_done(batch.buffer, batch.sequence, STATUS_REFUSED, str(error))
    if isinstance(error, DeviceFullError):
        return encode_not_done(batch.buffer, batch.sequence, STATUS_FULL, str(error))
    if isinstance(error, HermeticError):
        return encode_not_done(batch.buffer, batch.sequence, STATUS_FAILED, str(error))
    # Not the runtime's own text: it may quote values, and a batch holds rows of several callers.
    text = f"the runtime could not run this batch ({type(error).__name__})"
    return encode_not_done(batch.buffer, batch.sequence, STATUS_FAILED, text)
