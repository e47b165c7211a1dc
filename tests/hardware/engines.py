"""torch and onnxruntime computing y = relu(x @ w) where memory.py says, and leaving behind what they leave behind.

Each takes its library as an argument, and where to compute: "cuda", or "cpu" to run these lines without a GPU. Whoever
uses one waits for nothing: `run` returns when the device has finished.
"""

import ctypes
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np

from hermetic.enclave.device_memory import Cache, Device, DeviceMemory
from hermetic.enclave.runtime_caches import Arena, TorchCache, TorchCuda
from tests.hardware.onnx_by_hand import relu_of_product

Matrix = np.ndarray[Any, np.dtype[np.float32]]

ARENA_BYTES: Final = 1 << 30
WARM_UP: Final = 64  # rows and columns of the product that makes cuBLAS take its workspace


class Engine(Protocol):
    """A runtime with at most one model. `cache` is what it keeps for later."""

    cache: Cache

    def load(self, weights: Matrix) -> None:
        """Load w[m, n]."""

    def run(self, x: int, y: int, rows: int) -> None:
        """Compute; both addresses are on the device."""

    def close(self) -> None:
        """Give up the model."""


class TorchEngine:
    """Plain torch. `cuda`: who tells what it keeps, `torch.cuda` but for tests."""

    def __init__(self, memory: DeviceMemory, torch: ModuleType, cuda: TorchCuda, where: str = "cuda") -> None:
        self._torch = torch
        self._where = where
        self._device = memory.device
        self._weights: Any = None
        cache = TorchCache(cuda)
        cache.add_scratch(self._multiply)
        memory.add_cache(cache)
        self.cache: Cache = cache

    def _multiply(self) -> None:
        square = self._torch.ones(WARM_UP, WARM_UP, device=self._where)
        self._torch.mm(square, square)

    def load(self, weights: Matrix) -> None:
        self._weights = self._torch.empty(weights.shape, dtype=self._torch.float32, device=self._where)
        self._wait()
        put(self._device, self._weights.data_ptr(), weights.tobytes())

    def run(self, x: int, y: int, rows: int) -> None:
        m, n = self._weights.shape
        with self._torch.inference_mode():
            self._at(y, (rows, n)).copy_(self._torch.relu(self._at(x, (rows, m)) @ self._weights))
        self._wait()

    def close(self) -> None:
        self._weights = None

    def _at(self, address: int, shape: tuple[int, int]) -> Any:
        """Return a tensor over memory that is not torch's."""
        if self._where == "cpu":
            memory = (ctypes.c_char * (4 * shape[0] * shape[1])).from_address(address)
            return self._torch.frombuffer(memory, dtype=self._torch.float32).reshape(shape)
        return self._torch.as_tensor(_CudaArray(address, shape), device=self._where)

    def _wait(self) -> None:
        if self._where != "cpu":
            self._torch.cuda.synchronize()


class TorchGraphEngine(TorchEngine):
    """torch with every run replayed: what a recording leaves in its pool and in its own tensors is to be wiped too."""

    def __init__(
        self, memory: DeviceMemory, torch: ModuleType, cuda: TorchCuda, where: str = "cuda", recorder: Any = None
    ) -> None:
        """`recorder`: other than the GPU's in tests."""
        from hermetic.enclave.runtimes import torch_graphs

        super().__init__(memory, torch, cuda, where)
        self._recorder = recorder or torch_graphs.CudaRecorder()
        self._recorded: dict[int, torch_graphs.RecordedBatches] = {}

    def run(self, x: int, y: int, rows: int) -> None:
        m, n = self._weights.shape
        if rows not in self._recorded:
            self._recorded[rows] = self._record(rows)
        with self._torch.inference_mode():
            self._recorded[rows].replay([self._at(x, (rows, m))], [self._at(y, (rows, n))])
        self._wait()

    def close(self) -> None:
        self._recorded.clear()
        super().close()

    def _record(self, rows: int) -> Any:
        from hermetic.enclave.model_description import TensorSpec
        from hermetic.enclave.runtimes.interface import ModelToLoad
        from hermetic.enclave.runtimes.torch_graphs import RecordedBatches

        m, n = self._weights.shape
        ends = (TensorSpec(name=name, datatype="FP32", shape=(rows, size)) for name, size in (("x", m), ("y", n)))
        given, answered = ((end,) for end in ends)
        model = ModelToLoad("torch-export", None, {}, given, answered, 0, 1)
        weights = self._weights

        def compute(tensors: Any) -> list[Any]:
            return [self._torch.relu(tensors[0] @ weights)]

        return RecordedBatches(compute, model, self._recorder, self.cache)  # type: ignore[arg-type]


class OrtEngine:
    """onnxruntime with an arena of ours. On "cpu" the arena is told, and not asked for anything."""

    def __init__(self, memory: DeviceMemory, ort: ModuleType, where: str = "cuda") -> None:
        self._ort = ort
        self._where = where
        self._session: Any = None
        self._columns = 0, 0
        arena = Arena(memory, ARENA_BYTES)
        self._options = arena.provider_options()
        self.cache: Cache = arena

    def load(self, weights: Matrix) -> None:
        self._columns = weights.shape[0], weights.shape[1]
        options = self._ort.SessionOptions()
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._where == "cuda":
            # Else an operator on the CPU would have batches copied through memory that we do not see.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            providers = [("CUDAExecutionProvider", {"device_id": "0", **self._options})]
        self._session = self._ort.InferenceSession(relu_of_product(weights), options, providers=providers)
        if self._session.get_providers()[0] != (providers[0] if self._where == "cpu" else providers[0][0]):
            raise RuntimeError(f"onnxruntime: wanted {providers[0]}, got {self._session.get_providers()}")

    def run(self, x: int, y: int, rows: int) -> None:
        m, n = self._columns
        binding = self._session.io_binding()
        binding.bind_input("x", self._where, 0, np.float32, (rows, m), x)
        binding.bind_output("y", self._where, 0, np.float32, (rows, n), y)
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        self._session = None


def put(device: Device, address: int, content: bytes) -> None:
    """Copy to the device through page-locked memory, and leave nothing in it."""
    host = device.allocate_host(len(content))
    stream = device.stream()
    try:
        host.view[: len(content)] = content
        device.copy_in(address, host.address, len(content), stream)
        device.wait(stream)
    finally:
        device.wipe_host(host, len(content))
        device.free_host(host)
        device.end_stream(stream)


class _CudaArray:
    """Memory of the device in the form that torch takes from others. Source: numba, CUDA Array Interface 3."""

    def __init__(self, address: int, shape: tuple[int, int]) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3}
