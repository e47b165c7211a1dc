"""What is known of each model: its versions, its policy, and the state that callers see."""

from pathlib import Path
from typing import Any

import pytest

from hermetic.enclave.configuration import ModelConfiguration, VersionPolicy
from hermetic.enclave.manifest import Manifest
from hermetic.server.config import ModelSettings
from hermetic.server.generation import RESTART_DELAYS_S, Generation, SealedFile, to_nobody
from hermetic.server.overrides import Override
from hermetic.server.repository import Repository, Shelf, Slot
from tests.enclave.sealed_by_hand import manifest_of


def sealed(
    version: int = 1, settings: ModelSettings | None = None, name: str = "iris", **configuration: Any
) -> SealedFile:
    dump = ModelConfiguration.model_validate(configuration).dump()
    document = manifest_of([("model.onnx", b"g")], version=version, name=name, configuration=dump)
    manifest = Manifest.model_validate(document, strict=False)
    return SealedFile(Path(f"/{name}-{version}.sealed"), settings or ModelSettings(), manifest)


def slot_of(file: SealedFile) -> Slot:
    return Repository().put(file)


def generation(file: SealedFile, number: int = 1) -> Generation:
    return Generation(number, file, file.manifest.configuration, to_nobody)


def state(slot: Slot) -> str:
    """A function, for the type checker thinks that a state stays as it was."""
    return slot.state


def shelf_of(*files: SealedFile) -> Shelf:
    repository = Repository()
    for file in files:
        repository.put(file)
    shelf = repository.shelf("iris")
    assert shelf is not None
    return shelf


def test_a_version_is_ready_as_long_as_one_worker_serves() -> None:
    file = sealed(instances=2)
    slot, one = slot_of(file), generation(file)
    assert state(slot) == "UNAVAILABLE"
    slot.begin(one)
    assert state(slot) == "LOADING"
    worker: Any = object()
    for instance in one.instances:
        instance.ready(worker, 0.0)
    assert slot.take_over(one) is None
    assert state(slot) == "READY"
    one.instances[0].lost(1.0)
    assert state(slot) == "READY"
    slot.reason = "worker lost"
    one.instances[1].lost(1.0)
    assert (state(slot), slot.entry.reason) == ("UNAVAILABLE", "worker lost")
    one.instances[1].starting = True
    assert state(slot) == "LOADING"


def test_what_serves_is_ready_while_another_generation_comes_or_goes() -> None:
    file = sealed()
    slot, first, second = slot_of(file), generation(file), generation(file, 2)
    worker: Any = object()
    first.instances[0].ready(worker, 0.0)
    slot.take_over(first)
    slot.begin(second)
    assert state(slot) == "READY"
    second.instances[0].ready(worker, 0.0)
    assert slot.take_over(second) is first
    slot.going.append(first)
    assert state(slot) == "READY"
    assert slot.let_go("unloaded") == [second]
    assert (state(slot), slot.going) == ("UNLOADING", [first])
    slot.going.clear()
    assert (state(slot), slot.entry.reason) == ("UNAVAILABLE", "unloaded")


def test_a_load_that_may_pass_is_tried_later_each_time_until_it_is_let_go() -> None:
    slot = slot_of(sealed())
    delays = [slot.try_again(100.0) - 100.0 for _ in range(len(RESTART_DELAYS_S) + 1)]
    assert delays == [*RESTART_DELAYS_S, RESTART_DELAYS_S[-1]]
    slot.let_go("unloaded")
    assert slot.retry_at is None
    assert slot.try_again(0.0) == RESTART_DELAYS_S[0]


def test_a_workers_words_cannot_make_a_line_of_their_own() -> None:
    slot = slot_of(sealed())
    slot.failed("broken\nmodel x version 1: READY\x1b[2J")
    assert "\n" not in slot.reason
    assert "\x1b" not in slot.reason


def test_the_policy_of_the_highest_version_counts() -> None:
    shelf = shelf_of(sealed(1, version_policy={"kind": "all"}), sealed(2), sealed(3))
    assert shelf.chosen() == {3}
    shelf = shelf_of(sealed(1), sealed(2), sealed(3, version_policy={"kind": "specific", "versions": [1, 3, 9]}))
    assert shelf.chosen() == {1, 3}


def test_an_operators_policy_stands_over_the_publishers_and_a_loads_over_both() -> None:
    two = ModelSettings(version_policy=VersionPolicy(latest=2))
    shelf = shelf_of(sealed(1), sealed(2), sealed(3, two, version_policy={"kind": "all"}))
    assert shelf.chosen() == {2, 3}
    shelf.override = Override(version_policy=VersionPolicy(kind="specific", versions=(1,)))
    assert shelf.chosen() == {1}


@pytest.mark.parametrize(("operators", "loads", "count"), [(None, None, 2), (3, None, 3), (3, 4, 4), (None, 1, 1)])
def test_the_number_of_instances_is_the_loads_else_the_operators_else_the_publishers(
    operators: int | None, loads: int | None, count: int
) -> None:
    file = sealed(1, ModelSettings(instances=operators), instances=2)
    shelf = shelf_of(file)
    shelf.override = Override(instances=loads)
    assert shelf.configuration(file).instances == count


def test_a_vanished_file_is_forgotten_once_nothing_is_left_of_it() -> None:
    repository = Repository()
    file = sealed()
    slot = repository.put(file)
    slot.file = None
    slot.current = generation(file)
    repository.tidy()
    assert repository.slot("iris", 1) is slot
    slot.let_go("unloaded")
    repository.tidy()
    assert repository.shelf("iris") is None
