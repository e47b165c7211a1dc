"""Generations come, take over, lose workers and go: all instances or none, and nothing is left behind."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from hermetic.enclave import control_frames
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import BorderError, BrokerRefusedError, ConfigurationError, KnownAnswerError
from hermetic.server.config import ModelSettings
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import Generation, SealedFile
from hermetic.server.link_ledger import RENEWAL_DELAYS_S, REPLACED_LIMIT
from hermetic.server.links import ready_frame
from hermetic.server.messages import LinkLost, ModelReady, ModelStop
from hermetic.server.repository import Slot
from tests.server.keeping import FrontEndDouble, Keeping, Told
from tests.server.test_repository import sealed


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    keeping = Keeping()
    yield keeping
    keeping.loop.close()


def load(keeping: Keeping, file: SealedFile, told: Told | None = None) -> Slot:
    slot = keeping.repository.put(file)
    keeping.keeper.load(slot, file, file.manifest.configuration, told or Told())
    return slot


def loaded(keeping: Keeping, file: SealedFile) -> Slot:
    slot = load(keeping, file)
    keeping.settle()
    assert slot.state == "READY"
    return slot


def lose_link(keeping: Keeping, front_end: FrontEndDouble, ready: ModelReady) -> None:
    lost = LinkLost(
        name=ready.description.name,
        version=ready.description.version,
        generation=ready.generation,
        instance=ready.instance,
        link=ready.link,
        reason="wanted an answer",
    )
    keeping.keeper.link_lost(cast(FrontEnd, front_end), lost)


def links(front_end: FrontEndDouble) -> list[tuple[int, int, int]]:
    """What a front end has been told: generation, instance and number of each link."""
    return sorted((frame.generation, frame.instance, frame.link) for frame in front_end.told(ModelReady))


# Loading


@pytest.mark.parametrize(
    ("settings", "tensors", "reason"),
    [
        ({"variable_tensor_bytes": 3 << 30, "memory_limit_bytes": 64 << 30}, {}, "wanted at most 8589934592 bytes"),
        ({"variable_tensor_bytes": 1 << 30}, {}, r"at most memory_limit_bytes \(8589934592\), got 2 x"),
        ({"variable_tensor_bytes": 600 << 20, "memory_limit_bytes": 64 << 30}, {}, "limits.front_end_memory_bytes"),
        ({}, {"inputs": 200}, "wanted tensors that a frame of 16384 bytes can describe, got"),
        ({}, {"outputs": 200}, "wanted tensors that a frame of 16384 bytes can describe, got"),
    ],
)
def test_what_no_front_end_could_be_linked_with_is_refused_before_a_worker_is_started(
    keeping: Keeping, settings: dict[str, int], tensors: dict[str, int], reason: str
) -> None:
    for pid in (1, 2):
        keeping.front_end(pid)
    keeping.keeper._front_end_memory = 2 << 30
    file = sealed(settings=ModelSettings(**settings))
    named = {
        what: tuple(TensorSpec(name=f"t{at}", datatype="FP32", shape=(1,) * 10) for at in range(count))
        for what, count in tensors.items()
    }
    file = replace(file, manifest=file.manifest.model_copy(update=named))
    told = Told()
    load(keeping, file, told)
    assert isinstance(told.outcomes[0], ConfigurationError)
    assert re.search(reason, str(told.outcomes[0])), told.outcomes[0]
    assert keeping.loader.workers == []


def test_a_model_is_ready_when_all_instances_have_answered_and_every_front_end_is_linked(keeping: Keeping) -> None:
    front_ends = [keeping.front_end(pid) for pid in (1, 2)]
    told = Told()
    slot = load(keeping, sealed(instances=3), told)
    assert slot.entry.state == "LOADING"
    keeping.settle()
    assert told.outcomes == [None]
    assert slot.state == "READY"
    for front_end in front_ends:
        assert [instance for _, instance, _ in links(front_end)] == [0, 1, 2]
    assert [worker.attached for worker in keeping.loader.workers] == [2, 2, 2]
    assert sorted(fields["instance"] for fields in keeping.recorded("model.loaded")) == [0, 1, 2]


def test_one_instance_that_cannot_be_loaded_fails_all_and_leaves_none_behind(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    keeping.loader.errors.append(KnownAnswerError("model iris: y differs"))
    told = Told()
    slot = load(keeping, sealed(instances=3), told)
    keeping.settle()
    assert [str(error) for error in told.outcomes] == ["model iris: y differs"]
    assert (slot.entry.state, slot.entry.reason) == ("UNAVAILABLE", "KnownAnswerError: model iris: y differs")
    assert [worker.ended for worker in keeping.loader.workers] == ["unloaded", "unloaded"]
    assert front_end.told(ModelReady) == []
    assert slot.at_rest


def test_only_so_many_workers_are_started_at_once() -> None:
    keeping = Keeping(loads_at_once=2)
    keeping.loader.may_load.clear()
    slot = load(keeping, sealed(instances=5))
    keeping.turn_until(lambda: keeping.loader.at_once == 2)
    keeping.loader.may_load.set()
    keeping.settle()
    assert (slot.entry.state, keeping.loader.most_at_once) == ("READY", 2)
    keeping.loop.close()


def test_a_new_generation_is_linked_everywhere_before_the_old_one_stops(keeping: Keeping) -> None:
    front_ends = [keeping.front_end(pid) for pid in (1, 2)]
    first = sealed()
    slot = loaded(keeping, first)
    told = Told()
    wanted = first.manifest.configuration.model_copy(update={"instances": 2})
    keeping.keeper.load(slot, first, wanted, told)
    keeping.settle()
    assert told.outcomes == [None]
    for front_end in front_ends:
        kinds = [(type(frame), frame.generation) for frame in front_end.frames]  # type: ignore[attr-defined]
        assert kinds == [(ModelReady, 1), (ModelReady, 2), (ModelReady, 2), (ModelStop, 1)]
        assert front_end.told(ModelReady)[-1].description.configuration.instances == 2
    assert slot.state == "READY"
    old = keeping.loader.workers[0]
    assert old.ended == ""
    for front_end in front_ends:
        keeping.keeper.stopped_at(front_end.pid, "iris", 1, 1)
    keeping.settle()
    assert old.ended == "unloaded"
    assert [worker.ended for worker in keeping.loader.workers[1:]] == ["", ""]
    assert all("READY" in states[0] for states in keeping.published[2:]), "ready from the first take-over on"


def test_a_generation_that_fails_leaves_the_one_before_serving(keeping: Keeping) -> None:
    file = sealed()
    slot = loaded(keeping, file)
    keeping.loader.errors.append(BrokerRefusedError("no"))
    told = Told()
    keeping.keeper.load(slot, file, file.manifest.configuration, told)
    keeping.settle()
    assert isinstance(told.outcomes[0], BrokerRefusedError)
    assert slot.state == "READY"
    assert keeping.loader.workers[0].ended == ""


# Loss


def test_a_lost_instance_is_replaced_and_the_others_serve_on(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    slot = loaded(keeping, sealed(instances=2))
    victim = keeping.loader.workers[0]
    victim.crash()
    keeping.turn_until(lambda: bool(keeping.recorded("worker.lost")))
    assert slot.state == "READY"
    keeping.turn_until(lambda: len(keeping.loader.workers) == 3)
    keeping.settle()
    lost = keeping.recorded("worker.lost")[0]["instance"]
    assert keeping.recorded("model.loaded")[-1]["instance"] == lost
    assert links(front_end)[-1] == (1, 1, 2 if lost == 1 else 1)
    assert sum(instance == lost for _, instance, _ in links(front_end)) == 2
    assert slot.state == "READY"


def test_a_worker_that_the_broker_refuses_now_is_not_tried_again(keeping: Keeping) -> None:
    slot = loaded(keeping, sealed())
    keeping.loader.errors.append(BrokerRefusedError("below the floor"))
    keeping.loader.workers[0].crash()
    keeping.turn_until(lambda: bool(keeping.recorded("model.refused")))
    assert slot.entry.reason == "BrokerRefusedError: below the floor"
    assert slot.current is not None
    assert slot.current.over


def test_a_worker_that_dies_during_an_unload_stays_away(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    slot = loaded(keeping, sealed(instances=2))
    told = Told()
    keeping.keeper.unload(slot, "unloaded", told)
    keeping.loader.workers[0].crash()
    keeping.turn_until(lambda: bool(keeping.recorded("worker.lost")))
    keeping.keeper.stopped_at(front_end.pid, "iris", 1, 1)
    keeping.settle()
    assert told.outcomes == [None]
    assert keeping.recorded("model.unloaded")[0]["wiped"] is False
    assert slot.entry.reason == "unloaded"
    assert len(keeping.loader.workers) == 2


def test_a_front_end_that_ends_holds_up_no_unload(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    slot = loaded(keeping, sealed())
    told = Told()
    keeping.keeper.unload(slot, "unloaded", told)
    del keeping.front_ends[front_end.pid]
    keeping.keeper.front_end_gone(front_end.pid)
    keeping.settle()
    assert told.outcomes == [None]


def test_everything_is_unloaded_at_the_end_whatever_it_does_just_now(keeping: Keeping) -> None:
    loaded(keeping, sealed(1, instances=2))
    keeping.loader.may_load.clear()
    told = Told()
    load(keeping, sealed(2, instances=2), told)
    keeping.loop.call_at(0.0, keeping.loader.may_load.set)
    keeping.keeper.unload_everything()
    assert {worker.ended for worker in keeping.loader.workers} == {"unloaded"}
    assert told.outcomes != [None]


# Links


def test_a_busy_worker_holds_up_neither_the_loop_nor_other_models(keeping: Keeping) -> None:
    loaded(keeping, sealed(1))
    busy = keeping.loader.workers[0]
    busy.may_attach.clear()
    front_end = keeping.front_end(1)
    loaded_slot = load(keeping, sealed(2))
    keeping.turn_until(lambda: loaded_slot.state == "READY")
    assert [frame.description.version for frame in front_end.told(ModelReady)] == [2]
    busy.may_attach.set()
    keeping.settle()
    assert [frame.description.version for frame in front_end.told(ModelReady)] == [2, 1]


def test_a_link_that_is_given_up_is_made_anew(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    loaded(keeping, sealed())
    lose_link(keeping, front_end, front_end.told(ModelReady)[0])
    keeping.turn_until(lambda: len(front_end.told(ModelReady)) == 2)
    assert links(front_end) == [(1, 0, 1), (1, 0, 2)]
    assert keeping.loader.workers[0].attached == 2
    assert keeping.recorded("link.lost")[0]["reason"] == "wanted an answer"


def test_word_of_a_link_that_is_not_there_changes_nothing(keeping: Keeping) -> None:
    """A front end is hostile: only what it has been given can it lose, and each once."""
    front_end, other = keeping.front_end(1), keeping.front_end(2)
    loaded(keeping, sealed())
    ready = front_end.told(ModelReady)[0]
    for change in ({"link": 99}, {"instance": 7}, {"generation": 5}):
        lose_link(keeping, front_end, ready.model_copy(update=change))
    lose_link(keeping, other, ready)
    assert keeping.recorded("link.lost") == []
    lose_link(keeping, front_end, ready)
    lose_link(keeping, front_end, ready)
    assert len(keeping.recorded("link.lost")) == 1


def test_word_of_a_dead_worker_is_not_held_against_anyone(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermetic.server.link_ledger.RENEWAL_DELAYS_S", ())
    front_end = keeping.front_end(1)
    loaded(keeping, sealed())
    keeping.loader.workers[0].crash()
    lose_link(keeping, front_end, front_end.told(ModelReady)[0])
    keeping.turn_until(lambda: len(keeping.loader.workers) == 2)
    keeping.settle()
    assert keeping.recorded("worker.replaced") == []


def test_a_worker_whose_links_break_again_and_again_is_replaced(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermetic.server.link_ledger.RENEWAL_DELAYS_S", (0.0,) * len(RENEWAL_DELAYS_S))
    front_end = keeping.front_end(1)
    loaded(keeping, sealed())
    for count in range(1, len(RENEWAL_DELAYS_S) + 2):
        keeping.turn_until(lambda count=count: len(front_end.told(ModelReady)) == count)  # type: ignore[misc]
        lose_link(keeping, front_end, front_end.told(ModelReady)[-1])
    keeping.turn_until(lambda: len(keeping.loader.workers) == 2)
    assert keeping.loader.workers[0].ended == "crashed"
    assert len(keeping.recorded("worker.replaced")) == 1
    assert not front_end.over


def lose_links(keeping: Keeping, front_end: FrontEndDouble, model: str) -> None:
    for ready in [one for one in front_end.told(ModelReady) if one.description.name == model]:
        lose_link(keeping, front_end, ready)


def test_one_model_costs_no_front_end_whatever_its_workers_do(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end would be the end of every other model's calls."""
    monkeypatch.setattr("hermetic.server.link_ledger.RENEWAL_DELAYS_S", ())
    front_end = keeping.front_end(1)
    slot = loaded(keeping, sealed(instances=2 * REPLACED_LIMIT))
    lose_links(keeping, front_end, "iris")
    keeping.turn_until(lambda: slot.state != "READY")
    assert len(keeping.recorded("worker.replaced")) == 2 * REPLACED_LIMIT
    assert not front_end.over
    assert "links to front ends broke" in slot.entry.reason or slot.state == "LOADING"


