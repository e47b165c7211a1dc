"""A batch with large answers is answered, and wiped, a portion in each turn: others' calls come in between."""

import pytest

from hermetic.enclave.configuration import INFERRED, ModelConfiguration
from hermetic.server import batch_answers
from hermetic.server.slots import RUNNING
from tests.server.dispatch_machine import MAX_ROWS, Request, Stage

ROW_BYTES = 4 * 2 + 1  # of a request with a width of 2
IN_ORDER = ModelConfiguration.model_validate({"dynamic_batching": {"preserve_ordering": True}})


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request's answer is a portion."""
    monkeypatch.setattr(batch_answers, "PORTION_BYTES", ROW_BYTES)
    monkeypatch.setattr(batch_answers, "WIPED_BYTES", 2 * ROW_BYTES)


def full_batch(stage: Stage) -> list[Request]:
    """A batch of as many requests as there may be, which the worker has."""
    requests = [stage.submit("a", 2, 1) for _ in range(MAX_ROWS)]
    stage.settle()
    return requests


def answered(requests: list[Request]) -> int:
    return sum(bool(request.outcomes) for request in requests)


@pytest.mark.parametrize("configuration", [INFERRED, IN_ORDER], ids=["plain", "in order"])
def test_one_portion_in_each_turn_and_the_buffer_is_free_when_all_is_wiped(configuration: ModelConfiguration) -> None:
    stage = Stage(configuration)
    stage.attach()
    requests = full_batch(stage)
    stage.answer(0, settle=False)
    link, _, memory = stage.links[0]
    (slot,) = [slot for slot in link.instance.slots if slot.state == RUNNING]
    seen = [answered(requests)]
    while seen[-1] < MAX_ROWS:
        stage.step()
        seen.append(answered(requests))
    assert seen == list(range(1, MAX_ROWS + 1))
    assert slot.state == RUNNING
    turns = 0
    while slot.state == RUNNING:
        stage.step()
        turns += 1
    assert turns > 1  # of wiping
    assert not any(memory[:])
    stage.check()


def test_what_came_meanwhile_is_served_before_the_rest() -> None:
    stage = Stage(INFERRED)
    stage.attach()
    large = full_batch(stage)
    other = stage.submit("b", 2, 1)
    stage.settle()
    stage.answer(0, settle=False)
    stage.answer(0, settle=False)
    assert (answered(large), answered([other])) == (1, 1)
    stage.settle()
    stage.check()


@pytest.mark.parametrize("turns", range(MAX_ROWS + 1))
def test_a_worker_that_dies_meanwhile_costs_nobody_an_answer(turns: int) -> None:
    stage = Stage(INFERRED)
    stage.attach()
    requests = full_batch(stage)
    stage.answer(0, settle=False)
    for _ in range(turns):
        stage.step()
    stage.kill(0)  # it looks whether the memory is wiped and closed
    assert [len(request.outcomes) for request in requests] == [1] * MAX_ROWS
    assert all(isinstance(request.outcomes[0], list) for request in requests)
    stage.attach()
    stage.check()


def test_a_caller_that_goes_meanwhile_gets_nothing_and_costs_nothing() -> None:
    stage = Stage(INFERRED)
    stage.attach()
    requests = full_batch(stage)
    stage.answer(0, settle=False)
    stage.cancel(requests[-1])
    assert [len(request.outcomes) for request in requests] == [1] * (MAX_ROWS - 1) + [0]
    stage.check()


def test_a_model_is_not_idle_before_its_last_answer() -> None:
    stage = Stage(INFERRED)
    stage.attach()
    requests = full_batch(stage)
    idle: list[int] = []
    stage.answer(0, settle=False)
    stage.dispatcher.when_idle(lambda: idle.append(answered(requests)))
    stage.settle()
    assert idle == [MAX_ROWS]


def test_small_batches_take_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    stage = Stage(INFERRED)
    stage.attach()
    requests = full_batch(stage)
    stage.answer(0, settle=False)
    assert answered(requests) == MAX_ROWS
    assert not stage.posted
    stage.check()


def test_the_wiping_of_a_batch_that_failed_is_in_portions_too() -> None:
    stage = Stage(INFERRED)
    stage.attach()
    requests = full_batch(stage)
    stage.answer(0, failed=True, settle=False)
    assert answered(requests) == MAX_ROWS
    assert stage.posted
    stage.settle()
    assert not any(stage.links[0][2][:])
    stage.check()
