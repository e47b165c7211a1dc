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

from hermetic.enclave.messages import TensorSpec
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


def length_prefix(length: int) -> bytes:
    """Return `length` as a protobuf varint."""
    if length < _SHORT:
        return bytes((length,))
    pieces = bytearray()
    while length >= _SHORT:
        pieces.append(length & 0x7F | 0x80)
        length >>= 7
    pieces.append(length)
    return bytes(pieces)
