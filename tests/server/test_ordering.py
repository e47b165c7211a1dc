"""Answers that must not overtake each other, whatever order their batches end in."""

import pytest

from hermetic.enclave.configuration import DynamicBatching, ModelConfiguration
from hermetic.errors import OverloadedError
from tests.server.dispatch_machine import MAX_ROWS, Request, Stage


def stage_with(workers: int) -> Stage:
    stage = Stage(ModelConfiguration(dynamic_batching=DynamicBatching(preserve_ordering=True)))
    for _ in range(workers):
        stage.attach()
    return stage


def full_batch(stage: Stage, tenant: str = "a") -> Request:
    request = stage.submit(tenant, 1, MAX_ROWS)
    stage.settle()
    return request


def test_an_early_answer_waits_in_private_memory_and_its_buffer_is_free() -> None:
    stage = stage_with(2)
    first, second = full_batch(stage), full_batch(stage)
    (late,) = [at for at, (link, _, _) in enumerate(stage.links) if second.slot in link.instance.slots]
    stage.answer(late)
    assert stage.answered == []
    assert not any(stage.links[late][2][:])
    stage.check()
    stage.kill(late)  # its answer is kept all the same
    stage.answer(0)
    assert stage.answered == [first, second]
    stage.check()


def test_nobody_waits_for_one_who_left() -> None:
    stage = stage_with(1)
    first, second, third = full_batch(stage), full_batch(stage), full_batch(stage)
    stage.answer(0, 1)
    stage.cancel(first)
    assert stage.answered == [second]
    stage.answer(0, 0)
    stage.answer(0, 0)
    assert stage.answered == [second, third]


def test_a_failed_batch_fails_at_once_and_holds_nobody_up() -> None:
    stage = stage_with(1)
    first, second = full_batch(stage), full_batch(stage)
    stage.answer(0, 1)
    stage.answer(0, 0, failed=True)
    assert first.outcomes
    assert stage.answered == [second]


def test_a_tenant_does_not_wait_for_another() -> None:
    stage = stage_with(1)
    full_batch(stage, "a")
    quick = full_batch(stage, "b")
    stage.answer(0, 1)
    assert stage.answered == [quick]


def test_answers_that_nobody_gets_any_more_are_overwritten() -> None:
    stage = stage_with(1)
    full_batch(stage)
    full_batch(stage)
    stage.answer(0, 1)
    stage.dispatcher.close()
    assert stage.answered == []


def test_early_answers_are_bounded_whatever_a_worker_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It chooses how large its answers are, and which of them it gives first."""
    monkeypatch.setattr("hermetic.server.ordering.EARLY_BYTES", 30)  # each answer has 20
    stage = stage_with(2)
    first, second, third = (full_batch(stage) for _ in range(3))
    for request in (second, third):
        (at,) = [at for at, (link, _, _) in enumerate(stage.links) if request.slot in link.instance.slots]
        sent = stage.links[at][1].sent
        stage.answer(at, next(n for n, batch in enumerate(sent) if batch.buffer == request.slot.index))  # type: ignore[union-attr]
    assert (first.outcomes, second.outcomes) == ([], [])
    assert isinstance(third.outcomes[0], OverloadedError)
    while not first.outcomes:
        for at, (_, wire, _) in enumerate(stage.links):
            if wire.sent:
                stage.answer(at)
    assert stage.answered == [first, second]
    fourth, fifth = full_batch(stage), full_batch(stage)
    stage.finish()
    assert stage.answered == [first, second, fourth, fifth], "what was held is given back"