def test_a_front_end_that_has_workers_of_several_models_replaced_is_replaced(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermetic.server.link_ledger.RENEWAL_DELAYS_S", ())
    front_end = keeping.front_end(1)
    loaded(keeping, sealed(instances=REPLACED_LIMIT))
    loaded(keeping, sealed(name="rose"))
    lose_links(keeping, front_end, "iris")
    assert not front_end.over
    lose_links(keeping, front_end, "rose")
    keeping.turn_until(lambda: front_end.over)
    assert len(keeping.recorded("worker.replaced")) == REPLACED_LIMIT
    assert len(keeping.recorded("front-end.replaced")) == 1


def test_a_worker_that_refuses_a_front_end_is_asked_again_and_serves_the_others(keeping: Keeping) -> None:
    first, slot = keeping.front_end(1), loaded(keeping, sealed())
    worker = keeping.loader.workers[0]
    worker.answers.append(BorderError("no room"))
    second = keeping.front_end(2)
    keeping.turn_until(lambda: bool(second.told(ModelReady)))
    assert keeping.recorded("model.not-connected")[0]["text"] == "no room"
    assert len(first.told(ModelReady)) == 1
    assert (slot.state, worker.ended) == ("READY", "")


def test_a_link_that_comes_too_late_is_not_handed_over(keeping: Keeping) -> None:
    slot = loaded(keeping, sealed())
    worker = keeping.loader.workers[0]
    worker.may_attach.clear()
    front_end = keeping.front_end(1)
    keeping.keeper.unload(slot, "unloaded", Told())
    worker.may_attach.set()
    keeping.keeper.stopped_at(1, "iris", 1, 1)
    keeping.settle()
    assert front_end.told(ModelReady) == []


def test_a_description_that_only_the_first_instances_frame_has_room_for_is_refused(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher chooses its length: a frame that is too long later would end the supervisor."""
    keeping.front_end(1)
    file = sealed(instances=11)
    first = ready_frame(Generation(1, file, file.manifest.configuration, Told())).encode()
    monkeypatch.setattr(control_frames, "CONTROL_FRAME_LIMIT", len(first))
    told = Told()
    load(keeping, file, told)
    keeping.settle()
    assert isinstance(told.outcomes[0], BorderError)
    assert not keeping.loader.workers
