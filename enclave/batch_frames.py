"""Batches on a data socket: one front end hands over rows that already lie in shared memory, and gets them back.

    batch    u8 kind | u8 0 | u16 inputs  | u32 buffer | u64 sequence | u64 tenant | inputs x tensor
    done     u8 kind | u8 status | u16 outputs | u32 buffer | u64 sequence | u64 input_ns | u64 infer_ns | u64 output_ns
             | u64 wipe_ns | u64 unlocked_bytes | outputs x tensor, or for a status other than OK a UTF-8 text
    tensor   u64 bytes | u16 dimensions | dimensions x i64        (integers little-endian)

One SEQPACKET datagram is one frame, and fixed binary. Both sides treat the other as hostile: everything is decoded
against limits, and whatever does not fit is a `BorderError`. `tenant` is a number that a front end gives each tenant
for as long as it lives, 0 where rows are of more than one: it tells tenants apart, and says nothing else of them
(docs/adr/0226). Where a tensor lies is not in the frame: both sides compute it (buffers.py), so a worker cannot point a
front end anywhere. Nothing here does I/O.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from hermetic.enclave.model_description import DIMENSIONS_LIMIT, TENSORS_LIMIT, ModelDescription, TensorSpec
from hermetic.errors import BorderError

DATA_FRAME_LIMIT: Final = 16 * 1024  # bytes
ERROR_TEXT_LIMIT: Final = 1024  # bytes
STRINGS_LIMIT: Final = 1 << 18
"""Elements of BYTES in one request, or in one batch's outputs: front ends walk them one by one, 0.3 us each."""
FRAMES_KEPT: Final = 256  # descriptions of a batch's tensors that are not decoded or encoded anew
MIXED: Final = 0  # the tenant of a batch whose rows are of several, or that nobody knows
BATCH_KIND: Final = 0x40
DONE_KIND: Final = 0x41
STATUS_OK: Final = 0
STATUS_REFUSED: Final = 1  # the batch's content is at fault
STATUS_FAILED: Final = 2  # the model or the runtime is at fault
STATUS_FULL: Final = 3  # the GPU had no room for it
_BATCH: Final = struct.Struct("<BBHIQQ")
_DONE: Final = struct.Struct("<BBHIQQQQQQ")
_TENSOR: Final = struct.Struct("<QH")


class Tensor(NamedTuple):
    """Shape and length of one tensor in a batch; where it lies follows from its position (buffers.py)."""

    nbytes: int
    shape: tuple[int, ...]


class Batch(NamedTuple):
    """Front end -> worker: run the batch that lies in `buffer`. `tenant`: the front end's number for whose it is."""

    buffer: int
    sequence: int
    inputs: tuple[Tensor, ...]
    tenant: int = MIXED


class Done(NamedTuple):
    """Worker -> front end: `buffer` holds the outputs, or `text` says why not. Times in nanoseconds.

    `wipe_ns`: what wiping took of the other times. `unlocked_bytes`: what went to or from a GPU through memory that is
    not page-locked, which is slower; 0 where all is well, and on the CPU.
    """

    buffer: int
    sequence: int
    status: int
    outputs: tuple[Tensor, ...]
    input_ns: int
    infer_ns: int
    output_ns: int
    text: str
    wipe_ns: int = 0
    unlocked_bytes: int = 0


def largest_data_frame(description: ModelDescription) -> int:
    """Return the bytes of the largest frame that a batch of this model, or its answer, can need."""

    def tensors(specs: Sequence[TensorSpec]) -> int:
        return sum(
            _TENSOR.size + 8 * (1 + len(spec.shape)) for spec in specs
        )  # one dimension more for the batch's rows

    return max(_BATCH.size + tensors(description.model_inputs), _DONE.size + tensors(description.model_outputs))


def encode_batch(buffer: int, sequence: int, inputs: Sequence[Tensor], tenant: int = MIXED) -> bytes:
    """Return the frame of a batch."""
    return _BATCH.pack(BATCH_KIND, 0, len(inputs), buffer, sequence, tenant) + _encode_tensors(tuple(inputs))


def decode_batch(frame: bytes) -> Batch:
    """Return the batch in `frame`, or raise `BorderError`."""
    _check_length(frame, _BATCH.size, "batch")
    kind, zero, count, buffer, sequence, tenant = _BATCH.unpack_from(frame)
    if (kind, zero) != (BATCH_KIND, 0):
        raise BorderError(f"batch frame: wanted kind {BATCH_KIND:#x}, got {kind:#x}")
    return Batch(buffer, sequence, _decode_tensors(frame[_BATCH.size :], count, "batch"), tenant)


