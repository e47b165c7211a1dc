"""Dynamic batching with policies: each rule alone. The random machine over all of them is test_batching_machine.py."""

import weakref
from typing import Any

import pytest

from hermetic.enclave.configuration import DynamicBatching
from hermetic.errors import OverloadedError, QueueRefusedError
from hermetic.server.queue_policies import PolicyBatcher
from hermetic.server.slots import Entry, Key, Slot, Wishes


class Watched(Entry):
    """A request of which one can see whether anybody still holds it."""


def batcher(options: dict[str, Any], **changes: Any) -> PolicyBatcher[Entry]:
    values: dict[str, Any] = {"max_rows": 8, "capacities": (100,), "delay_s": 0.0, "waiting_limit": 100, **changes}
    return PolicyBatcher(options=DynamicBatching.model_validate(options), **values)


def entry(at: float, *, rows: int = 1, tenant: str = "a", priority: int = 0, timeout_us: int = 0) -> Entry:
    return Entry(Key(tenant, ((1,),)), rows, (rows,), at, Wishes(priority, timeout_us))


def settle(one: PolicyBatcher[Entry], now: float) -> list[tuple[Entry, str]]:
    """Do what the dispatcher does before it takes what is ready; return (entry, error) of what was refused."""
    refused = []
    while leaving := one.rearrange(now):
        one.requeue([each.entry for each in leaving if each.error is None])
        refused += [(each.entry, str(each.error)) for each in leaving if each.error is not None]
        one.place_waiting()
    return refused


def run(one: PolicyBatcher[Entry], now: float) -> list[Slot[Entry]]:
    settle(one, now)
    return one.take_ready(now)


def finish(one: PolicyBatcher[Entry], slot: Slot[Entry]) -> None:
    one.release(slot)
    one.place_waiting()


def served(one: PolicyBatcher[Entry], now: float) -> list[list[float]]:
    """Run everything to its end; return the arrivals of each batch's requests, in the order of running."""
    order: list[list[float]] = []
    while slots := run(one, now):
        for slot in slots:
            order.append([each.arrived for each in slot.entries])
            finish(one, slot)
    return order


def test_more_urgent_requests_run_first_and_no_or_an_unknown_priority_is_the_default() -> None:
    one = batcher({"priority_levels": 3, "default_priority_level": 2}, max_rows=1)
    one.add_instance(2, 1)
    for at, priority in enumerate([0, 3, 2, 1, 7, 0, 1]):  # as real Triton answers it
        one.submit(entry(at, priority=priority))
        if at == 0:
            (first,) = run(one, 0)
    finish(one, first)
    assert served(one, 0) == [[3], [6], [2], [4], [5], [1]]


def test_less_urgent_requests_fill_a_batch_up() -> None:
    one = batcher({"priority_levels": 2, "default_priority_level": 1})
    one.add_instance(2, 1)
    one.submit(entry(0, priority=2))
    one.submit(entry(1, priority=1))
    assert served(one, 1) == [[0, 1]]


def test_a_request_that_waited_too_long_is_refused_wherever_it_waits() -> None:
    policy = {"default_timeout_us": 300_000}
    one = batcher({"default_queue_policy": policy}, max_rows=1)
    one.add_instance(2, 1)
    entries = [entry(0.0), entry(0.1), entry(0.2)]
    for each in entries:
        one.submit(each)
    run(one, 0.2)
    assert one.next_moment() == pytest.approx(0.4)
    assert settle(one, 0.39) == []
    assert settle(one, 0.4) == [(entries[1], "Request timeout expired")]
    assert entries[2].slot is not None  # it moved up
    assert settle(one, 0.5) == [(entries[2], "Request timeout expired")]
    assert one.next_moment() is None
    assert one.waiting == 0


@pytest.mark.parametrize(
    ("default_us", "override", "asked_us", "refused_at"),
    [
        (400_000, True, 100_000, 0.1),
        (400_000, True, 900_000, 0.4),  # a request may ask for less, not for more
        (400_000, False, 100_000, 0.4),
        (0, True, 100_000, None),  # as in Triton: less than none there is not
    ],
)
def test_a_request_may_ask_for_less_time(
    default_us: int, override: bool, asked_us: int, refused_at: float | None
) -> None:
    policy = {"default_timeout_us": default_us, "allow_timeout_override": override}
    one = batcher({"default_queue_policy": policy}, max_rows=1)
    one.add_instance(1, 1)
    one.submit(entry(0.0))
    run(one, 0.0)
    one.submit(entry(0.0, timeout_us=asked_us))
    assert one.next_moment() == (None if refused_at is None else pytest.approx(refused_at))


