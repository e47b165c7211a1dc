"""What is asked, and is the answer right? v2 request bytes made beforehand, replies checked at almost no cost.

Every reply of every run is checked. A reply whose bytes were found right before is right; only a new one is parsed and
compared with what numpy says. A server that batches gives a handful of byte patterns for one question (sums in another
order), so the set stays small. Each question has its own answer: a reply meant for another caller is wrong here.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from hermetic.protos.inference import grpc_service_pb2, model_config_pb2

SERVICE: Final = "/inference.GRPCInferenceService/"
METHOD: Final = SERVICE + "ModelInfer"
RELATIVE_TOLERANCE: Final = 1e-3  # of a float32 sum of 512 products, in any order
ABSOLUTE_TOLERANCE: Final = 1e-4
PATTERNS_LIMIT: Final = 1024  # byte patterns kept as right, for one question
_DATATYPES: Final = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}


@dataclass(frozen=True, slots=True)
class Question:
    """One ModelInfer request, serialised, and the numbers that its one FP32 output must hold, [rows, ...].

    `tolerance`: relative and absolute.
    """

    request: bytes
    answer: tuple[float, ...]
    rows: int = 1
    tolerance: tuple[float, float] = (RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


def question(
    model: str, row: Sequence[float] | NDArray[Any], answer: Sequence[float], *, identifier: str = ""
) -> Question:
    """Return the question that sends `row` in raw contents: an array as it is, numbers as [1, n] FP32.

    With an `identifier`, servers repeat it; those that else make one up for each reply then give the same bytes again.
    """
    data = row if isinstance(row, np.ndarray) else np.asarray([row], np.float32)
    request = grpc_service_pb2.ModelInferRequest(model_name=model, id=identifier)
    request.inputs.add(name="x", datatype=_DATATYPES[data.dtype.name], shape=data.shape)
    request.raw_input_contents.append(data.tobytes())
    return Question(request.SerializeToString(), tuple(map(float, answer)))


def right_reply(model: str, answer: Sequence[float]) -> bytes:
    """Return the reply that a v2 server gives to a `question` with this answer."""
    reply = grpc_service_pb2.ModelInferResponse(model_name=model, model_version="1")
    reply.outputs.add(name="y", datatype="FP32", shape=[1, len(answer)])
    reply.raw_output_contents.append(struct.pack(f"<{len(answer)}f", *answer))
    return reply.SerializeToString()


def describing_replies(model: str, width_in: int, width_out: int, max_batch_size: int) -> dict[str, bytes]:
    """Return what perf_analyzer asks a server before it sends load, method -> reply."""
    metadata = grpc_service_pb2.ModelMetadataResponse(name=model, versions=["1"], platform="onnxruntime_onnx")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, width_in])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1, width_out])
    config = model_config_pb2.ModelConfig(name=model, platform="onnxruntime_onnx", max_batch_size=max_batch_size)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[width_in])
    config.output.add(name="y", data_type=model_config_pb2.TYPE_FP32, dims=[width_out])
    replies = {
        "ServerLive": grpc_service_pb2.ServerLiveResponse(live=True),
        "ServerReady": grpc_service_pb2.ServerReadyResponse(ready=True),
        "ModelReady": grpc_service_pb2.ModelReadyResponse(ready=True),
        "ServerMetadata": grpc_service_pb2.ServerMetadataResponse(name="echo", version="1"),
        "ModelMetadata": metadata,
        "ModelConfig": grpc_service_pb2.ModelConfigResponse(config=config),
    }
    return {SERVICE + name: reply.SerializeToString() for name, reply in replies.items()}


class Checker:
    """Says of every reply to one question whether it is right."""

    def __init__(
        self,
        answer: Sequence[float],
        rows: int = 1,
        tolerance: tuple[float, float] = (RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE),
    ) -> None:
        """Keep the numbers that are right, as `Question` has them."""
        self._answer = np.asarray(answer, np.float64)
        self._shape = [rows, len(answer) // rows]
        self._tolerance = tolerance
        self._right: set[bytes] = set()

    def accepts(self, reply: bytes) -> bool:
        """Return whether `reply` holds the answer."""
        if reply in self._right:
            return True
        if not self._holds(reply):
            return False
        if len(self._right) < PATTERNS_LIMIT:
            self._right.add(reply)
        return True

    def _holds(self, reply: bytes) -> bool:
        try:
            message = grpc_service_pb2.ModelInferResponse.FromString(reply)
        except DecodeError:
            return False
        if len(message.outputs) != 1:
            return False
        output, values = message.outputs[0], _values(message)
        if output.datatype != "FP32" or list(output.shape) != self._shape or len(values) != len(self._answer):
            return False
        relative, absolute = self._tolerance
        return np.allclose(values, self._answer, relative, absolute)


def _values(reply: grpc_service_pb2.ModelInferResponse) -> NDArray[np.float32]:
    """Return the numbers of the one output; raw, or typed as KServe's and MLServer's replies have them."""
    if len(reply.raw_output_contents) == 1:
        raw = reply.raw_output_contents[0]
        return np.frombuffer(raw[: len(raw) // 4 * 4], "<f4")
    return np.asarray(reply.outputs[0].contents.fp32_contents, np.float32)
