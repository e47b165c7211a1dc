"""The benchmark of GPUs: its loops on a double of the device, its models on the CPU."""

from collections.abc import Callable
from ctypes import memmove, string_at

import numpy as np
import pytest

from hermetic.bench import gpu
from hermetic.bench.gpu_loop import Settings, measure
from hermetic.bench.gpu_models import MODELS, make
from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.errors import MeasurementError
from tests.enclave.cuda_driver_double import CudaDriverDouble
from tests.enclave.device_double import DeviceDouble

QUICK = Settings(rows=(1, 3), streams=(1, 2), seconds=0.0, rounds=2, least_batches=4)


class Twice:
    """y = x + x, on a double."""

    name = "twice"
    row_in = row_out = 64

    def __init__(self, device: DeviceDouble, wrong: float = 0.0) -> None:
        self._device = device
        self._wrong = wrong
        self.most = 0

    def inputs(self, rows: int, random: np.random.Generator) -> bytes:
        return random.integers(1, 9, (rows, 16)).astype("<f4").tobytes()

    def launch(self, x: int, y: int, rows: int, stream: int) -> None:
        size = 64 * rows

        def compute() -> None:
            memmove(y, (2 * np.frombuffer(string_at(x, size), "<f4")).tobytes(), size)

        self._device.compute(stream, compute, (y, size), (x, size))
        waiting = [one for one in self._device._streams.values() if one]
        self.most = max(self.most, len(waiting))

    def bare(self, content: bytes, rows: int) -> Callable[[], bytes]:
        return (2 * np.frombuffer(content, "<f4") + self._wrong).tobytes


def test_each_batch_size_and_number_of_streams_is_a_point_and_nothing_is_left() -> None:
    device = DeviceDouble()
    model = Twice(device)
    points = measure(model, device, QUICK)
    assert [(point.rows, point.streams) for point in points] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert all(point.ratio == point.rate / point.bare_rate > 0 for point in points)
    assert all(0 <= point.wipe_share <= 1 for point in points)
    assert model.most == 2, "two streams have work at a time"
    assert device.violations == []
    assert not device.device_bytes().strip(b"\0")


def test_a_path_that_answers_otherwise_is_not_measured() -> None:
    device = DeviceDouble()
    with pytest.raises(MeasurementError, match="twice"):
        measure(Twice(device, wrong=1.0), device, QUICK)
    assert device.violations == []


def test_the_lines_for_torch_run_without_a_gpu() -> None:
    import torch

    part = gpu.part_of("mlp", CudaDevice(driver=CudaDriverDouble()), gpu.QUICK, torch, "cpu")
    assert (part.status, part.why, len(part.points)) == ("ran", "", 4)


def test_a_model_that_fails_is_told_and_stops_no_other() -> None:
    import torch

    part = gpu.part_of("mlp", DeviceDouble(size=4096), gpu.QUICK, torch, "cpu")
    assert part.status == "failed"
    assert part.why


@pytest.mark.parametrize(
    ("name", "parameters"), [("mlp", 20_752), ("resnet50", 25_557_032), ("bert-base", 108_495_360)]
)
def test_networks_have_the_size_of_their_names(name: str, parameters: int) -> None:
    import torch

    assert name in MODELS
    with torch.device("meta"):
        module, *_ = make(torch, name)
    assert sum(one.numel() for one in module.parameters()) == parameters


def test_what_did_not_run_says_why() -> None:
    document = gpu.document([gpu.Part("mlp", "not run", "no driver")])
    assert document["parts"] == [{"name": "mlp", "status": "not run", "why": "no driver", "points": []}]
    assert document["goals"] == {"ratio": 0.95, "wipe_share": 0.02}
