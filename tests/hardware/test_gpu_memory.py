"""The checks of gpu_checks.py: on a double, that they hold and that each can fail; on a GPU where there is one."""

import ctypes
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.enclave.device_memory import Cache, DeviceMemory
from hermetic.enclave.host_memory import HostBlock
from hermetic.enclave.runtime_caches import Arena, TorchCache
from hermetic.errors import DeviceError
from tests.enclave.cuda_driver_double import CudaDriverDouble
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble
from tests.enclave.recorder_double import RecorderDouble
from tests.hardware import gpu_checks, gpu_memory
from tests.hardware.engines import Engine, Matrix, OrtEngine, TorchEngine, TorchGraphEngine, put
from tests.hardware.gpu_checks import WITH_RUNTIME, WITHOUT_RUNTIME
from tests.hardware.gpu_search import Bench, NotForgottenError
from tests.hardware.onnx_by_hand import relu_of_product

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

SIZE = 1 << 20  # bytes of a double that has room for a model
SMALL: dict[str, Any] = {"rows": 16, "columns": 64, "dirty_bytes": 2 * SIZE, "dirty_piece": 64 << 10}

Check = Callable[[Bench], str]


class NumpyEngine:
    """A runtime on a double: numpy computes, and memory comes from a cache that forgets nothing by itself."""

    def __init__(self, memory: DeviceMemory, device: DeviceDouble, keeps: str) -> None:
        self._device = device
        self._stream = device.stream()
        self._weights = 0
        self._shape = 0, 0
        self._allocator: Arena | TorchCudaDouble
        if keeps == "arena":
            self._allocator = arena = Arena(memory, SIZE)
            self.cache: Cache = arena
        else:
            self._allocator = TorchCudaDouble(device)
            self.cache = TorchCache(self._allocator)
            memory.add_cache(self.cache)

    def load(self, weights: Matrix) -> None:
        self._shape = weights.shape[0], weights.shape[1]
        self._weights = self._allocator.allocate(weights.nbytes)
        put(self._device, self._weights, weights.tobytes())

    def run(self, x: int, y: int, rows: int) -> None:
        m, n = self._shape
        between = self._allocator.allocate(4 * rows * n)

        def compute() -> None:
            product = self._at(between, rows, n)
            product[:] = self._at(x, rows, m) @ self._at(self._weights, m, n)
            self._at(y, rows, n)[:] = np.maximum(product, 0)

        self._device.later(self._stream, compute, (between, 4 * rows * n), (y, 4 * rows * n), (x, 4 * rows * m))
        self._allocator.free(between)
        self._device.wait(self._stream)

    def close(self) -> None:
        self._allocator.free(self._weights)

    def _at(self, address: int, rows: int, columns: int) -> Matrix:
        memory = (ctypes.c_uint8 * (4 * rows * columns)).from_address(address)
        return np.ctypeslib.as_array(memory).view(np.float32).reshape(rows, columns)


def on_double(keeps: str = "arena", device: DeviceDouble | None = None) -> Bench:
    """A bench over a double with a runtime that keeps memory as onnxruntime or torch do."""
    device = device or DeviceDouble(SIZE)
    return Bench(device, lambda memory: NumpyEngine(memory, device, keeps), **SMALL)


@pytest.mark.parametrize("check", WITHOUT_RUNTIME)
def test_checks_of_the_device_hold_on_a_double(check: Check) -> None:
    check(on_double())


@pytest.mark.parametrize("check", WITHOUT_RUNTIME)
def test_checks_of_the_device_hold_through_the_drivers_calls(check: Check) -> None:
    check(Bench(CudaDevice(driver=CudaDriverDouble()), **SMALL))


@pytest.mark.parametrize("keeps", ["arena", "torch"])
@pytest.mark.parametrize("check", WITH_RUNTIME)
def test_checks_of_a_runtime_hold_on_a_double(check: Check, keeps: str) -> None:
    device = DeviceDouble(SIZE)
    told = check(on_double(keeps, device))
    assert device.violations == []
    assert "before: {'input': 0, 'between': 1" in told or check is not gpu_checks.nothing_is_left_for_the_next_tenant


class NoFill(DeviceDouble):
    """A device that never wipes."""

    def fill(self, address: int, nbytes: int, stream: int) -> None:
        pass


class NoHostWipe(DeviceDouble):
    """A device whose staging is never wiped."""

    def wipe_host(self, block: HostBlock, nbytes: int) -> None:
        pass


class Late(DeviceDouble):
    """A device that does not wait."""

    def wait(self, stream: int | None) -> None:
        pass


FORGETTING = (
    gpu_checks.copies_arrive_and_are_wiped,
    gpu_checks.a_batch_that_failed_is_wiped,
    gpu_checks.numbers_travel_straight_from_shared_memory,
    gpu_checks.joined_tensors_are_one_transfer_each_way,
    gpu_checks.nothing_is_left_for_the_next_tenant,
    gpu_checks.nothing_is_left_when_nobody_asks,
    gpu_checks.a_batch_in_which_the_runtime_failed_is_wiped,
    gpu_checks.nothing_is_left_after_unload,
)


