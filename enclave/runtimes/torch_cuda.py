"""torch modules on a GPU: inputs and answers are tensors over device memory, all work is on the batch's own stream.

So several batches may be computed at a time, and nobody waits before `finish`. torch's caching allocator keeps memory
for each stream apart; what of it is free is wiped between tenants (runtime_caches.py, `TorchCache`). The budget is a
fraction of the GPU's memory, which torch holds itself to. An allocation beyond it is an answer to that batch, in
whatever words it is refused (device_full.py).

`graphs`: batches are replayed as recorded CUDA graphs (torch_graphs.py). `precision`: torch_precision.py.
Source: torch.cuda (ExternalStream, set_per_process_memory_fraction, OutOfMemoryError), torch 2.13.
"""

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch

from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import STORED_LOWER, GpuOrders, Precision
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtime_caches import TorchCache, TorchCuda
from hermetic.enclave.runtimes.device_full import full, says_full
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceAnswer, DeviceInput, DeviceOutput, Launched, nbytes_of
from hermetic.enclave.runtimes.torch_graphs import CudaRecorder, RecordedBatches, Recorder, check_fixed_shapes
from hermetic.enclave.runtimes.torch_module import DTYPE_OF, check_numbers, in_order
from hermetic.enclave.runtimes.torch_precision import Lowering, multiply_in
from hermetic.enclave.runtimes.torch_workspaces import SIDE, take_workspaces
from hermetic.errors import ConfigurationError, ModelFormatError

__all__ = ["Library", "TorchGpu", "TorchOnDevice", "load", "open_gpu", "tensor_at"]

CUDA: Final = "cuda"
_MODULE_OF_FORMAT: Final = {
    "torchscript": "hermetic.enclave.runtimes.torchscript",
    "torch-export": "hermetic.enclave.runtimes.torch_export",
    "aot-inductor": "hermetic.enclave.runtimes.aot_inductor",
}


class TorchOnDevice:
    """One module on a GPU (runtimes/interface_on_device.py). `where`: "cpu" in tests without a GPU, and synchronous."""

    holds_views = False

    def __init__(
        self, module: Callable[..., Any], cache: TorchCache, where: str = CUDA, precision: Precision = "fp32"
    ) -> None:
        self._module: Callable[..., Any] | None = module
        self._cache = cache
        self._where = where
        multiply_in(precision)
        self._lowering = Lowering(precision, where)
        self._lowering.store(module)
        self._recorded: RecordedBatches | None = None
        self.synchronous = where != CUDA

    def record(self, model: ModelToLoad, recorder: Recorder) -> None:
        """Have every batch replayed from now on. Raises as `RecordedBatches`."""

        def compute(tensors: Sequence[torch.Tensor]) -> list[object]:
            return self._compute(tensors, model.outputs)

        self._recorded = RecordedBatches(compute, model, recorder, self._cache)

    def prepare(self, stream: int) -> None:
        """Have cuBLAS take its workspaces for a stream, which every batch there writes to."""

        def multiply() -> None:
            with self._on(stream):
                take_workspaces(torch.ones(SIDE, SIDE, device=self._where))

        self._cache.add_scratch(multiply)

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        """Put one batch on the stream."""
        try:
            with torch.inference_mode(), self._on(stream):
                tensors = [tensor_at(given, self._where) for given in inputs]
                if self._recorded is not None:
                    return self._replayed(self._recorded, tensors, outputs)
                return self._placed(self._compute(tensors, [output.spec for output in outputs]), outputs)
        except Exception as error:  # RuntimeError and its kin, but TorchScript's is a class apart
            if self._cache.was_full() or says_full(error):
                raise full("this batch") from None
            raise

    def close(self) -> None:
        """Drop the module, and what was recorded of it."""
        if self._recorded is not None:
            self._recorded.close()
        self._recorded = self._module = None

    def _compute(self, tensors: Sequence[torch.Tensor], specs: Sequence[TensorSpec]) -> list[object]:
        """Return the module's answers in the manifest's order, in its types where only the precision is another."""
        if self._module is None:
            raise ModelFormatError("torch: wanted a loaded model, got one that is closed")
        with self._lowering.computing():
            answers = in_order(self._module(*tensors), [spec.name for spec in specs])
        return [self._lowering.restore(one, DTYPE_OF[spec.datatype]) for one, spec in zip(answers, specs, strict=True)]

    def _replayed(
        self, recorded: RecordedBatches, tensors: Sequence[torch.Tensor], outputs: Sequence[DeviceOutput]
    ) -> Launched:
        """Replay a batch, straight to its outputs' places: all shapes are known."""
        places = [_place(output) for output in outputs]
        recorded.replay(tensors, [tensor_at(place, self._where) for place in places])
        return Launched(tuple(DeviceAnswer(place.address, place.nbytes, place.shape) for place in places), None)

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
    square = torch.zeros(SIDE, SIDE, device=CUDA)
    take_workspaces(square)
    torch.nn.functional.conv2d(square.view(1, 1, SIDE, SIDE), square[:3, :3].reshape(1, 1, 3, 3))
    torch.cuda.synchronize()


