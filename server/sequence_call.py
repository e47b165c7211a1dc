"""What a request says of its sequence: id, first, last. Read from its parameters; in Triton's words where it cannot be.

Source of the texts: Triton 2.51, sequence_batch_scheduler.cc. An id that the model's CORRID cannot hold is refused,
where Triton cuts it.
"""

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from hermetic.enclave.configuration import SequenceBatching
from hermetic.enclave.datatypes import BYTES
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb

Id = int | str

ID_LENGTH_LIMIT: Final = 128  # bytes of an id that is a string; Triton's limit
_UINT64: Final = 2**64
_PACKED: Final = {"UINT64": "<Q", "INT64": "<q", "UINT32": "<I", "INT32": "<i"}


class SequenceCall(NamedTuple):
    """The sequence that a request belongs to, and whether it is its first or last request there."""

    id: Id
    start: bool
    end: bool


def sequence_call(
    model: str, sequence: SequenceBatching, parameters: Mapping[str, pb.InferParameter], rows: int
) -> SequenceCall:
    """Return what `parameters` say; `InvalidRequestError` where they make no request of a sequence of `model`."""
    if rows > 1:
        raise InvalidRequestError(
            f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher"
        )
    name = _id(parameters)
    if not name and not sequence.iterative:
        raise InvalidRequestError(
            f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
        )
    for control in sequence.controls:
        if control.kind == "CORRID" and name:
            correlation(control.datatype, name)
    if sequence.iterative:  # each request is a sequence of its own; an id is for the model to see
        return SequenceCall(name, start=True, end=False)
    return SequenceCall(name, start=_flag(parameters, "sequence_start"), end=_flag(parameters, "sequence_end"))


def correlation(datatype: str, name: Id) -> bytes:
    """Return the content of a CORRID control; `InvalidRequestError` where `datatype` cannot hold `name`."""
    if (datatype == BYTES) != isinstance(name, str):
        expected = "a string" if datatype == BYTES else "an integer"
        raise InvalidRequestError(
            f"sequence_id: expected {expected}, as the model's CORRID is {datatype}, got '{name}'"
        )
    if isinstance(name, str):
        text = name.encode()
        return struct.pack("<I", len(text)) + text
    signed = datatype.startswith("INT")
    number = name - _UINT64 if signed and name >= _UINT64 // 2 else name
    try:
        return struct.pack(_PACKED[datatype], number)
    except struct.error:
        raise InvalidRequestError(
            f"sequence_id: expected a number that the model's CORRID, {datatype}, can hold, got {name}"
        ) from None


def _id(parameters: Mapping[str, pb.InferParameter]) -> Id:
    if "sequence_id" not in parameters:
        return 0
    value = parameters["sequence_id"]
    if value.WhichOneof("parameter_choice") == "string_param":
        text = str(value.string_param)
        if len(text.encode()) > ID_LENGTH_LIMIT:
            raise InvalidRequestError(
                f"sequence_id: expected at most {ID_LENGTH_LIMIT} bytes, got {len(text.encode())}"
            )
        return text
    return int(value.int64_param) % _UINT64  # a negative one is what it is as an unsigned one, as for Triton


def _flag(parameters: Mapping[str, pb.InferParameter], name: str) -> bool:
    return name in parameters and bool(parameters[name].bool_param)
