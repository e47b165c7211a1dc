"""How is each compared server started, and surely ended? On loopback, in plaintext, with the same ONNX files.

Only the peers are here. They have no mutual TLS, no access rules and no records: that is what the comparison gives
them. All get as many threads for ONNX Runtime as there are cores, and what their authors give by default; Triton also
dynamic batching. Hermetic's own start is `bench.staged`'s: heavy models have as many workers of one thread as there are
cores, and batches of two.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import grpc

from hermetic.bench.peers.environments import interpreter
from hermetic.bench.peers.models import PeerModel
from hermetic.bench.target import Endpoint
from hermetic.bench.triton import Triton, free_ports
from hermetic.demo.stage import descendants
from hermetic.errors import MeasurementError
from hermetic.protos.inference import grpc_service_pb2 as pb

TRITON: Final = "triton"
KSERVE: Final = "kserve"
MLSERVER: Final = "mlserver"
PEERS: Final = (TRITON, KSERVE, MLSERVER)

START_TIMEOUT_S: Final = 120
STOP_TIMEOUT_S: Final = 10
CALL_TIMEOUT_S: Final = 2
POLL_S: Final = 0.1
LAST_WORDS: Final = 5  # lines of a server's output in an error
MODEL_READY: Final = "/inference.GRPCInferenceService/ModelReady"
INSIDE: Final = Path(__file__).with_name("inside")

Start = Callable[[Sequence[PeerModel], int], AbstractContextManager[Endpoint]]


@contextmanager
def triton(models: Sequence[PeerModel], threads: int) -> Iterator[Endpoint]:
    """Run Triton with `models`; `threads` are each model's."""
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
        for model in models:
            _write_triton_model(Path(folder) / model.name, model, threads)
        with Triton(Path(folder)) as server:
            _await_ready(server.grpc, models, server.process, server.last_words)
            yield Endpoint(server.grpc, pids=tuple(descendants(server.process.pid)))


@contextmanager
def kserve(models: Sequence[PeerModel], threads: int) -> Iterator[Endpoint]:
    """Run KServe's gRPC server with `models`."""
    (port,) = free_ports(1)
    files = {model.name: str(model.file) for model in models}
    job = json.dumps({"port": port, "threads": threads, "models": files})
    command = [str(interpreter(KSERVE)), str(INSIDE / "kserve_app.py"), job]
    with _running(command, Path.cwd(), f"127.0.0.1:{port}", models) as endpoint:
        yield endpoint


@contextmanager
def mlserver(models: Sequence[PeerModel], threads: int) -> Iterator[Endpoint]:
    """Run MLServer with `models`, in one process."""
    http, port, metrics = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as name:
        folder = Path(name)
        settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": port, "metrics_port": metrics}
        settings |= {"parallel_workers": 0, "debug": False}
        (folder / "settings.json").write_text(json.dumps(settings))
        for model in models:
            (folder / model.name).mkdir()
            parameters = {"uri": str(model.file), "extra": {"threads": threads}}
            one = {"name": model.name, "implementation": "mlserver_runtime.OnnxModel", "parameters": parameters}
            (folder / model.name / "model-settings.json").write_text(json.dumps(one))
        command = [str(interpreter(MLSERVER).with_name("mlserver")), "start", str(folder)]
        with _running(command, folder, f"127.0.0.1:{port}", models) as endpoint:
            yield endpoint


STARTS: Final[Mapping[str, Start]] = {TRITON: triton, KSERVE: kserve, MLSERVER: mlserver}


def _write_triton_model(folder: Path, model: PeerModel, threads: int) -> None:
    """Write a model of Triton's repository; the ONNX file is linked, not copied."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").symlink_to(model.file)
    dims = ", ".join(map(str, model.dims))
    (folder / "config.pbtxt").write_text(f"""\
name: "{model.name}"
platform: "onnxruntime_onnx"
max_batch_size: {model.max_batch_size}
input [{{ name: "x" data_type: TYPE_{model.datatype} dims: [{dims}] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [{model.width}] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
dynamic_batching {{ }}
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}
""")


@contextmanager
def _running(command: list[str], folder: Path, address: str, models: Sequence[PeerModel]) -> Iterator[Endpoint]:
    """Run a server in a clean environment until the end of the context; give it once its models are ready."""
    environment = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(INSIDE), "HOME": str(folder)}
    environment |= {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder
        )

        def last_words() -> str:
            log.seek(0)
            return " / ".join(log.read().decode(errors="replace").strip().splitlines()[-LAST_WORDS:])

        try:
            _await_ready(address, models, process, last_words)
            yield Endpoint(address, pids=tuple(descendants(process.pid)))
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(
    address: str, models: Sequence[PeerModel], process: subprocess.Popen[bytes], last_words: Callable[[], str]
) -> None:
    """Return when every model is ready; `MeasurementError` where the server ends or takes too long."""
    end = time.monotonic() + START_TIMEOUT_S
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary(
            MODEL_READY, pb.ModelReadyRequest.SerializeToString, pb.ModelReadyResponse.FromString
        )
        for model in models:
            while not _is_ready(ready, model.name):
                if process.poll() is not None:
                    raise MeasurementError(f"{address}: the server ended with {process.returncode}: {last_words()}")
                if time.monotonic() > end:
                    raise MeasurementError(f"{address}: {model.name} not ready in {START_TIMEOUT_S} s: {last_words()}")
                time.sleep(POLL_S)


def _is_ready(ready: Callable[..., pb.ModelReadyResponse], name: str) -> bool:
    try:
        return ready(pb.ModelReadyRequest(name=name), timeout=CALL_TIMEOUT_S).ready
    except grpc.RpcError:
        return False