class TorchGpu(TorchCuda, Protocol):
    """What a load asks of `torch.cuda`."""

    @property
    def mem_get_info(self) -> Callable[[], tuple[int, int]]:
        """Return the bytes of the GPU that are free, and all of them."""

    @property
    def set_per_process_memory_fraction(self) -> Callable[[float], None]:
        """Have torch allocate no more than that part of the GPU's memory."""


class Library(NamedTuple):
    """torch as a load uses it on a GPU. Tests without one bring doubles, and "cpu" for where tensors are."""

    cuda: TorchGpu = torch.cuda
    recorder: Callable[[], Recorder] = CudaRecorder
    where: str = CUDA


def load(model: ModelToLoad, memory: DeviceMemory, orders: GpuOrders, library: Library | None = None) -> TorchOnDevice:
    """Return the program on the GPU whose memory this is.

    Raises `ModelFormatError` where it is refused by us or by torch, `DeviceFullError` without room for its weights,
    `ConfigurationError` for orders that torch cannot follow.
    """
    cuda, recorder, where = library or Library()
    check_orders(orders, model.format)
    check_numbers(model)
    if orders.graphs:
        check_fixed_shapes(model)
    _, whole = cuda.mem_get_info()
    cuda.set_per_process_memory_fraction(min(1.0, orders.memory_limit_bytes / whole))
    loader: Callable[..., Callable[..., Any]] = importlib.import_module(_MODULE_OF_FORMAT[model.format]).load_module
    cache = TorchCache(cuda)
    memory.add_cache(cache)
    try:
        module = loader(model, where)
    except ModelFormatError as error:
        if cache.was_full() or says_full(error):
            raise full("the model") from None
        raise
    runtime = TorchOnDevice(module, cache, where, orders.precision)
    if orders.graphs:
        runtime.record(model, recorder())
    return runtime


def check_orders(orders: GpuOrders, format_name: str) -> None:
    """Refuse orders that a program of this format cannot follow."""
    if orders.tensorrt:
        raise ConfigurationError("gpu.tensorrt: wanted an ONNX model, got one of torch")
    if format_name != "aot-inductor":
        return
    if orders.precision in STORED_LOWER:
        raise ConfigurationError(
            f"gpu.precision: wanted fp32 or tf32 for a program in native code, whose types are its own, "
            f"got {orders.precision}"
        )
    if orders.graphs:
        raise ConfigurationError("gpu.graphs: wanted no graphs of a program in native code, which waits by itself")


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


def _place(output: DeviceOutput) -> DeviceInput:
    """Return where an output of a known shape goes, as memory to make a tensor of."""
    shape = output.shape or ()
    return DeviceInput(output.spec, shape, nbytes_of(output.spec.datatype, shape), output.address)


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
