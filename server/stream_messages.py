"""ModelStreamInferResponse put together around an answer, and what is recorded of streams. Pure.

The answer is a serialised ModelInferResponse (reply.py); what streams add are the tag of field 2 before it, and the
parameter `triton_final_response` behind it: protobuf merges fields in any order. Source: Triton 2.51's
stream_infer_handler.cc; records: docs/spec/request-record.md.
"""

import json
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.audit import status_part
from hermetic.server.reply import length_prefix
from hermetic.server.scanner import cut
from hermetic.server.status import Status

FINAL: Final = "triton_final_response"

_INFER_RESPONSE: Final = b"\x12"  # field 2 of ModelStreamInferResponse, length-delimited


def _flag(value: bool) -> bytes:  # noqa: FBT001
    response = pb.ModelInferResponse()
    response.parameters[FINAL].bool_param = value
    return response.SerializeToString()


_LAST: Final = _flag(True)  # noqa: FBT003
_NOT_LAST: Final = _flag(False)  # noqa: FBT003


class Counted(NamedTuple):
    """How many messages and bytes a stream has taken and given."""

    requests: int
    responses: int
    request_bytes: int
    reply_bytes: int


def response(answer: bytes, *, final: bool) -> bytes:
    """Return the message of a stream that carries `answer`."""
    flag = _LAST if final else _NOT_LAST
    return b"".join((_INFER_RESPONSE, length_prefix(len(answer) + len(flag)), answer, flag))


def error_response(text: str, identifier: bytes, model: str) -> bytes:
    """Return the message that ends a request with an error. `model` is "" where the request was refused at once."""
    message = pb.ModelStreamInferResponse(error_message=text)
    message.infer_response.id = identifier.decode(errors="replace")
    if model:
        message.infer_response.model_name = model
        message.infer_response.parameters[FINAL].bool_param = True
    return message.SerializeToString()


def identifier(message: bytes) -> bytes:
    """Return the id in a request that was refused, as far as one can be read: the client looks for it."""
    pieces = cut(message)
    if pieces is not None:
        return pieces.id
    try:
        return str(pb.ModelInferRequest.FromString(message).id).encode()
    except DecodeError:
        return b""


def streamed_part(model_part: str, stream: str, responses: int) -> str:
    """Return the piece of a request's record that names its model, its stream and how many responses it had."""
    return f'{model_part},"stream":"{stream}","responses":{responses}'


def stream_record(moment: float, stream: str, who: str, counted: Counted, status: Status, duration_us: int) -> str:
    """Return the record of a stream that has ended; each of its requests has one of its own."""
    return (
        f'{{"event":"stream","time":{moment:.6f},"stream":{json.dumps(stream)},{who},"requests":{counted.requests},'
        f'"responses":{counted.responses},"request_bytes":{counted.request_bytes},'
        f'"reply_bytes":{counted.reply_bytes},"duration_us":{duration_us},"status":{status_part(status)}}}'
    )
