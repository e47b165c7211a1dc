"""A worker's side on a double of a GPU: two batches at a time, right answers, wiped."""

import numpy as np
import pytest

from hermetic.bench.gpu.networks import Network
from hermetic.bench.gpu.ours import LANES, opened_on_gpu
from hermetic.bench.gpu.sides import Pace, check_equal, take_turn
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes.torch_cuda import TorchOnDevice
from hermetic.errors import ConfigurationError, MeasurementError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble

torch = pytest.importorskip("torch")

NETWORK = Network("tiny", "FP32", (8,), 4, 16)
ROWS = 3


def test_the_workers_runner_is_what_is_measured_and_leaves_nothing() -> None:
    device = DeviceDouble()
    memory = DeviceMemory(device)
    weights = torch.ones(8, 4)
    runtime = TorchOnDevice(lambda x: x @ weights, TorchCache(TorchCudaDouble(device)), "cpu")
    opened = opened_on_gpu(DeviceRunner(runtime, NETWORK.description("torch"), memory), memory, NETWORK, "torch")
    wanted = NETWORK.inputs(ROWS) @ np.ones((8, 4), np.float32)
    for lanes in range(1, LANES + 1):
        side = opened.make(ROWS, lanes)
        turn = take_turn(side, ROWS, lanes, Pace(0.0, 5))
        assert turn.wipe_ms > 0
        for lane in range(lanes):
            check_equal("tiny", wanted, side.answer(lane))
        side.close()
    assert (opened.copies(ROWS) or 0) > 0
    with pytest.raises(ConfigurationError, match=f"at most {LANES} batches"):
        opened.make(ROWS, LANES + 1)
    opened.close()
    assert device.violations == []
    assert not device.device_bytes().strip(b"\0")


def test_a_batch_without_an_answer_is_no_measurement() -> None:
    def fails(x: object) -> object:
        raise ValueError("no")

    device = DeviceDouble()
    memory = DeviceMemory(device)
    runtime = TorchOnDevice(fails, TorchCache(TorchCudaDouble(device)), "cpu")
    opened = opened_on_gpu(DeviceRunner(runtime, NETWORK.description("torch"), memory), memory, NETWORK, "torch")
    side = opened.make(ROWS, 1)
    with pytest.raises(MeasurementError, match="wanted an answer"):
        take_turn(side, ROWS, 1, Pace(0.0, 1))
    opened.close()
    assert device.violations == []
