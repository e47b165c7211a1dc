"""Random callers, workers and moments against the real dispatcher: nothing lost, twice or mixed, no byte left.

One machine, run over each scheduler.
"""

from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hermetic.enclave.configuration import INFERRED, ModelConfiguration
from hermetic.errors import CallerError, HermeticError, QueueRefusedError, WorkerLostError
from hermetic.server import batch_answers
from tests.server.dispatch_machine import MAX_ROWS, Request, Stage


def dynamic(**options: Any) -> ModelConfiguration:
    return ModelConfiguration.model_validate({"dynamic_batching": options})


EXAMPLES = 25
STEPS = 30
POLICY = {"default_timeout_us": 2_000_000, "allow_timeout_override": True}
CONFIGURATIONS = {
    "plain": INFERRED,
    "delayed": dynamic(max_queue_delay_us=500_000),
    "alone": ModelConfiguration(),
    "refusing": dynamic(default_queue_policy={**POLICY, "max_queue_size": 5}),
    "preferred": dynamic(preferred_batch_sizes=(2, 3), max_queue_delay_us=500_000),
    "preferred at once": dynamic(preferred_batch_sizes=(2,)),
    "in order": dynamic(preserve_ordering=True, preferred_batch_sizes=(2,)),
    "everything": dynamic(
        preferred_batch_sizes=(2, 3),
        max_queue_delay_us=300_000,
        priority_levels=3,
        default_priority_level=2,
        default_queue_policy={**POLICY, "timeout_action": "DELAY"},
        priority_queue_policies=[{"level": 3, "policy": {**POLICY, "max_queue_size": 2}}],
    ),
}


class Machine(RuleBasedStateMachine):
    """What callers, workers and time may do."""

    configuration: ModelConfiguration

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(self.configuration)
        self.one_worker = True

    @initialize(workers=st.integers(1, 3), in_flight=st.integers(1, 2))
    def start(self, workers: int, in_flight: int) -> None:
        self.one_worker = workers == 1
        self.stage.in_flight = in_flight
        for _ in range(workers):
            self.stage.attach()

    @rule(
        tenant=st.sampled_from("ab"),
        width=st.integers(1, 2),
        rows=st.integers(1, MAX_ROWS),
        priority=st.integers(0, 4),
        timeout_us=st.sampled_from([0, 0, 100_000, 1_000_000, 9_000_000]),
        now=st.booleans(),
    )
    @precondition(lambda self: self.stage.links)
    def submit(self, tenant: str, width: int, rows: int, priority: int, timeout_us: int, now: bool) -> None:
        try:
            self.stage.submit(tenant, width, rows, priority, timeout_us)
        except CallerError:
            return
        if now:
            self.stage.settle()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = [each for each in self.stage.requests if not each.outcomes and each not in self.stage.cancelled]
        if live:
            self.stage.cancel(data.draw(st.sampled_from(live)))

    @rule(data=st.data(), failed=st.integers(0, 5))
    def answer(self, data: st.DataObject, failed: int) -> None:
        busy = [at for at, (_, wire, _) in enumerate(self.stage.links) if wire.sent]
        if busy:
            at = data.draw(st.sampled_from(busy))
            which = data.draw(st.integers(0, len(self.stage.links[at][1].sent) - 1))
            self.stage.answer(at, which, failed=failed == 0)

    @rule(seconds=st.sampled_from([0.05, 0.4, 3.0]))
    def wait(self, seconds: float) -> None:
        self.stage.wait(seconds)

    @precondition(lambda self: len(self.stage.links) < 3)
    @rule()
    def attach(self) -> None:
        self.one_worker = False
        self.stage.attach()

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """What it was running fails, and nothing else, as long as there is another."""
        if not self.stage.links or data.draw(st.integers(0, 3)):
            return
        at = data.draw(st.integers(0, len(self.stage.links) - 1))
        link = self.stage.links[at][0]
        running = {work for each in link.running.values() for work in each.slot.entries}
        before = {each for each in self.stage.requests if each.outcomes}
        self.stage.kill(at)
        lost = {
            each
            for each in set(self.stage.requests) - before
            if each.outcomes and isinstance(each.outcomes[0], WorkerLostError)
        }
        unended = running - before
        assert unended - self.stage.cancelled <= lost
        assert not self.stage.links or lost <= running

    @invariant()
    def holds(self) -> None:
        self.stage.check()
        self.answers_are_in_order()

    def answers_are_in_order(self) -> None:
        options = self.configuration.dynamic_batching
        if options is None or not options.preserve_ordering:
            return
        for tenant in "ab":
            arrivals = [each.arrived for each in self.stage.answered if each.key.tenant == tenant]
            assert arrivals == sorted(arrivals)

    def teardown(self) -> None:
        if not self.stage.links and not self.stage.requests:
            return
        self.stage.finish()
        self.stage.check()
        for each in self.stage.requests:
            assert each.outcomes or each in self.stage.cancelled  # nobody waits for ever
            if each.outcomes and isinstance(each.outcomes[0], HermeticError):
                self.check_reason(each)
        for _, _, memory in self.stage.links:
            assert not any(memory[:])
        self.stage.dispatcher.close()

    def check_reason(self, request: Request) -> None:
        if isinstance(request.outcomes[0], QueueRefusedError):
            options = self.configuration.dynamic_batching
            assert options is not None
            assert options.default_queue_policy.timeout_action == "REJECT" or request.level == 3


@pytest.mark.parametrize("portions", ["at once", "in portions"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_random_traffic(name: str, portions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches are answered and wiped in portions; here all of them are, or none."""
    if portions == "in portions":
        monkeypatch.setattr(batch_answers, "PORTION_BYTES", 1)
        monkeypatch.setattr(batch_answers, "WIPED_BYTES", 1)

    class Case(Machine):
        configuration = CONFIGURATIONS[name]

    run_state_machine_as_test(
        Case, settings=hypothesis_settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
    )


def test_a_worker_that_has_nothing_to_do_takes_what_waits_for_another() -> None:
    stage = Stage(INFERRED)
    stage.in_flight = 1
    stage.attach()
    stage.attach()
    for tenant in "ab":
        stage.submit(tenant, 1, 1)
        stage.settle()
    waiting = [stage.submit("a", 1, 1) for _ in range(3)]
    stage.settle()
    stage.check()
    assert [len(wire.sent) for _, wire, _ in stage.links] == [1, 1]
    idle = 0 if waiting[0].slot is None or waiting[0].slot.instance is not stage.links[0][0].instance else 1
    stage.answer(idle)
    stage.check()
    assert [len(wire.sent) for _, wire, _ in stage.links] == [1, 1]
    stage.finish()
    stage.check()
    assert all(isinstance(each.outcomes[0], list) for each in stage.requests)
