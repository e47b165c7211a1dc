"""Serves ONNX models with KServe, inside KServe's own environment: `python kserve_app.py '{"port":..., ...}'`.

The gRPC half of KServe's ModelServer, started as that starts it (asyncio server, uvloop), on loopback; without its HTTP
half, which nobody asks. One run per request: KServe's gRPC server batches nothing.
"""

import asyncio
import json
import logging
import sys

import grpc.aio
import onnxruntime
import uvloop
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

MESSAGE_LIMIT = 8 << 20  # bytes
THREADS = 4  # KServe's own default (--max_threads)


class Served(Model):  # type: ignore[misc] # an untyped base
    """One ONNX model."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: InferRequest, *_headers: object) -> InferResponse:
        """Return y for x; on KServe's loop, as its own servers for ONNX-like runtimes do."""
        answer = self._session.run(None, {"x": payload.inputs[0].as_numpy()})[0]
        output = InferOutput("y", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


def main() -> None:
    """Serve the job that stands in the first argument."""
    job = json.loads(sys.argv[1])
    logging.disable(logging.INFO)  # a line for each request otherwise
    bind = grpc.aio.Server.add_insecure_port
    # KServe listens on every interface; nobody else shall reach a benchmark.
    grpc.aio.Server.add_insecure_port = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
    repository = ModelRepository()
    for name, path in job["models"].items():
        repository.update(Served(name, path, job["threads"]))
    plane = DataPlane(model_registry=repository)
    limits = {"grpc_max_send_message_length": MESSAGE_LIMIT, "grpc_max_receive_message_length": MESSAGE_LIMIT}
    server = GRPCServer(job["port"], plane, ModelRepositoryExtension(repository), limits)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(server.start(THREADS))


if __name__ == "__main__":
    main()
