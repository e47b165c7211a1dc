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
from hermetic.enclave.model_description import ModelDescription, TensorSpec
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.contents import Buffer

__all__ = ["Piece", "classified", "labels_of", "wanted_classes"]

ELEMENTS_LIMIT: Final = 1 << 18  # elements of one answer that are put in order: about a twentieth of a second
TEXTS_LIMIT: Final = 1 << 14  # classes of one answer: about a fortieth of a second; of FP64 a quarter
FP64_TEXT: Final = 4  # classes that one of FP64 counts for: its text may have 300 digits, and takes some 25 us
LABELS_LIMIT: Final = 1 << 20  # labels of one model that are kept
LABEL_LIMIT: Final = 1024  # bytes of one of them
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
    """Return output -> its labels, one per line of the file that the configuration names.

    Beyond `LABELS_LIMIT` in all there are no more, and each is cut at `LABEL_LIMIT`.
    """
    named = [(output.name, output.labels) for output in description.configuration.outputs if output.labels is not None]
    lines: dict[str, list[bytes]] = {}
    room = LABELS_LIMIT
    for _, file in named:
        if file not in lines:
            lines[file] = _lines(files[file], room)
            room -= len(lines[file])
    return {output: lines[file] for output, file in named}


def _lines(content: bytes, most: int) -> list[bytes]:
    lines = content.split(b"\n", most)
    if len(lines) > most or lines[-1] == b"":
        del lines[-1]
    return [line[:LABEL_LIMIT] for line in lines]


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

    Raises `InvalidRequestError` for more elements, or more classes, than the thread that serves everyone has time for.
    """
    _check_room(pieces, classes, batched=batched)
    return [
        _classify(piece, count, labels.get(piece[0].name, ()), batched=batched) if count else piece
        for piece, count in zip(pieces, classes, strict=True)
    ]


def _rows(shape: tuple[int, ...], *, batched: bool) -> tuple[int, int]:
    """Return how many rows there are, and how many elements each has."""
    rows = shape[0] if batched else 1
    return rows, prod(shape) // rows if rows else 0


def _check_room(pieces: Sequence[Piece], classes: Sequence[int], *, batched: bool) -> None:
    elements = texts = 0
    for (spec, shape, _), count in zip(pieces, classes, strict=True):
        if not count:
            continue
        rows, row = _rows(shape, batched=batched)
        elements += rows * row
        texts += rows * min(count, row) * (FP64_TEXT if spec.datatype == "FP64" else 1)
        for what, most, got in (("elements", ELEMENTS_LIMIT, elements), ("classes", TEXTS_LIMIT, texts)):
            if got > most:
                raise InvalidRequestError(
                    f"classification of output '{spec.name}': expected at most {most} {what}, got {got}"
                )


def _classify(piece: Piece, count: int, labels: Sequence[bytes], *, batched: bool) -> Piece:
    spec, shape, data = piece
    elements = prod(shape)
    rows, row = _rows(shape, batched=batched)
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