def test_a_delayed_request_goes_behind_all_others_of_its_level() -> None:
    policy = {"timeout_action": "DELAY", "default_timeout_us": 10_000_000, "allow_timeout_override": True}
    options = {"priority_levels": 2, "default_priority_level": 1, "default_queue_policy": policy}
    one = batcher(options, max_rows=1)
    one.add_instance(3, 1)
    timeouts = {1: 60_000, 2: 10_000, 5: 70_000}
    one.submit(entry(0.0))
    (first,) = run(one, 0.0)
    for at in range(1, 7):
        one.submit(entry(at * 1e-6, timeout_us=timeouts.get(at, 0)))
    one.submit(entry(7e-6, priority=2))
    settle(one, 1.0)
    finish(one, first)
    order = [round(batch[0] * 1e6) for batch in served(one, 1.0)]
    assert order == [3, 4, 6, 1, 2, 5, 7]  # as real Triton answers it; a level below comes after its delayed ones


def test_a_full_queue_of_a_level_is_refused_and_what_runs_does_not_count() -> None:
    options = {
        "priority_levels": 2,
        "default_priority_level": 1,
        "default_queue_policy": {"max_queue_size": 3},
        "priority_queue_policies": [{"level": 2, "policy": {"max_queue_size": 1}}],
    }
    one = batcher(options, max_rows=1)
    one.add_instance(2, 1)
    one.submit(entry(0))
    run(one, 0)
    accepted = [entry(1, priority=2), *(entry(at) for at in (2, 3, 4))]
    for each in accepted:
        one.submit(each)
    for priority in (2, 1):
        with pytest.raises(QueueRefusedError, match="Exceeds maximum queue size"):
            one.submit(entry(5, priority=priority))
    one.cancel(accepted[-1])
    one.submit(entry(6))


def test_the_operators_ceiling_holds_too() -> None:
    one = batcher({"default_queue_policy": {"max_queue_size": 50}}, max_rows=1, waiting_limit=1)
    one.add_instance(1, 1)
    one.submit(entry(0))
    one.submit(entry(1))
    with pytest.raises(OverloadedError):
        one.submit(entry(2))


def test_a_batch_is_cut_to_the_largest_preferred_size_and_the_rest_is_next() -> None:
    one = batcher({"preferred_batch_sizes": [2, 4]})
    one.add_instance(2, 1)
    for at in range(3):
        one.submit(entry(at))
    assert served(one, 9) == [[0, 1], [2]]
    for at in range(7):
        one.submit(entry(at))
    assert served(one, 9) == [[0, 1, 2, 3], [4, 5], [6]]


def test_a_client_s_own_batch_stays_together() -> None:
    one = batcher({"preferred_batch_sizes": [2, 4]})
    one.add_instance(3, 1)
    for at, rows in enumerate((1, 3, 6)):
        one.submit(entry(at, rows=rows))
    assert served(one, 9) == [[0, 1], [2]]


def test_with_a_delay_a_preferred_size_runs_at_once_and_another_when_it_is_over() -> None:
    one = batcher({"preferred_batch_sizes": [2, 4]}, delay_s=0.4)
    one.add_instance(3, 3)
    one.submit(entry(0.0))
    assert run(one, 0.1) == []
    assert one.next_moment() == pytest.approx(0.4)
    one.submit(entry(0.1))
    assert [slot.rows for slot in run(one, 0.1)] == [2]
    one.submit(entry(0.2, rows=3))
    assert run(one, 0.3) == []
    assert [slot.rows for slot in run(one, 0.61)] == [3]


def test_tenants_take_turns_within_a_priority() -> None:
    one = batcher({"priority_levels": 2, "default_priority_level": 2}, max_rows=1)
    one.add_instance(1, 1)
    one.submit(entry(0))
    for at in range(1, 5):
        one.submit(entry(at, tenant="a"))
    one.submit(entry(5, tenant="b"))
    one.submit(entry(6, tenant="c", priority=1))
    assert served(one, 9) == [[0], [6], [1], [5], [2], [3], [4]]


def test_requests_that_are_over_are_let_go_of_while_one_waits_long() -> None:
    """Each holds its call: one that starves would have thousands of calls kept, and their streams with them."""
    policy = {"default_timeout_us": 3_600_000_000}
    one = batcher({"priority_levels": 2, "default_priority_level": 1, "default_queue_policy": policy}, max_rows=1)
    one.add_instance(2, 1)
    one.submit(entry(0.0))
    (running,) = run(one, 0.0)
    one.submit(entry(0.1))
    one.submit(entry(0.2, priority=2))  # and more urgent ones always come
    over = []
    for number in range(3000):
        urgent = Watched(Key("a", ((1,),)), 1, (1,), 1.0 + number, Wishes(1))
        over.append(weakref.ref(urgent))
        one.submit(urgent)
        del urgent
        one.release(running)
        one.place_waiting()
        (running,) = run(one, 1.0 + number)
    assert sum(reference() is not None for reference in over) < 600
