"""ModelInferResponse put together from pieces serialised once: byte for byte what protobuf would write. Pure.

    model_name (1), model_version (2)   once per model
    id (3)                              the caller's bytes, already checked to be UTF-8
    parameters (4)                      once per model
    outputs (5)                         once per output and shape
    raw_output_contents (6)             views of the shared memory: joined, so copied once

A property test compares the whole with protobuf's own serialisation.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from hermetic.enclave.buffers import row_bytes
from hermetic.enclave.model_description import TensorSpec
from hermetic.protos.inference import grpc_service_pb2 as pb

Raw = bytes | bytearray | memoryview

_ID: Final = b"\x1a"
_RAW: Final = b"\x32"
DESCRIPTORS_KEPT: Final = 1024  # serialised output descriptors per model
_SHORT: Final = 0x80


class ReplyTemplate:
    """Builds the replies of one model version."""

    def __init__(self, name: str, version: str, parameters: Iterable[tuple[str, str]] = ()) -> None:
        """`parameters` stand in every response."""
        self._head = pb.ModelInferResponse(model_name=name, model_version=version).SerializeToString()
        always = {key: pb.InferParameter(string_param=value) for key, value in parameters}
        self._parameters = pb.ModelInferResponse(parameters=always).SerializeToString(deterministic=True)
        self._descriptors: dict[tuple[str, str, tuple[int, ...]], bytes] = {}

    def build(self, identifier: bytes, outputs: Sequence[tuple[TensorSpec, tuple[int, ...], Raw]]) -> bytes:
        """Return the reply for `outputs`: each with its spec, its whole shape and its raw bytes."""
        pieces: list[Raw] = [self._head]
        if identifier:
            pieces += (_ID, length_prefix(len(identifier)), identifier)
        pieces.append(self._parameters)
        pieces += [self._descriptor(spec, shape) for spec, shape, _ in outputs]
        for _, _, raw in outputs:
            pieces += (_RAW, length_prefix(len(raw)), raw)
        return b"".join(pieces)

    def fixed(self, chosen: Sequence[tuple[int, TensorSpec]], rows: int, *, batched: bool) -> "FixedReply | None":
        """Return the builder of replies of `rows` rows with these outputs; None where one's size is not known yet.

        `chosen`: each output's place among the model's, and its spec; `batched`: shapes get the rows in front.
        """
        sizes = [row_bytes(spec) for _, spec in chosen]
        shapes = [(rows, *spec.shape) if batched else spec.shape for _, spec in chosen]
        descriptors = b"".join(self._descriptor(spec, shape) for (_, spec), shape in zip(chosen, shapes, strict=True))
        parts = [(at, size) for (at, _), size in zip(chosen, sizes, strict=True) if size is not None]
        if len(parts) < len(chosen):
            return None
        return FixedReply(self._head, self._parameters + descriptors, rows, parts)

    def _descriptor(self, spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
        key = (spec.name, spec.datatype, shape)
        descriptor = self._descriptors.get(key)
        if descriptor is None:
            output = pb.ModelInferResponse.InferOutputTensor(name=spec.name, datatype=spec.datatype, shape=shape)
            descriptor = pb.ModelInferResponse(outputs=[output]).SerializeToString()
            if len(self._descriptors) >= DESCRIPTORS_KEPT:
                self._descriptors.clear()
            self._descriptors[key] = descriptor
        return descriptor


class FixedReply:
    """Builds replies that differ in id and contents only: all outputs are of fixed size.

    Byte for byte what `ReplyTemplate.build` would return.
    """

    __slots__ = ("_head", "_parts", "_tail")

    def __init__(self, head: bytes, tail: bytes, rows: int, parts: Iterable[tuple[int, int]]) -> None:
        """`head` comes before the id, `tail` after it; `parts`: each output's place, and its bytes in one row."""
        self._head = head
        self._tail = tail
        self._parts = tuple((at, row, row * rows, _RAW + length_prefix(row * rows)) for at, row in parts)

    def build(self, identifier: bytes, outputs: Sequence[tuple[object, Raw, object]], row: int) -> bytes:
        """Return the reply for the rows from `row` on. `outputs`: of the whole batch, the second member the bytes."""
        pieces: list[Raw]
        if identifier:
            pieces = [self._head, _ID, length_prefix(len(identifier)), identifier, self._tail]
        else:
            pieces = [self._head, self._tail]
        for at, row_size, size, prefix in self._parts:
            start = row * row_size
            pieces += (prefix, outputs[at][1][start : start + size])
        return b"".join(pieces)


_SHORT_LENGTHS: Final = tuple(bytes((length,)) for length in range(_SHORT))


def length_prefix(length: int) -> bytes:
    """Return `length` as a protobuf varint."""
    if length < _SHORT:
        return _SHORT_LENGTHS[length]
    pieces = bytearray()
    while length >= _SHORT:
        pieces.append(length & 0x7F | 0x80)
        length >>= 7
    pieces.append(length)
    return bytes(pieces)
