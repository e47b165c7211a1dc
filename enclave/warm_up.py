"""Warm-ups: requests of the publisher's that a model runs before it is ready, so that no caller pays for its first.

They take the path that serves. What they answer is thrown away; that they are answered is demanded. Source:
docs/spec/model-configuration.md section 1, Triton's `model_warmup`.
"""

import mmap
from math import prod
from typing import Final

import numpy as np

from hermetic.enclave.batch_frames import STATUS_OK, Batch, decode_done
from hermetic.enclave.batch_runner import BatchRunner, SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.configuration import Warmup, WarmupInput
from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.known_answer import write_inputs
from hermetic.enclave.known_answer_file import NamedTensor
from hermetic.enclave.made_batches import ReadFile, hidden_inputs, zeros
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.model_tensors import inputs_of
from hermetic.errors import ModelFormatError

__all__ = ["warm_up"]

SEED: Final = 20_261_123  # the same data at each load
VARIABLE_TENSOR_BYTES: Final = 16 << 20  # of an output whose size nobody knows
_FLOATS: Final = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}


def warm_up(runner: BatchRunner | DeviceRunner, description: ModelDescription, read: ReadFile) -> int:
    """Run every warm-up; return how many batches ran. `read` gives a file of the payload.

    Raises `ModelFormatError` where the model gives no answer.
    """
    return sum(_run(runner, description, warmup, read) for warmup in description.configuration.warmup)


def _run(runner: BatchRunner | DeviceRunner, description: ModelDescription, warmup: Warmup, read: ReadFile) -> int:
    inputs = _inputs(description, warmup, read)
    variable = max(VARIABLE_TENSOR_BYTES, *(len(tensor.raw) for tensor in inputs))
    rows = warmup.batch_size if description.max_batch_size else 0
    places = layout(description.model_copy(update={"max_batch_size": rows, "front_end_files": ()}), 1, variable)
    memory = mmap.mmap(-1, places.size)
    buffers = SharedBuffers(memory, places)
    try:
        for _ in range(warmup.count):
            tensors = write_inputs(buffers, inputs)
            done = decode_done(runner.run(Batch(0, 0, tensors), buffers))
            if done.status != STATUS_OK:
                raise ModelFormatError(f"model_warmup {warmup.name!r}: wanted an answer, got none: {done.text}")
    finally:
        memory[:] = bytes(len(memory))
        buffers.close()
    return warmup.count


def _inputs(description: ModelDescription, warmup: Warmup, read: ReadFile) -> tuple[NamedTensor, ...]:
    """Return the batch: each input's row, repeated; hidden inputs that are not given, as a lone request has them."""
    rows = warmup.batch_size if description.max_batch_size else 0
    generator = np.random.default_rng(SEED)
    shapes = {tensor.name: [(1, *tensor.shape)] * warmup.batch_size for tensor in warmup.inputs}
    batch = hidden_inputs(description.configuration, shapes, rows, read)
    whole = {tensor.own.name for tensor in inputs_of(description) if tensor.whole}
    for tensor in warmup.inputs:
        raw = bytes(_row(tensor, generator, read)) * max(1, rows)
        shape = (rows, *tensor.shape) if rows else tensor.shape
        batch[tensor.name] = NamedTensor(
            tensor.name, tensor.datatype, (prod(shape),) if tensor.name in whole else shape, raw
        )
    return tuple(batch.values())


def _row(tensor: WarmupInput, generator: np.random.Generator, read: ReadFile) -> bytes | memoryview:
    count = prod(tensor.shape)
    if tensor.file is not None:
        return read(tensor.file)
    if tensor.data == "zero" or tensor.datatype == BYTES:  # Triton's random strings are empty too
        return zeros(tensor.datatype, count)
    if tensor.datatype in _FLOATS:
        return generator.random(count).astype(_FLOATS[tensor.datatype]).tobytes()
    if tensor.datatype == "BF16":  # the upper half of an FP32
        return (generator.random(count).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if tensor.datatype == "BOOL":
        return generator.integers(0, 2, count, np.uint8).tobytes()
    return generator.bytes(len(zeros(tensor.datatype, count)))
