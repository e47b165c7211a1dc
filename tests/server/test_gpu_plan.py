"""Which instances go to which GPUs."""

import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.gpus import Gpu
from hermetic.errors import ConfigurationError
from hermetic.server.config import ModelSettings
from hermetic.server.cpu_plan import Place
from hermetic.server.gpu_plan import NO_GPUS, GpuNumbers, GpuPlan, gpus_wanted, on_gpu, orders

GPUS = tuple(Gpu(number=number, uuid=f"GPU-{number}", minor=number) for number in range(3))
PLAN = GpuPlan(GPUS)


def numbers(gpus: GpuNumbers, instances: int | None = None, used: tuple[int, ...] = ()) -> list[int | None]:
    settings = ModelSettings(instances=instances)
    placed = PLAN.place("iris", ModelConfiguration(gpus=gpus), settings, [GPUS[number] for number in used])
    return [None if gpu is None else gpu.number for gpu in placed]


@pytest.mark.parametrize(
    ("device", "sealed", "wanted"),
    [
        (None, (), ()),
        (None, (1,), (1,)),
        ("cpu", "all", ()),
        ("cuda", (), "all"),
        ("cuda", (0, 2), (0, 2)),
        ("cuda:2", "all", (2,)),
    ],
)
def test_the_operators_word_goes_before_the_publishers(
    device: str | None, sealed: GpuNumbers, wanted: GpuNumbers
) -> None:
    assert gpus_wanted(device, sealed) == wanted


def test_one_worker_on_each_gpu() -> None:
    assert numbers("all") == [0, 1, 2]
    assert numbers((0, 2)) == [0, 2]


def test_fewer_go_where_the_fewest_are() -> None:
    assert numbers("all", 1) == [0]
    assert numbers("all", 1, used=(0, 0, 1)) == [2]
    assert numbers("all", 2, used=(0, 0, 1)) == [1, 2]


def test_on_the_cpu_there_are_as_many_as_are_said() -> None:
    assert PLAN.place("iris", ModelConfiguration(instances=2), ModelSettings(), ()) == (None, None)


@pytest.mark.parametrize(
    ("plan", "gpus", "instances", "text"),
    [
        (NO_GPUS, "all", None, "model iris: device: expected an NVIDIA GPU, got none"),
        (PLAN, (1, 7), None, "model iris: device: expected GPUs out of [0, 1, 2], got [7]"),
        (PLAN, (1,), 2, "model iris: instances: expected at most one on each of the GPUs [1], got 2"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    plan: GpuPlan, gpus: GpuNumbers, instances: int | None, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan.place("iris", ModelConfiguration(gpus=gpus), ModelSettings(instances=instances), ())
    assert text in str(caught.value)


def test_a_worker_on_a_gpu_has_three_batches_unless_the_operator_says_otherwise() -> None:
    assert on_gpu(Place(), None, ModelSettings()) == Place()
    assert on_gpu(Place(), GPUS[1], ModelSettings()) == Place(gpu=GPUS[1], batches_in_flight=3)
    said = ModelSettings(batches_in_flight=1)
    assert on_gpu(Place(batches_in_flight=1), GPUS[1], said).batches_in_flight == 1


def test_a_worker_is_told_its_gpu_and_its_budget() -> None:
    told = orders(GPUS[2], ModelSettings.model_validate({"gpu": {"memory_limit_bytes": 5, "graphs": True}}))
    assert told is not None
    assert (told.gpu, told.memory_limit_bytes, told.graphs, told.tensorrt) == (GPUS[2], 5, True, False)
    assert orders(None, ModelSettings()) is None


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:0,1", "CUDA"])
def test_a_device_is_one_of_three_forms(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        ModelSettings(device=device)
