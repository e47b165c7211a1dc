"""What onnxruntime is told for a GPU: options by name, and what is refused before it is asked."""

import os
import sys

import onnxruntime
import pytest

from hermetic.enclave.gpus import Gpu, GpuOrders, Precision
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.errors import ConfigurationError, DeviceError, ModelFormatError
from tests.enclave.sealed_models import spec

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from hermetic.enclave.runtimes.onnx_cuda import check_numbers, check_orders, open_gpu, providers

GPU = Gpu(number=3, uuid="GPU-aa", minor=1)
ARENA = {"gpu_external_alloc": "1", "gpu_external_free": "2", "gpu_external_empty_cache": "3"}


def test_the_gpu_is_number_0_and_the_arena_is_ours() -> None:
    ((name, options),) = providers(GpuOrders(gpu=GPU, memory_limit_bytes=77, cudnn_search="exhaustive"), ARENA)
    assert name == "CUDAExecutionProvider"
    assert options["device_id"] == "0"  # it is shown no other
    assert options["gpu_mem_limit"] == "77"
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert options["enable_cuda_graph"] == "0"
    assert ARENA.items() <= options.items()


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
    with pytest.raises(ConfigurationError, match=r"gpu\.precision: wanted fp32 for an ONNX model .*, got bf16"):
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
