"""The product's own runtimes as engines of gpu_checks.py: their `load`, their `launch`, their caches.

What engines.py has computes the same with a few lines of each library, and shows what the rules of memory are worth.
These show that the runtimes keep them: y = relu(x @ w) as a worker loads it, on a stream as a worker has them. Not
here: TensorRT, whose memory is not our arena's (LIMITATIONS.md); native code, whose is torch's.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any, Final

import torch

from hermetic.enclave.device_memory import Cache, DeviceMemory
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtimes import onnx_cuda, torch_cuda
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceInput, DeviceOutput, DeviceRuntime
from tests.hardware.engines import Matrix
from tests.hardware.onnx_by_hand import relu_of_product

BUDGET_BYTES: Final = 4 << 30
"""torch holds its whole process to it."""
ROWS: Final = 256  # of the largest batch


class WorkerEngine:
    """`Engine`. `load`: what makes a runtime of weights, and joins `memory`."""

    cache: Cache

    def __init__(self, memory: DeviceMemory, load: Callable[[Matrix], DeviceRuntime]) -> None:
        self._memory = memory
        self._load = load
        self._stream = memory.device.stream()
        self._runtime: DeviceRuntime | None = None
        self._ends = 0, 0

    def load(self, weights: Matrix) -> None:
        self.close()
        self._ends = weights.shape[0], weights.shape[1]
        self._runtime = self._load(weights)
        self._runtime.prepare(self._stream)
        self.cache = self._memory._caches[-1]

    def run(self, x: int, y: int, rows: int) -> None:
        if self._runtime is None:
            raise RuntimeError("wanted a model, got none")
        (before, after), (m, n) = _specs(*self._ends), self._ends
        inputs = [DeviceInput(before, (rows, m), 4 * rows * m, x)]
        outputs = [DeviceOutput(after, (rows, n), 4 * rows * n, y)]
        launched = self._runtime.launch(inputs, outputs, self._stream)
        self._memory.device.wait(self._stream)
        del launched  # until now what answers lie in

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
        self._runtime = None


def onnx_engine(memory: DeviceMemory, library: onnx_cuda.Library | None = None, **orders: Any) -> WorkerEngine:
    """Return onnxruntime as a worker has it. `library`: other than the GPU's in tests."""

    def load(weights: Matrix) -> DeviceRuntime:
        model = _to_load("onnx", "model.onnx", relu_of_product(weights), weights)
        return onnx_cuda.load(model, memory, _orders(**orders), library)

    return WorkerEngine(memory, load)


def torch_engine(memory: DeviceMemory, library: torch_cuda.Library | None = None, **orders: Any) -> WorkerEngine:
    """Return torch as a worker has it, with a program of TorchScript."""

    def load(weights: Matrix) -> DeviceRuntime:
        model = _to_load("torchscript", "model.pt", _program(weights), weights)
        return torch_cuda.load(model, memory, _orders(**orders), library)

    return WorkerEngine(memory, load)


def _orders(**orders: Any) -> GpuOrders:
    here = Gpu(number=0, uuid="GPU-0", minor=0)  # CUDA's number 0, whatever its name
    return GpuOrders(**{"gpu": here, "memory_limit_bytes": BUDGET_BYTES, **orders})


def _specs(m: int, n: int) -> tuple[TensorSpec, TensorSpec]:
    return TensorSpec(name="x", datatype="FP32", shape=(m,)), TensorSpec(name="y", datatype="FP32", shape=(n,))


def _to_load(format_name: str, file: str, content: bytes, weights: Matrix) -> ModelToLoad:
    given, answered = _specs(*weights.shape)
    files = {file: memoryview(bytearray(content))}
    return ModelToLoad(format_name, None, files, (given,), (answered,), ROWS, 1)


class _Module(torch.nn.Module):
    def __init__(self, weights: Matrix) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(weights.copy()), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.w)


def _program(weights: Matrix) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's plans for TorchScript
        torch.jit.save(torch.jit.script(_Module(weights)), content)
    return content.getvalue()
