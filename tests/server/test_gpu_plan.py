"""Which instances go to which GPUs."""

import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.gpus import Gpu, MigSlice
from hermetic.errors import ConfigurationError
from hermetic.server.config import ModelSettings
from hermetic.server.cpu_plan import Place
from hermetic.server.gpu_plan import NO_GPUS, GpuNumbers, GpuPlan, gpus_wanted, on_gpu, orders

GIB = 1 << 30
GPUS = tuple(Gpu(number=number, uuid=f"GPU-{number}", minor=number) for number in range(3))
PLAN = GpuPlan(GPUS)


def numbers(gpus: GpuNumbers, instances: int | None = None, used: tuple[int, ...] = ()) -> list[int | None]:
    settings = ModelSettings(instances=instances)
    placed = PLAN.place("iris", ModelConfiguration(gpus=gpus), settings, [(GPUS[number], 1) for number in used])
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


def gpu(number: int, gib: int, index: int | None = None, *, confidential: bool = False) -> Gpu:
    slice_ = None
    if index is not None:
        caps = (10 * number + index, 10 * number + index + 100)
        slice_ = MigSlice(
            index=index, uuid=f"MIG-{number}{index}", gpu_instance=1, compute_instance=0, capabilities=caps
        )
    return Gpu(
        number=number,
        uuid=f"GPU-{number}",
        minor=number,
        memory_bytes=gib * GIB,
        confidential=confidential,
        slice=slice_,
    )


CUT = GpuPlan([gpu(1, 10, 1), gpu(0, 80), gpu(1, 20, 0)])


def placed(plan: GpuPlan, used: list[tuple[Gpu, int]], gib: int = 8, **settings: object) -> list[str]:
    told = ModelSettings.model_validate({"gpu": {"memory_limit_bytes": gib * GIB}, **settings})
    wanted = gpus_wanted(told.device, "all")
    return [one.label for one in plan.place("iris", ModelConfiguration(gpus=wanted), told, used) if one is not None]


def test_a_gpu_that_is_cut_stands_for_its_slices() -> None:
    assert placed(CUT, []) == ["0", "1:0", "1:1"]
    assert placed(CUT, [], device="cuda:1") == ["1:0", "1:1"]
    assert placed(CUT, [], device="cuda:1:1") == ["1:1"]
    assert placed(CUT, [], instances=1) == ["0"]
    assert placed(CUT, [(gpu(0, 80), GIB), (gpu(1, 20, 0), GIB)], instances=1) == ["1:1"]


def test_a_slice_that_is_not_there_is_refused_by_name() -> None:
    for device, got in (("cuda:1:7", "'1:7'"), ("cuda:0:0", "'0:0'")):
        with pytest.raises(ConfigurationError) as caught:
            placed(CUT, [], device=device)
        assert f"device: expected GPUs out of ['0', '1:0', '1:1'], got [{got}]" in str(caught.value)


def test_what_fits_in_a_slice_is_placed_there_and_more_is_not() -> None:
    assert placed(CUT, [], gib=9, device="cuda:1:1") == ["1:1"]
    with pytest.raises(ConfigurationError) as caught:
        placed(CUT, [], gib=10, device="cuda:1:1")
    assert (
        f"model iris: gpu.memory_limit_bytes: expected at most {9 * GIB} on GPU 1:1, "
        f"of {10 * GIB} with 0 workers there, got {10 * GIB}"
    ) in str(caught.value)


def test_the_budgets_of_all_models_on_a_gpu_fit_in_it_together() -> None:
    plan, first = GpuPlan([gpu(0, 24), gpu(1, 24)]), gpu(0, 24)
    assert placed(plan, [(first, 8 * GIB)], gib=14, device="cuda:0") == ["0"]
    with pytest.raises(ConfigurationError) as caught:
        placed(plan, [(first, 8 * GIB)], gib=15, device="cuda:0")
    told = f"expected at most {14 * GIB} on GPU 0, of {24 * GIB} with 1 workers there, got {15 * GIB}"
    assert told in str(caught.value)
    with pytest.raises(ConfigurationError, match=f"expected at most 0 on GPU 0, of {24 * GIB} with 3 workers there"):
        placed(plan, [(first, 8 * GIB)] * 3, gib=1, device="cuda:0")


def test_where_there_is_a_choice_it_goes_where_it_fits() -> None:
    plan, roomy = GpuPlan([gpu(0, 24), gpu(1, 80)]), gpu(1, 80)
    assert placed(plan, [(roomy, GIB), (roomy, GIB)], gib=40, instances=1) == ["1"]


def test_memory_that_nobody_has_told_of_is_not_counted() -> None:
    unknown = GpuPlan([gpu(0, 24).model_copy(update={"memory_bytes": None})])
    assert placed(unknown, [], gib=1000) == ["0"]


@pytest.mark.parametrize(
    ("said", "confidential", "wanted"),
    [
        ("auto", False, "separate"),
        ("auto", True, "joined"),
        ("separate", True, "separate"),
        ("joined", False, "joined"),
    ],
)
def test_transfers_are_joined_where_confidential_computing_is_on_or_the_operator_says(
    said: str, confidential: bool, wanted: str
) -> None:
    settings = ModelSettings.model_validate({"gpu": {"transfers": said}})
    told = orders(gpu(0, 80, confidential=confidential), settings)
    assert told is not None
    assert told.transfers == wanted


@pytest.mark.parametrize("device", ["cuda:1:", "cuda:1:2:3", "cuda::1", "gpu", "cuda:", "cuda:-1", "cuda:0,1", "CUDA"])
def test_a_device_is_one_of_three_forms(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        ModelSettings(device=device)
