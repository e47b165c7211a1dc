"""An ONNX model on this machine's GPU as a worker has it, with each of its orders: near what the CPU computes in FP32.

In this process, without a lock-down: what a library refuses here is not the room's doing (test_gpu_worker_models.py).
"""

from typing import Any

import numpy as np
import pytest

from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import ACCURACY, GpuOrders
from hermetic.errors import DeviceError
from tests.enclave.model_on_double import Model, orders, to_load
from tests.enclave.sealed_models import linear
from tests.hardware.onnx_by_hand import relu_of_product

COLUMNS = 96
BUDGET = 1 << 30
TENSORRT = "TensorrtExecutionProvider"
EXACT = 1e-4
ORDERS: dict[str, dict[str, Any]] = {
    "cuda": {},
    "cuda, tf32": {"precision": "tf32"},
    "cuda, graphs": {"graphs": True},
    "cuda, exhaustive": {"cudnn_search": "exhaustive"},
    "tensorrt": {"tensorrt": True},
    "tensorrt, graphs": {"tensorrt": True, "graphs": True},
    "tensorrt, fp16": {"tensorrt": True, "precision": "fp16"},
    "tensorrt, bf16": {"tensorrt": True, "precision": "bf16"},
}


def tolerance(ordered: GpuOrders) -> float:
    """TensorRT takes TF32 for FP32 in this process, whose environment is not a worker's."""
    if ordered.precision == "fp32":
        return ACCURACY["tf32"].absolute if ordered.tensorrt else EXACT
    return ACCURACY[ordered.precision].absolute


@pytest.mark.hardware
@pytest.mark.parametrize("name", sorted(ORDERS))
def test_batches_are_near_those_of_the_cpu(name: str) -> None:
    try:
        device = CudaDevice()
    except DeviceError as error:
        pytest.skip(f"not run: {error}")
    import onnxruntime

    from hermetic.enclave.runtimes.onnx_cuda import load, open_gpu

    ordered = orders(BUDGET, **ORDERS[name])
    wanted = TENSORRT if ordered.tensorrt else "CUDAExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        pytest.skip(f"not run: onnxruntime {onnxruntime.__version__} was built without {wanted}")
    graph = linear(size=COLUMNS)[0].SerializeToString()
    on_cpu = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    open_gpu()
    memory = DeviceMemory(device)
    try:
        runtime = load(to_load("onnx", "model.onnx", graph, COLUMNS), memory, ordered)
    except DeviceError as error:
        if TENSORRT not in str(error):
            raise
        pytest.skip(f"not run: TensorRT's own libraries are not here: {error}")
    model = Model(runtime, device, memory, COLUMNS)
    for rows, tenant in ((4, b"one"), (1, b"one"), (4, b"one"), (3, b"two"), (4, None), (4, b"one")):
        x = np.random.default_rng(rows).standard_normal((rows, COLUMNS), np.float32)
        allowed = tolerance(ordered) * 10  # answers are sums of 96 products of numbers around 1
        np.testing.assert_allclose(model.ask(x, tenant), on_cpu.run(None, {"x": x})[0], rtol=allowed, atol=allowed)
    model.runner.close()
    memory.unload()


@pytest.mark.hardware
def test_products_in_fp32_lose_no_bit() -> None:
    """With ones as weights an answer is its input, to the bit in FP32; in TF32 it is 1."""
    try:
        device = CudaDevice()
    except DeviceError as error:
        pytest.skip(f"not run: {error}")
    import onnxruntime

    from hermetic.enclave.runtimes.onnx_cuda import load, open_gpu

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"not run: onnxruntime {onnxruntime.__version__} was built without CUDA")
    open_gpu()
    memory = DeviceMemory(device)
    graph = relu_of_product(np.eye(COLUMNS, dtype=np.float32))
    model = Model(load(to_load("onnx", "model.onnx", graph, COLUMNS), memory, orders(BUDGET)), device, memory, COLUMNS)
    x = np.full((4, COLUMNS), 1 + 2.0**-12, np.float32)  # TF32 has ten bits of fraction
    np.testing.assert_array_equal(model.ask(x, b"one"), x)
    model.runner.close()
    memory.unload()
