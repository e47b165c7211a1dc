"""The v2 protocol's classification: an output as its largest elements, each as text `value:index[:label]`. Pure.

What is answered, byte for byte and refusal for refusal, is Triton's (tests/vectors/triton/parameters.json). Where
Triton leaves an order to chance it is ours: equal values by index, NaN as the least.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from math import prod
from typing import Final

from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.messages import ModelDescription, TensorSpec
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.contents import Buffer

__all__ = ["Piece", "classified", "labels_of", "wanted_classes"]

ELEMENTS_LIMIT: Final = 1 << 18  # elements of one output that are put in order: about a tenth of a second
_CODES: Final[Mapping[str, str]] = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH: Final = struct.Struct("<I")

Piece = tuple[TensorSpec, tuple[int, ...], Buffer]
Labels = Mapping[str, Sequence[bytes]]


def labels_of(description: ModelDescription, files: Mapping[str, bytes]) -> dict[str, list[bytes]]:
    """Return output -> its labels, one per line of the file that the configuration names."""
    labels = {}
    for output in description.configuration.outputs:
        if output.labels is not None:
            lines = files[output.labels].split(b"\n")
            labels[output.name] = lines[:-1] if lines[-1] == b"" else lines
    return labels


def wanted_classes(output: pb.ModelInferRequest.InferRequestedOutputTensor, spec: TensorSpec) -> int:
    """Return how many classes a request wants of an output, 0 where it wants the output itself.

    Raises `InvalidRequestError` in Triton's words.
    """
    if "classification" not in output.parameters:
        return 0
    parameter = output.parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidRequestError("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param <= 0:
        raise InvalidRequestError("invalid value for 'classification' parameter, expected >= 0")
    if spec.datatype not in _CODES:
        raise InvalidRequestError(f"class result not available for output due to unsupported type '{spec.datatype}'")
    return parameter.int64_param


def classified(pieces: Sequence[Piece], classes: Sequence[int], labels: Labels, *, batched: bool) -> list[Piece]:
    """Return the pieces of a reply with those of which classes are wanted (`classes` is not 0) as BYTES.

    Raises `InvalidRequestError` for an output with too many elements.
    """
    return [
        _classify(piece, count, labels.get(piece[0].name, ()), batched=batched) if count else piece
        for piece, count in zip(pieces, classes, strict=True)
    ]


def _classify(piece: Piece, count: int, labels: Sequence[bytes], *, batched: bool) -> Piece:
    spec, shape, data = piece
    elements = prod(shape)
    if elements > ELEMENTS_LIMIT:
        raise InvalidRequestError(
            f"classification of output '{spec.name}': expected at most {ELEMENTS_LIMIT} elements, got {elements}"
        )
    rows = shape[0] if batched else 1
    row = elements // rows if rows else 0
    count = min(count, row)
    values = struct.unpack(f"<{elements}{_CODES[spec.datatype]}", data)
    texts = [_text(values[at * row : (at + 1) * row], count, labels) for at in range(rows)]
    own = TensorSpec(name=spec.name, datatype=BYTES, shape=(count,))
    return own, (rows, count) if batched else (count,), b"".join(texts)


def _text(values: Sequence[int | float], count: int, labels: Sequence[bytes]) -> bytes:
    """Return the `count` largest of one row, each behind its length."""
    keys = [-value if value == value else math.inf for value in values]  # noqa: PLR0124 - NaN is not itself
    best = nsmallest(count, range(len(values)), key=keys.__getitem__)
    pieces: list[bytes] = []
    for at in best:
        value = values[at]
        text = (f"{value:f}:{at}" if isinstance(value, float) else f"{value}:{at}").encode()
        if at < len(labels) and labels[at]:
            text += b":" + labels[at]
        pieces += (_LENGTH.pack(len(text)), text)
    return b"".join(pieces)