def encode_done(
    buffer: int,
    sequence: int,
    outputs: Sequence[Tensor],
    input_ns: int,
    infer_ns: int,
    output_ns: int,
    wipe_ns: int = 0,
    unlocked_bytes: int = 0,
) -> bytes:
    """Return the frame of a batch that was answered."""
    times = (input_ns, infer_ns, output_ns, wipe_ns, unlocked_bytes)
    head = _DONE.pack(DONE_KIND, STATUS_OK, len(outputs), buffer, sequence, *times)
    return head + _encode_tensors(tuple(outputs))


def encode_not_done(buffer: int, sequence: int, status: int, text: str) -> bytes:
    """Return the frame of a batch that was not answered; `text` is cut to `ERROR_TEXT_LIMIT` bytes."""
    return (
        _DONE.pack(DONE_KIND, status, 0, buffer, sequence, 0, 0, 0, 0, 0)
        + text.encode(errors="replace")[:ERROR_TEXT_LIMIT]
    )


def decode_done(frame: bytes) -> Done:
    """Return the answer in `frame`, or raise `BorderError`."""
    _check_length(frame, _DONE.size, "done")
    kind, status, count, buffer, sequence, input_ns, infer_ns, output_ns, wipe_ns, unlocked = _DONE.unpack_from(frame)
    if kind != DONE_KIND or status not in (STATUS_OK, STATUS_REFUSED, STATUS_FAILED, STATUS_FULL):
        raise BorderError(f"done frame: wanted kind {DONE_KIND:#x} and a known status, got {kind:#x} and {status}")
    if status == STATUS_OK:
        return Done(
            buffer,
            sequence,
            status,
            _decode_tensors(frame[_DONE.size :], count, "done"),
            input_ns,
            infer_ns,
            output_ns,
            "",
            wipe_ns,
            unlocked,
        )
    text = frame[_DONE.size : _DONE.size + ERROR_TEXT_LIMIT].decode(errors="replace")
    return Done(buffer, sequence, status, (), 0, 0, 0, text)


def forget_frames() -> None:
    """Forget what tensors of batches looked like: a process across the border may have put anything into that."""
    _encode_tensors.cache_clear()
    _decode_tensors.cache_clear()


# Batches of one model repeat themselves, so what their tensors look like is kept. Pure and bounded.
@lru_cache(FRAMES_KEPT)
def _encode_tensors(tensors: tuple[Tensor, ...]) -> bytes:
    return b"".join(
        _TENSOR.pack(nbytes, len(shape)) + struct.pack(f"<{len(shape)}q", *shape) for nbytes, shape in tensors
    )


@lru_cache(FRAMES_KEPT)
def _decode_tensors(frame: bytes, count: int, what: str) -> tuple[Tensor, ...]:
    """Return the tensors that make up the rest of a frame."""
    if count > TENSORS_LIMIT:
        raise BorderError(f"{what} frame: wanted at most {TENSORS_LIMIT} tensors, got {count}")
    tensors: list[Tensor] = []
    at = 0
    for _ in range(count):
        if at + _TENSOR.size > len(frame):
            raise BorderError(f"{what} frame: wanted {count} tensors, got {len(tensors)}")
        nbytes, dimensions = _TENSOR.unpack_from(frame, at)
        at += _TENSOR.size
        if dimensions > DIMENSIONS_LIMIT or at + 8 * dimensions > len(frame):
            raise BorderError(
                f"{what} frame: wanted at most {DIMENSIONS_LIMIT} dimensions, all present, got {dimensions}"
            )
        tensors.append(Tensor(nbytes, struct.unpack_from(f"<{dimensions}q", frame, at)))
        at += 8 * dimensions
    if at != len(frame):
        raise BorderError(f"{what} frame: wanted {at} bytes, got {len(frame)}")
    return tuple(tensors)


def _check_length(frame: bytes, least: int, what: str) -> None:
    if not least <= len(frame) <= DATA_FRAME_LIMIT:
        raise BorderError(f"{what} frame: wanted {least} to {DATA_FRAME_LIMIT} bytes, got {len(frame)}")
