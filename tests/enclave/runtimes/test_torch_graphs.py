"""Recorded batches, with a recorder that is none: what is recorded, what a replay computes, and what it leaves."""

import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hermetic.enclave.batch_frames import STATUS_OK, Batch, Tensor, decode_done
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes import torch_cuda
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.torch_cuda import TorchOnDevice
from hermetic.enclave.runtimes.torch_graphs import buckets, check_fixed_shapes
from hermetic.errors import ConfigurationError, DeviceFullError, ModelFormatError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble
from tests.enclave.recorder_double import BETWEEN, WORKSPACE, RecorderDouble
from tests.enclave.sealed_models import spec
from tests.enclave.worker_on_double import described

COLUMNS, LARGEST = 8, 6
MODEL = ModelToLoad("torch-export", None, {}, (spec("x", "FP32", COLUMNS),), (spec("y", "FP32", COLUMNS),), LARGEST, 1)


DESCRIPTION = described("FP32", COLUMNS, COLUMNS).model_copy(update={"max_batch_size": LARGEST})


class Recorded:
    """A runner on doubles over a module, every batch replayed."""

    def __init__(self, module: Callable[..., Any], model: ModelToLoad = MODEL) -> None:
        self.device = DeviceDouble()
        self.memory = DeviceMemory(self.device)
        cuda = TorchCudaDouble(self.device)
        cache = TorchCache(cuda)
        self.memory.add_cache(cache)
        self.recorder = RecorderDouble(cuda)
        runtime = TorchOnDevice(module, cache, "cpu")
        runtime.record(model, self.recorder)
        self.runner = DeviceRunner(runtime, DESCRIPTION, self.memory)
        self.places = layout(DESCRIPTION, 1, 4096)
        self.buffers = SharedBuffers(mmap.mmap(-1, self.places.size), self.places)

    def ask(self, rows: np.ndarray[Any, Any], tenant: bytes | None = None) -> np.ndarray[Any, Any]:
        self.buffers.region(0, self.places.inputs[0])[0][: rows.nbytes] = rows.tobytes()
        batch = Batch(0, 0, (Tensor(rows.nbytes, rows.shape),))
        done = decode_done(self.runner.finish(self.runner.start(batch, self.buffers, tenant)))
        assert done.status == STATUS_OK, done.text
        answer = bytes(self.buffers.region(0, self.places.outputs[0])[0][: rows.nbytes])
        return np.frombuffer(answer, np.float32).reshape(rows.shape)


