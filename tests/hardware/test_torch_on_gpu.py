"""Batches of a torch model on this machine's GPU, recorded, at each precision: near what the CPU computes in FP32."""

import mmap

import numpy as np
import pytest

from hermetic.enclave.batch_frames import STATUS_OK, Batch, Tensor, decode_done
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.gpus import ACCURACY, Precision
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.errors import DeviceError
from tests.enclave.sealed_models import spec
from tests.enclave.worker_on_double import described

COLUMNS, LARGEST = 64, 6


@pytest.mark.hardware
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_recorded_batches_are_near_those_of_the_cpu(precision: Precision) -> None:
    try:
        device = CudaDevice()
    except DeviceError as error:
        pytest.skip(str(error))
    import torch

    from hermetic.enclave.runtimes.interface import ModelToLoad
    from hermetic.enclave.runtimes.torch_cuda import TorchOnDevice
    from hermetic.enclave.runtimes.torch_graphs import CudaRecorder

    torch.manual_seed(1)
    layers = (torch.nn.Linear(COLUMNS, COLUMNS), torch.nn.GELU(), torch.nn.LayerNorm(COLUMNS))
    module = torch.nn.Sequential(*layers).eval()
    ends = (spec("x", "FP32", COLUMNS),), (spec("y", "FP32", COLUMNS),)
    memory, cache = DeviceMemory(device), TorchCache(torch.cuda)
    memory.add_cache(cache)
    batches = [np.random.default_rng(rows).standard_normal((rows, COLUMNS), np.float32) for rows in (1, 3, 6, 5, 3)]
    with torch.inference_mode():
        wanted = [module(torch.from_numpy(rows)).numpy() for rows in batches]
    runtime = TorchOnDevice(module.to("cuda"), cache, precision=precision)
    runtime.record(ModelToLoad("torch-export", None, {}, *ends, LARGEST, 1), CudaRecorder())
    description = described("FP32", COLUMNS, COLUMNS).model_copy(update={"max_batch_size": LARGEST})
    runner, places = DeviceRunner(runtime, description, memory), layout(description, 1, 4096)
    buffers = SharedBuffers(mmap.mmap(-1, places.size), places)
    allowed = ACCURACY.get(precision)
    relative, absolute = (1e-4, 1e-5) if allowed is None else allowed[1:]
    for tenant, rows, answer in zip((b"one", b"one", b"two", b"two", None), batches, wanted, strict=True):
        buffers.region(0, places.inputs[0])[0][: rows.nbytes] = rows.tobytes()
        pending = runner.start(Batch(0, 0, (Tensor(rows.nbytes, rows.shape),)), buffers, tenant)
        done = decode_done(runner.finish(pending))
        assert done.status == STATUS_OK, done.text
        got = np.frombuffer(bytes(buffers.region(0, places.outputs[0])[0][: rows.nbytes]), np.float32)
        np.testing.assert_allclose(got.reshape(rows.shape), answer, rtol=relative, atol=absolute)
    runner.close()
    memory.unload()


@pytest.mark.hardware
def test_products_and_convolutions_in_fp32_lose_no_bit() -> None:
    """With ones as weights an answer is its input, to the bit in FP32; in TF32 it is 1."""
    try:
        CudaDevice()
    except DeviceError as error:
        pytest.skip(str(error))
    import torch

    from hermetic.enclave.runtimes.torch_precision import multiply_in

    multiply_in("fp32")
    one = 1 + 2.0**-12  # TF32 has ten bits of fraction
    square = torch.full((256, 256), one, device="cuda")
    assert torch.equal(torch.mm(square, torch.eye(256, device="cuda")), square)
    image = torch.full((8, 64, 32, 32), one, device="cuda")
    kernel = torch.eye(64, device="cuda").reshape(64, 64, 1, 1)
    assert torch.equal(torch.nn.functional.conv2d(image, kernel), image)