@pytest.mark.parametrize("check", FORGETTING)
def test_each_check_fails_where_the_device_is_not_wiped(check: Check) -> None:
    with pytest.raises(NotForgottenError, match=r"zeros|no canary"):
        check(on_double(device=NoFill(SIZE)))


@pytest.mark.parametrize("check", [c for c in FORGETTING if "staged" in inspect.getsource(c)])
def test_each_check_fails_where_staging_is_not_wiped(check: Check) -> None:
    with pytest.raises(NotForgottenError, match="staging"):
        check(on_double(device=NoHostWipe(SIZE)))


@pytest.mark.parametrize("check", [gpu_checks.copies_arrive_and_are_wiped, *WITH_RUNTIME[:5]])
def test_each_check_fails_where_nobody_waits(check: Check) -> None:
    with pytest.raises(NotForgottenError):
        check(on_double(device=Late(SIZE)))


def test_a_runtime_that_keeps_nothing_shows_nothing() -> None:
    """The control of the check between tenants: without it, it would pass for the wrong reason."""

    class Empty:
        def free_blocks(self) -> list[Any]:
            return []

        all_blocks = free_blocks

    def engine(memory: DeviceMemory) -> Engine:
        made = NumpyEngine(memory, device, "arena")
        made.cache = Empty()  # type: ignore[assignment]
        return made

    device = DeviceDouble(SIZE)
    for check in (gpu_checks.nothing_is_left_for_the_next_tenant, gpu_checks.nothing_is_left_after_unload):
        with pytest.raises(NotForgottenError, match="control"):
            check(Bench(device, engine, **SMALL))


@pytest.mark.parametrize("name", gpu_memory.LIBRARIES)
def test_the_engines_of_the_gpu_compute_on_the_cpu_too(name: str) -> None:
    """Their lines run, over the double's memory; where torch and onnxruntime keep theirs is the GPU's matter."""
    import onnxruntime
    import torch

    from hermetic.enclave.runtimes import torch_cuda
    from tests.enclave import onnx_on_double
    from tests.hardware.worker_engines import onnx_engine, torch_engine

    device = DeviceDouble(SIZE)
    cuda = TorchCudaDouble(device)
    recording = torch_cuda.Library(cuda, lambda: RecorderDouble(cuda), "cpu")
    ours = {"memory_limit_bytes": SIZE, "graphs": name.endswith("-graphs")}
    engines: dict[str, Callable[[DeviceMemory], Engine]] = {
        "torch": lambda memory: TorchEngine(memory, torch, cuda, "cpu"),
        "torch-graphs": lambda memory: TorchGraphEngine(memory, torch, cuda, "cpu", RecorderDouble(cuda)),
        "onnxruntime": lambda memory: OrtEngine(memory, onnxruntime, "cpu"),
    }
    sessions = onnx_on_double.library(onnx_on_double.Told())
    for graphs in ("", "-graphs"):
        engines[f"worker torch{graphs}"] = lambda memory: torch_engine(memory, recording, **ours)
        engines[f"worker onnxruntime{graphs}"] = lambda memory: onnx_engine(memory, sessions, **ours)
    gpu_checks.answers_are_right_before_and_after_wipes(Bench(device, engines[name], **SMALL))


def test_a_model_written_by_hand_is_one() -> None:
    import onnx

    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = onnx.load_model_from_string(relu_of_product(weights))
    onnx.checker.check_model(model, full_check=True)
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).tolist() == weights.tolist()


def test_the_report_says_of_each_check_how_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    device = DeviceDouble(SIZE)
    found = [
        gpu_memory.Library("torch", lambda memory: NumpyEngine(memory, device, "torch")),
        gpu_memory.Library("onnxruntime", None, "no such thing"),
    ]
    report = gpu_memory.run_all(on_double(device=device), found, gpu_memory.Report({"gpu": "double"}))
    statuses = [result.status for result in report.results]
    assert statuses == ["passed"] * 12 + ["not run"] * 6
    assert report.exit_status() == gpu_memory.NOT_RUN
    assert "not run  onnxruntime: wiping_costs: no such thing" in capsys.readouterr().out
    broken = gpu_memory.run_all(on_double(device=NoFill(SIZE)), [], gpu_memory.Report({}))
    assert broken.exit_status() == gpu_memory.FAILED
    assert gpu_memory.Report({}, report.results[:9]).exit_status() == 0


@pytest.mark.hardware
@pytest.mark.timeout(600)
def test_the_memory_of_this_gpu_forgets(tmp_path: Path) -> None:
    """The script as it is run by hand. It has passed only where nothing failed; what did not run is told."""
    try:
        CudaDevice()
    except DeviceError as error:
        pytest.skip(f"not run: {error}")
    path = tmp_path / "report.json"
    status = gpu_memory.main(["--json", str(path)])
    results = json.loads(path.read_text())["results"]
    assert status != gpu_memory.FAILED, [result for result in results if result["status"] == "failed"]
    if status == gpu_memory.NOT_RUN:
        pytest.skip(f"not run: {[result['name'] for result in results if result['status'] == 'not run']}")
