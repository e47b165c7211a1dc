"""Raw gRPC calls for tests: what stock clients send, and what they never would."""

import struct
import time
from collections.abc import Sequence
from typing import Any

import grpc

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE

TIMEOUT_S = 60


def floats(*values: float) -> bytes:
    """Return raw FP32 content."""
    return struct.pack(f"<{len(values)}f", *values)


def infer_request(model: str, *rows: Sequence[float], request_id: str = "", **fields: Any) -> pb.ModelInferRequest:
    """Return a request with one FP32 input of shape [rows, length of a row]."""
    request = pb.ModelInferRequest(model_name=model, id=request_id, **fields)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[len(rows), len(rows[0])])
    request.raw_input_contents.append(b"".join(floats(*row) for row in rows))
    return request


def method(channel: grpc.Channel, name: str, service: str = INFERENCE) -> Any:
    """Return a caller of one method, taking and giving messages."""
    if service != INFERENCE:
        return channel.unary_unary(service + name)
    reply = getattr(pb, f"{name}Response")
    return channel.unary_unary(
        INFERENCE + name, request_serializer=lambda m: m.SerializeToString(), response_deserializer=reply.FromString
    )


def infer(channel: grpc.Channel, request: pb.ModelInferRequest, timeout: float = TIMEOUT_S) -> pb.ModelInferResponse:
    """Call ModelInfer."""
    response: pb.ModelInferResponse = method(channel, "ModelInfer")(request, timeout=timeout)
    return response


def until_refused(channel: grpc.Channel, request: pb.ModelInferRequest) -> grpc.RpcError:
    """Send `request` again and again; return the first refusal."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            infer(channel, request)
        except grpc.RpcError as error:
            return error
    raise TimeoutError(request.model_name)


def await_ready(channel: grpc.Channel, model: str) -> None:
    """Return when `model` is ready."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if method(channel, "ModelReady")(pb.ModelReadyRequest(name=model), timeout=TIMEOUT_S).ready:
                return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError(model)
        time.sleep(0.005)
