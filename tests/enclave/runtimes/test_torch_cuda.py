"""torch models as a worker on a GPU loads them, with a double of `torch.cuda`: asked, full, wiped, unloaded."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hermetic.enclave.batch_frames import STATUS_FAILED, STATUS_FULL
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import Precision
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes.torch_cuda import Library, TorchOnDevice, load
from hermetic.errors import DeviceFullError, ModelFormatError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble
from tests.enclave.model_on_double import LARGEST, Model, Rows, orders, to_load
from tests.enclave.recorder_double import BETWEEN, RecorderDouble

COLUMNS = 8
LIMIT = 64 << 10
TF32: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(COLUMNS, COLUMNS), torch.nn.ReLU()).eval()


def scripted() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module()), content)
    return content.getvalue()


def exported() -> bytes:
    rows = torch.export.Dim("rows", min=1, max=LARGEST)
    program = torch.export.export(module(), (torch.zeros(2, COLUMNS),), dynamic_shapes=({0: rows},))
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


MAKE: dict[str, Callable[[], bytes]] = {"torchscript": scripted, "torch-export": exported}


def loaded(format_name: str, device: DeviceDouble, cuda: TorchCudaDouble, **more: Any) -> Model:
    """Return a model that the product's own `load` has loaded."""
    memory = DeviceMemory(device)
    model = to_load(format_name, "model.pt", MAKE[format_name](), COLUMNS)
    library = Library(cuda, lambda: RecorderDouble(cuda), "cpu")
    return Model(load(model, memory, orders(LIMIT, **more), library), device, memory, COLUMNS)


def rows_of(count: int) -> Rows:
    return np.random.default_rng(count).uniform(-1, 1, (count, COLUMNS)).astype(np.float32)


def wanted(rows: Rows) -> Any:
    with torch.inference_mode():
        return module()(torch.from_numpy(rows)).numpy()


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("format_name", sorted(MAKE))
def test_a_model_is_loaded_asked_wiped_and_unloaded(format_name: str, graphs: bool) -> None:
    device = DeviceDouble()
    cuda = TorchCudaDouble(device)
    model = loaded(format_name, device, cuda, graphs=graphs)
    assert cuda.fraction == LIMIT / device.size
    for count, tenant in ((3, b"one"), (1, b"one"), (4, b"two"), (2, None)):
        np.testing.assert_allclose(model.ask(rows_of(count), tenant), wanted(rows_of(count)), rtol=1e-5, atol=1e-5)
    assert (BETWEEN in device.device_bytes()) == graphs, "batches are replayed where that was ordered"
    model.runner.wipe_kept()
    assert BETWEEN[:8] not in device.device_bytes()
    assert model.unload() == b""
    assert device.violations == []


def test_fp32_is_fp32_and_tf32_is_taken_by_name_alone() -> None:
    before = [flags.allow_tf32 for flags in TF32]
    choices: tuple[tuple[Precision, bool], ...] = (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False))
    try:
        for precision, allowed in choices:
            device = DeviceDouble()
            model = loaded("torchscript", device, TorchCudaDouble(device), precision=precision)
            assert [flags.allow_tf32 for flags in TF32] == [allowed, allowed]
            if precision != "bf16":  # on the CPU both are FP32
                np.testing.assert_allclose(model.ask(rows_of(2)), wanted(rows_of(2)), rtol=1e-5, atol=1e-5)
    finally:
        for flags, value in zip(TF32, before, strict=True):
            flags.allow_tf32 = value


def test_a_file_that_is_no_model_is_refused_as_that_and_a_full_gpu_as_full() -> None:
    class Refusing(TorchCudaDouble):
        """Its allocator has no room while the model is read."""

        def memory_stats(self, device: int | None = None) -> dict[str, int]:
            found = super().memory_stats(device)
            self.refusals += 1
            return found

    model = to_load("torchscript", "model.pt", b"no archive", COLUMNS)
    for kind, error in ((TorchCudaDouble, ModelFormatError), (Refusing, DeviceFullError)):
        device = DeviceDouble()
        with pytest.raises(error):
            load(model, DeviceMemory(device), orders(LIMIT), Library(kind(device), where="cpu"))


def scripted_full() -> Any:
    """A program of TorchScript that raises what torch's allocator would: a RuntimeError, whatever it was below."""

    def compute(x: torch.Tensor) -> torch.Tensor:
        if bool(x[0, 0] > 1):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(compute)


def raising(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def compute(x: torch.Tensor) -> torch.Tensor:
        if x[0, 0] > 1:
            raise error
        return x

    return compute


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, STATUS_FULL),  # TorchScript's own
        (torch.OutOfMemoryError("CUDA out of memory."), STATUS_FULL),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), STATUS_FULL),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), STATUS_FULL),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), STATUS_FAILED),
        (ValueError("out of range"), STATUS_FAILED),
    ],
    ids=repr,
)
def test_a_batch_for_which_there_is_no_room_ends_alone(error: Exception | None, status: int) -> None:
    made = scripted_full() if error is None else raising(error)
    device = DeviceDouble()
    memory = DeviceMemory(device)
    model = Model(TorchOnDevice(made, TorchCache(TorchCudaDouble(device)), "cpu"), device, memory, COLUMNS)
    large = np.full((2, COLUMNS), 3, np.float32)
    done = model.told(large, b"one")
    assert done.status == status
    assert "Tried" not in done.text
    np.testing.assert_array_equal(model.ask(rows_of(2), b"two"), rows_of(2))
    assert model.unload() == b""


def test_what_torchs_allocator_has_counted_is_no_room_whatever_is_said() -> None:
    """Native code passes on only that a call has failed."""
    device = DeviceDouble()
    cuda = TorchCudaDouble(device)
    counted = iter((1, 0))

    def compute(x: torch.Tensor) -> torch.Tensor:
        cuda.refusals += next(counted)
        raise RuntimeError("aoti_torch_empty_strided(...) API call failed at model.cpp, line 1")

    model = Model(TorchOnDevice(compute, TorchCache(cuda), "cpu"), device, DeviceMemory(device), COLUMNS)
    assert [model.told(rows_of(1)).status for _ in range(2)] == [STATUS_FULL, STATUS_FAILED]
