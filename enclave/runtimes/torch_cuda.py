"""torch modules on a GPU: inputs and answers are tensors over device memory, all work is on the batch's own stream.

So several batches may be computed at a time, and nobody waits before `finish`. torch's caching allocator keeps memory
for each stream apart; what of it is free is wiped between tenants (runtime_caches.py, `TorchCache`). The budget is a
fraction of the GPU's memory, which torch holds itself to. An allocation beyond it is an answer to that batch.

`graphs` is refused: a recorded graph's answers stay in use in a pool of their own, which nothing wipes between tenants
yet. Source: torch.cuda (ExternalStream, set_per_process_memory_fraction, OutOfMemoryError), torch 2.13.
"""

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import GpuOrders
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceAnswer, DeviceInput, DeviceOutput, Launched
from hermetic.enclave.runtimes.torch_module import DTYPE_OF, check_numbers, in_order
from hermetic.errors import ConfigurationError, DeviceFullError, ModelFormatError

__all__ = ["TorchOnDevice", "load", "open_gpu", "tensor_at"]

CUDA: Final = "cuda"
WARM_UP: Final = 64  # rows and columns of the product that makes cuBLAS take its workspace
_MODULE_OF_FORMAT: Final = {
    "torchscript": "hermetic.enclave.runtimes.torchscript",
    "torch-export": "hermetic.enclave.runtimes.torch_export",
}


class TorchOnDevice:
    """One module on a GPU (runtimes/interface_on_device.py). `where`: "cpu" in tests without a GPU, and synchronous."""

    holds_views = False

    def __init__(self, module: Callable[..., Any], cache: TorchCache, where: str = CUDA) -> None:
        self._module: Callable[..., Any] | None = module
        self._cache = cache
        self._where = where
        self.synchronous = where != CUDA

    def prepare(self, stream: int) -> None:
        """Have cuBLAS take its workspace for a stream: whatever is there, every batch writes to it."""

        def multiply() -> None:
            with self._on(stream):
                square = torch.ones(WARM_UP, WARM_UP, device=self._where)
                torch.mm(square, square)

        self._cache.add_scratch(multiply)

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        """Put one batch on the stream."""
        if self._module is None:
            raise ModelFormatError("torch: wanted a loaded model, got one that is closed")
        try:
            with torch.inference_mode(), self._on(stream):
                tensors = [tensor_at(given, self._where) for given in inputs]
                answers = in_order(self._module(*tensors), [output.spec.name for output in outputs])
                return self._placed(answers, outputs)
        except torch.OutOfMemoryError:
            raise DeviceFullError("GPU memory: wanted room for this batch in the model's budget, got none") from None

    def close(self) -> None:
        """Drop the module."""
        self._module = None

    def _placed(self, answers: Sequence[object], outputs: Sequence[DeviceOutput]) -> Launched:
        """Have answers of a known shape copied to their place, which is wiped with the batch; leave others."""
        placed, keep = [], []
        for answer, output in zip(answers, outputs, strict=True):
            tensor = _checked(answer, output, self._where)
            nbytes = tensor.numel() * tensor.element_size()
            if output.shape is None:
                tensor = tensor.contiguous()
                address = tensor.data_ptr()
            else:
                address = output.address
                tensor_at(DeviceInput(output.spec, output.shape, nbytes, address), self._where).copy_(tensor)
            keep.append(tensor)
            placed.append(DeviceAnswer(address, nbytes, tuple(tensor.shape)))
        return Launched(tuple(placed), keep)

    def _on(self, stream: int) -> contextlib.AbstractContextManager[object]:
        if self._where != CUDA:
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.ExternalStream(stream))  # type: ignore[no-untyped-call]


def open_gpu() -> None:
    """Make torch's context and its handles of cuBLAS and cuDNN, on zeros; what they load, they load now."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    square = torch.zeros(WARM_UP, WARM_UP, device=CUDA)
    torch.mm(square, square)
    torch.nn.functional.conv2d(square.view(1, 1, WARM_UP, WARM_UP), square[:3, :3].reshape(1, 1, 3, 3))
    torch.cuda.synchronize()


def load(model: ModelToLoad, memory: DeviceMemory, orders: GpuOrders) -> TorchOnDevice:
    """Return the program on the GPU whose memory this is.

    Raises `ModelFormatError` where it is refused by us or by torch, `DeviceFullError` without room for its weights,
    `ConfigurationError` for orders that torch cannot follow.
    """
    if orders.graphs or orders.tensorrt:
        raise ConfigurationError("gpu: wanted neither graphs nor tensorrt for a torch model, got one of them")
    check_numbers(model)
    _, whole = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, orders.memory_limit_bytes / whole))
    loader: Callable[..., Callable[..., Any]] = importlib.import_module(_MODULE_OF_FORMAT[model.format]).load_module
    cache = TorchCache(torch.cuda)
    memory.add_cache(cache)
    before = _times_full()
    try:
        module = loader(model, CUDA)
    except ModelFormatError:
        if _times_full() != before:
            raise DeviceFullError("GPU memory: wanted room for the model in its budget, got none") from None
        raise
    return TorchOnDevice(module, cache)


def tensor_at(given: DeviceInput, where: str = CUDA) -> torch.Tensor:
    """Return a tensor over memory that is not torch's, and that must stay as long as it is used."""
    dtype = DTYPE_OF[given.spec.datatype]
    if not given.nbytes:
        return torch.empty(given.shape, dtype=dtype, device=where)
    if where == CUDA:
        raw = torch.as_tensor(_CudaArray(given.address, given.nbytes), device=where)
    else:
        raw = torch.frombuffer((ctypes.c_char * given.nbytes).from_address(given.address), dtype=torch.uint8)
    return raw.view(dtype).reshape(given.shape)


class _CudaArray:
    """Bytes of device memory in the form that torch takes from others. Source: numba, CUDA Array Interface 3."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def _checked(answer: object, output: DeviceOutput, where: str) -> torch.Tensor:
    wanted = DTYPE_OF[output.spec.datatype]
    if not isinstance(answer, torch.Tensor) or answer.dtype != wanted or answer.device.type != where:
        got = f"{answer.dtype} on {answer.device}" if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ModelFormatError(f"output {output.spec.name!r}: wanted a tensor of {wanted} on {where}, got {got}")
    shape = tuple(answer.shape)
    if answer.numel() * answer.element_size() > output.capacity or output.shape not in (None, shape):
        wanted_shape = "any shape" if output.shape is None else list(output.shape)
        raise ModelFormatError(
            f"output {output.spec.name!r}: wanted {wanted_shape} in {output.capacity} bytes, got {list(shape)}"
        )
    return answer


def _times_full() -> int:
    """Return how often torch has had no room."""
    return int(torch.cuda.memory_stats().get("num_ooms", 0))