def rows_of(count: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(1, 2, (count, COLUMNS)).astype(np.float32)


@pytest.mark.parametrize(
    ("largest", "recorded"), [(0, (0,)), (1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_powers_of_two_and_the_largest_are_recorded(largest: int, recorded: tuple[int, ...]) -> None:
    assert buckets(largest) == recorded


def test_each_batch_is_replayed_in_the_smallest_recording_that_holds_it() -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone().numpy())
        return 2 * x

    recorded = Recorded(double)
    assert recorded.recorder.calls == ["warm-up", *["warm-up", "warm-up", "record"] * 4]
    for count, bucket in ((1, 1), (3, 4), (6, 6), (5, 6), (2, 2), (3, 4)):
        seen.clear()
        recorded.recorder.calls.clear()
        rows = rows_of(count, seed=count)
        np.testing.assert_array_equal(recorded.ask(rows, b"one"), 2 * rows)
        (computed,) = seen
        assert computed.shape == (bucket, COLUMNS)
        np.testing.assert_array_equal(computed[:count], rows)
        assert not computed[count:].any()  # rows of an earlier, larger batch are gone
        assert recorded.recorder.calls == ["after", "replay", "copied out"]


def test_what_a_replay_leaves_is_wiped_before_another_tenant_and_at_the_end() -> None:
    recorded = Recorded(lambda x: 2 * x)
    mine = rows_of(4)
    recorded.ask(mine, b"one")
    left = recorded.device.device_bytes()
    assert mine.tobytes() in left
    assert (2 * mine).tobytes() in left
    assert BETWEEN in left
    recorded.ask(mine, b"one")
    recorded.ask(rows_of(1, seed=2), b"two")
    left = recorded.device.device_bytes()
    assert mine.tobytes()[:8] not in left
    assert (2 * mine).tobytes()[:8] not in left
    assert left.count(BETWEEN) == 1  # of its own
    recorded.runner.close()
    recorded.memory.unload()
    assert not recorded.device.device_bytes().strip(b"\0")
    assert recorded.device.violations == []


def test_nothing_of_a_replay_stays_where_nobody_asks_for_more() -> None:
    """The workspaces of cuBLAS too: torch calls them used until the process ends, and every product writes there."""
    recorded = Recorded(lambda x: 2 * x)
    mine = rows_of(4)
    recorded.ask(mine, b"one")
    left = recorded.device.device_bytes()
    assert WORKSPACE in left, "control: the replay has written there"
    assert BETWEEN in left
    recorded.runner.wipe_kept()
    left = recorded.device.device_bytes()
    assert WORKSPACE[:8] not in left
    assert BETWEEN[:8] not in left
    assert mine.tobytes()[:8] not in left
    np.testing.assert_array_equal(recorded.ask(mine, b"two"), 2 * mine)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operators torch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_both_of_cublas_workspaces_are_taken_before_there_is_a_batch() -> None:
    """A product alone is cuBLAS's; with a bias it is cuBLASLt's, which has a workspace of its own for each stream."""
    device = DeviceDouble()
    runtime = TorchOnDevice(lambda x: x, TorchCache(TorchCudaDouble(device)), "cpu")
    with Products() as products:
        runtime.prepare(device.stream())
    assert {"mm.default", "addmm.default"} <= set(products.names)
    with Products() as products:
        runtime.record(MODEL, RecorderDouble(TorchCudaDouble(device)))
    assert {"mm.default", "addmm.default"} <= set(products.names)


def test_a_model_is_right_again_after_its_recordings_were_wiped() -> None:
    weights = torch.eye(COLUMNS) * 3
    recorded = Recorded(lambda x: x @ weights)
    for tenant in (b"one", b"two", None, b"one"):
        np.testing.assert_allclose(recorded.ask(rows_of(3), tenant), 3 * rows_of(3))


def runs_out(error: RuntimeError, *, counted: TorchCudaDouble | None = None, at: int = 2) -> Callable[..., Any]:
    """Return a module that finds no room at its `at`-th run; `counted`: torch's allocator takes note of it."""
    runs = iter(range(1, 99))

    def module(x: torch.Tensor) -> torch.Tensor:
        if next(runs) == at:
            if counted is not None:
                counted.refusals += 1
            raise error
        return 2 * x

    return module


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", FULL)
def test_no_room_to_record_is_said_as_such(error: RuntimeError) -> None:
    with pytest.raises(DeviceFullError, match=r"^GPU memory: wanted room for recordings of its batches"):
        Recorded(runs_out(error))


def test_no_room_that_the_end_of_a_recording_hides_is_said_as_such() -> None:
    class Capturing(RecorderDouble):
        """Computes while it records, and ends as torch does: with an error of its own in place of the module's."""

        def record(self, act: Callable[[], object]) -> Callable[[], object]:
            try:
                act()
            except RuntimeError:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
            return act

    cuda = TorchCudaDouble(DeviceDouble())
    runtime = TorchOnDevice(runs_out(FULL[0], at=3), TorchCache(cuda), "cpu")
    with pytest.raises(DeviceFullError):
        runtime.record(MODEL, Capturing(cuda))


def test_what_an_allocator_has_counted_is_no_room_whatever_is_said() -> None:
    cuda = TorchCudaDouble(DeviceDouble())
    module = runs_out(RuntimeError("aoti_torch_empty_strided(...) API call failed"), counted=cuda)
    with pytest.raises(DeviceFullError):
        TorchOnDevice(module, TorchCache(cuda), "cpu").record(MODEL, RecorderDouble(cuda))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda x: x[:, :2], r"output 'y': wanted torch.float32\[1, 8\], got \(torch.float32, \[1, 2\]\)"),
        (lambda x: x.double(), r"got \(torch.float64"),
        (lambda x: (x, x), "outputs: wanted 1, got 2"),
        (lambda x: x @ x, "graphs: wanted a model that can be recorded, got RuntimeError: .* for 1 rows"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_load(module: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ModelFormatError, match=reason):
        Recorded(module)


def test_shapes_that_are_not_fixed_are_refused_by_name() -> None:
    words = replace(MODEL, inputs=(spec("words", "INT64", -1),))
    for model, name in ((words, "words"), (replace(MODEL, unbatched=frozenset({"y"})), "y")):
        with pytest.raises(ConfigurationError, match=rf"gpu\.graphs: .* fixed but for its rows, got \['{name}'\]"):
            check_fixed_shapes(model)


@pytest.mark.parametrize(
    ("format_name", "more", "said"),
    [
        ("torch-export", {"tensorrt": True}, r"gpu\.tensorrt: wanted an ONNX model"),
        ("aot-inductor", {"graphs": True}, r"gpu\.graphs: wanted no graphs of a program in native code"),
        ("aot-inductor", {"precision": "bf16"}, r"gpu\.precision: wanted fp32 or tf32 for a program .*, got bf16"),
    ],
)
def test_orders_that_a_program_cannot_follow_are_refused(format_name: str, more: dict[str, Any], said: str) -> None:
    orders = GpuOrders(gpu=Gpu(number=0, uuid="GPU-aa", minor=0), memory_limit_bytes=1, **more)
    with pytest.raises(ConfigurationError, match=said):
        torch_cuda.load(replace(MODEL, format=format_name), DeviceMemory(DeviceDouble()), orders)
