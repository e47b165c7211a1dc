"""What onnxruntime is told for a GPU: options by name, and what is refused before it is asked."""

import os
import sys
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hermetic.enclave.batch_frames import STATUS_FAILED, STATUS_FULL
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import Gpu, GpuOrders, Precision, environment_of
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.errors import ConfigurationError, DeviceError, DeviceFullError, ModelFormatError
from tests.enclave.device_double import DeviceDouble
from tests.enclave.model_on_double import Model, orders, to_load
from tests.enclave.sealed_models import linear, spec

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from hermetic.enclave.runtimes import onnx_cuda
from hermetic.enclave.runtimes.onnx_cuda import check_numbers, check_orders, load, open_gpu, providers
from tests.enclave.onnx_on_double import BETWEEN, SessionOnArena, Told, library

GPU = Gpu(number=3, uuid="GPU-aa", minor=1)
ARENA = {"gpu_external_alloc": "1", "gpu_external_free": "2", "gpu_external_empty_cache": "3"}


def test_the_gpu_is_number_0_and_the_arena_is_ours() -> None:
    ((name, options),) = providers(GpuOrders(gpu=GPU, memory_limit_bytes=77, cudnn_search="exhaustive"), ARENA)
    assert name == "CUDAExecutionProvider"
    assert options["device_id"] == "0"  # it is shown no other
    assert options["gpu_mem_limit"] == "77"
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert options["enable_cuda_graph"] == "0"
    assert options["use_tf32"] == "0"  # onnxruntime's own default is 1
    assert ARENA.items() <= options.items()


def test_tf32_is_taken_only_where_it_is_asked_for_by_name() -> None:
    for precision, allowed in (("fp32", "0"), ("tf32", "1"), ("fp16", "0"), ("bf16", "0")):
        told = GpuOrders(gpu=GPU, memory_limit_bytes=77, tensorrt=True, precision=precision)
        *_, (_, cuda) = providers(told, ARENA)
        assert cuda["use_tf32"] == allowed
        # TensorRT's provider has no option for it.
        assert environment_of(told).get("NVIDIA_TF32_OVERRIDE") == (None if precision == "tf32" else "0")


def test_cudas_libraries_are_there_before_a_session_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def preload() -> None:
        calls.append("libraries")
        sys.stdout.write("Failed to load libcublasLt.so.12\n")

    def session(*_arguments: object, **_options: object) -> None:
        calls.append("session")
        raise DeviceError("no GPU here")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceError, match="no GPU here"):
        open_gpu()
    assert calls == ["libraries", "session"]
    assert capsys.readouterr().out == ""


def test_tensorrt_stands_first_and_keeps_no_files() -> None:
    orders = GpuOrders(gpu=GPU, memory_limit_bytes=77, graphs=True, tensorrt=True)
    (first, options), (second, cuda) = providers(orders, ARENA)
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_max_workspace_size"] == "77"  # never more than the whole budget
    files = {name for name in options if "cache" in name or "dump" in name}
    assert len(files) == 4
    assert {options[name] for name in files} == {"False"}  # it takes no numbers
    assert options["trt_cuda_graph_enable"] == "True"
    assert cuda["enable_cuda_graph"] == "1"


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", ("False", "False")), ("fp16", ("True", "False")), ("bf16", ("False", "True"))],
)
def test_tensorrt_computes_in_the_precision_that_is_asked_for(precision: Precision, flags: tuple[str, str]) -> None:
    orders = GpuOrders(gpu=GPU, memory_limit_bytes=99, tensorrt=True, tensorrt_workspace_bytes=7, precision=precision)
    (_, options), _ = providers(orders, ARENA)
    assert (options["trt_fp16_enable"], options["trt_bf16_enable"]) == flags
    assert options["trt_max_workspace_size"] == "7"


def test_what_this_onnxruntime_or_an_onnx_model_cannot_do_is_refused_by_name() -> None:
    orders = GpuOrders(gpu=GPU, memory_limit_bytes=77, tensorrt=True)
    with pytest.raises(
        ConfigurationError, match=r"gpu\.tensorrt: wanted .*TensorrtExecutionProvider, got one with \['CPU"
    ):
        check_orders(orders, ["CPUExecutionProvider"])
    check_orders(orders, ["CPUExecutionProvider", "TensorrtExecutionProvider"])
    plain = orders.model_copy(update={"tensorrt": False})
    check_orders(plain, [])
    check_orders(plain.model_copy(update={"precision": "tf32"}), [])
    with pytest.raises(ConfigurationError, match=r"gpu\.precision: wanted fp32 or tf32 for an ONNX model .*, got bf16"):
        check_orders(plain.model_copy(update={"precision": "bf16"}), [])


def test_strings_are_refused_by_name() -> None:
    model = ModelToLoad("onnx", None, {}, (spec("words", "BYTES", 1),), (spec("y", "FP32", 1),), 1, 1)
    with pytest.raises(ModelFormatError, match="'words'"):
        check_numbers(model)


def test_the_server_starts_workers_for_what_they_load() -> None:
    from hermetic.enclave import runtimes
    from hermetic.enclave.isolation.profiles import PROFILE_OF_FORMAT, PROFILE_ON_GPU

    for profiles in (PROFILE_OF_FORMAT, PROFILE_ON_GPU):
        assert all(runtimes.runs(profile, name) for name, profile in profiles.items())
    assert not runtimes.runs("onnx-cuda", "safetensors")


