"""Models on one GPU: what each may take of its memory is counted from the load until its worker has gone."""

from collections.abc import Iterator

import pytest

from hermetic.enclave.gpus import Gpu
from hermetic.errors import ConfigurationError
from hermetic.server.config import ModelSettings
from hermetic.server.generation import SealedFile
from hermetic.server.gpu_plan import GpuPlan
from hermetic.server.repository import Slot
from tests.server.keeping import Keeping, Told
from tests.server.test_repository import sealed

GIB = 1 << 30


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    keeping = Keeping()
    keeping.keeper.gpus = GpuPlan([Gpu(number=0, uuid="GPU-0", minor=0, memory_bytes=24 * GIB)])
    yield keeping
    keeping.loop.close()


def model(name: str, gib: int) -> SealedFile:
    settings = ModelSettings.model_validate({"gpu": {"memory_limit_bytes": gib * GIB}})
    return sealed(name=name, settings=settings, gpus="all")


def load(keeping: Keeping, file: SealedFile) -> tuple[Slot, Told]:
    slot, told = keeping.repository.put(file), Told()
    keeping.keeper.load(slot, file, file.manifest.configuration, told)
    keeping.settle()
    return slot, told


def test_a_model_that_does_not_fit_beside_the_others_is_refused_until_one_has_gone(keeping: Keeping) -> None:
    first, told = load(keeping, model("large", 14))
    assert told.outcomes == [None]
    _, told = load(keeping, model("small", 9))
    (refusal,) = told.outcomes
    assert isinstance(refusal, ConfigurationError)
    assert f"at most {8 * GIB} on GPU 0, of {24 * GIB} with 1 workers there, got {9 * GIB}" in str(refusal)
    keeping.keeper.unload(first, "unloaded", Told())
    keeping.settle()
    _, told = load(keeping, model("small", 9))
    assert told.outcomes == [None]


def test_while_a_model_is_loaded_again_both_generations_are_counted(keeping: Keeping) -> None:
    file = model("large", 14)
    slot, _ = load(keeping, file)
    told = Told()
    keeping.keeper.load(slot, file, file.manifest.configuration, told)
    keeping.settle()
    assert isinstance(told.outcomes[0], ConfigurationError)
    assert slot.state == "READY", "the generation before it serves on"


def test_a_worker_that_was_lost_comes_back_to_its_place(keeping: Keeping) -> None:
    slot, _ = load(keeping, model("large", 20))
    keeping.loader.workers[0].crash()
    keeping.settle()
    _, told = load(keeping, model("small", 8))
    assert isinstance(told.outcomes[0], ConfigurationError), "its place is kept for it"
    assert slot.held()