COLUMNS = 96
BUDGET = 64 << 10


def loaded(told: Told, *, limit: int = BUDGET, **more: Any) -> Model:
    """Return a model that the product's own `load` has loaded, in sessions that allocate from its arena."""
    device = DeviceDouble()
    memory = DeviceMemory(device)
    graph, _ = linear()
    model = to_load("onnx", "model.onnx", graph.SerializeToString(), COLUMNS)
    return Model(load(model, memory, orders(limit, **more), library(told)), device, memory, COLUMNS)


def rows_of(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(count).uniform(-1, 1, (count, COLUMNS)).astype(np.float32)


def wanted(rows: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """What onnxruntime answers without any of this."""
    graph, _ = linear()
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": rows})[0]


def test_a_model_is_loaded_asked_wiped_and_unloaded() -> None:
    told = Told()
    model = loaded(told, cudnn_search="default")
    (((name, options),),) = told.providers
    assert (name, options["use_tf32"], options["cudnn_conv_algo_search"]) == ("CUDAExecutionProvider", "0", "DEFAULT")
    assert told.only_on_the_gpu == [True]
    assert b"MatMul" in model.device.device_bytes(), "control: what the session keeps is on the device"
    for count, tenant in ((3, b"one"), (1, b"one"), (4, b"two"), (2, None)):
        np.testing.assert_allclose(model.ask(rows_of(count), tenant), wanted(rows_of(count)), rtol=1e-5, atol=1e-5)
        assert BETWEEN in model.device.device_bytes(), "control: a run leaves what lay between"
    model.runner.wipe_kept()
    assert BETWEEN[:8] not in model.device.device_bytes()
    assert model.unload() == b""
    assert model.device.violations == []


def test_a_place_and_shape_is_recorded_when_it_first_comes_and_replayed_from_then_on() -> None:
    told = Told()
    model = loaded(told, graphs=True)
    for count in (3, 1, 3, 1, 2, 3):  # the largest first: request buffers that grow are other places
        np.testing.assert_allclose(model.ask(rows_of(count), b"one"), wanted(rows_of(count)), rtol=1e-5, atol=1e-5)
    assert told.graphs == ["1", "2", "1", "2", "3", "1"]
    told.graphs.clear()
    plain = loaded(told)
    plain.ask(rows_of(1))
    assert told.graphs == ["-1"]


def test_a_model_for_which_the_budget_has_no_room_is_refused_with_the_bytes() -> None:
    with pytest.raises(DeviceFullError, match=r"^GPU memory: wanted at most 512 bytes for this model, got \d+$"):
        loaded(Told(), limit=512)


def test_a_batch_for_which_there_is_no_room_ends_alone() -> None:
    told = Told()
    model = loaded(told)
    told.bytes_between = BUDGET
    done = model.told(rows_of(2), b"one")
    assert (done.status, done.text[:38]) == (STATUS_FULL, "GPU memory: wanted at most 65536 bytes")
    told.bytes_between = 512
    told.fails = RuntimeError("CUDA failure 2: out of memory ; GPU=0")  # not the arena's
    done = model.told(rows_of(2), b"one")
    assert (done.status, done.text[:38]) == (STATUS_FULL, "GPU memory: wanted room for this batch")
    told.fails = RuntimeError("CUDA error: an illegal memory access")
    assert model.told(rows_of(2), b"one").status == STATUS_FAILED
    told.fails = None
    np.testing.assert_allclose(model.ask(rows_of(2)), wanted(rows_of(2)), rtol=1e-5, atol=1e-5)
    assert model.unload() == b""


def test_a_refusal_that_onnxruntime_did_without_is_not_told_of_a_later_error() -> None:
    told = Told()
    model = loaded(told)
    runtime: Any = model.runner._runtime
    assert runtime._arena.on_allocate(BUDGET) is None  # a search for kernels asks for more than it needs
    told.fails = RuntimeError("CUDA error: an illegal memory access")
    assert model.told(rows_of(2)).status == STATUS_FAILED


def test_a_session_that_is_not_on_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionOnArena, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"wanted CUDAExecutionProvider on this GPU, got \['CPUExecutionProvider'\]"):
        loaded(Told())


def test_a_file_that_is_no_model_is_refused_as_that() -> None:
    model = to_load("onnx", "model.onnx", b"no model", COLUMNS)
    with pytest.raises(ModelFormatError):
        load(model, DeviceMemory(DeviceDouble()), orders(BUDGET), library(Told()))


def test_tensorrt_is_asked_for_where_it_is_and_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(onnx_cuda, "load_tensorrt", lambda: asked.append("its libraries"))
    model = to_load("onnx", "model.onnx", linear()[0].SerializeToString(), COLUMNS)
    memory = DeviceMemory(DeviceDouble())
    with pytest.raises(ConfigurationError, match=r"gpu\.tensorrt"):
        load(model, memory, orders(BUDGET, tensorrt=True), library(Told()))
    told = Told()
    with_it = library(told, ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    load(model, memory, orders(BUDGET, tensorrt=True, precision="fp16"), with_it)
    assert asked == ["its libraries"]
    ((first, second),) = told.providers
    assert (first[0], first[1]["trt_fp16_enable"]) == ("TensorrtExecutionProvider", "True")
    assert second[0] == "CUDAExecutionProvider"
