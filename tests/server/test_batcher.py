"""The batcher's rules, each alone. The random machine over all of them is test_batching_machine.py."""

import pytest

from hermetic.errors import InvalidRequestError, OverloadedError, WorkerLostError
from hermetic.server.batcher import Batcher
from hermetic.server.slots import Entry, Key


def batcher(**changes: object) -> Batcher[Entry]:
    values = {"max_rows": 4, "capacities": (100,), "delay_s": 0.0, "waiting_limit": 2, **changes}
    return Batcher(**values)  # type: ignore[arg-type]


def entry(tenant: str = "a", rows: int = 1, at: float = 0.0) -> Entry:
    return Entry(Key(tenant, ((1,),)), rows, (rows,), at)


def test_what_never_fits_is_the_callers_fault() -> None:
    one = batcher()
    one.add_instance(2, 1)
    with pytest.raises(InvalidRequestError, match="expected at most 4, got 5"):
        one.submit(entry(rows=5))
    with pytest.raises(InvalidRequestError, match="expected at most 100 bytes, got 101"):
        one.submit(Entry(Key("a", ()), 1, (101,), 0.0))


def test_tenants_take_turns_when_a_buffer_becomes_free() -> None:
    one = batcher(max_rows=1, waiting_limit=100)
    one.add_instance(1, 1)
    assert one.submit(entry("a"))
    crowd = [entry("a") for _ in range(10)]
    single = entry("b")
    assert not any(one.submit(each) for each in crowd)
    assert not one.submit(single)
    served = []
    for _ in range(3):
        (slot,) = one.take_ready(0.0)
        served.append(slot.key.tenant)
        one.release(slot)
        one.place_waiting()
    assert served == ["a", "a", "b"]


def test_a_delay_runs_full_buffers_at_once_and_others_when_it_is_over() -> None:
    one = batcher(delay_s=1.0, max_rows=2)
    one.add_instance(3, 3)
    one.submit(entry(at=0.0))
    assert one.take_ready(0.5) == []
    assert one.next_moment() == 1.0
    one.submit(entry(at=0.6))
    assert len(one.take_ready(0.6)) == 1
    one.submit(entry(at=0.7))
    assert one.take_ready(1.6) == []
    assert len(one.take_ready(1.7)) == 1


def test_a_lost_instance_moves_what_was_forming_and_the_last_one_fails_all() -> None:
    one = batcher(max_rows=1)
    first, second = one.add_instance(2, 1), one.add_instance(1, 1)
    entries = [entry(at=at) for at in range(4)]
    for each in entries:
        one.submit(each)
    one.take_ready(0.0)
    error = WorkerLostError("gone")
    ran, moves = sorted(one.remove_instance(first, error), key=lambda leaving: leaving.entry.arrived)
    assert (ran.error, ran.removal) == (error, None)
    assert moves.error is None
    assert moves.removal is not None
    assert moves.removal.gaps == [(0, 1, 1)]
    one.requeue([moves.entry])
    assert one.waiting == 2
    lost = one.remove_instance(second, error)
    assert [leaving.error for leaving in lost] == [error] * 3
    assert {id(leaving.entry) for leaving in (ran, *lost)} == {id(each) for each in entries}
    assert one.waiting == 0


def test_what_moved_is_placed_before_what_came_later() -> None:
    one = batcher(max_rows=1)
    first, second = one.add_instance(2, 1), one.add_instance(1, 1)
    entries = [entry(at=at) for at in range(4)]
    for each in entries:
        one.submit(each)
    one.take_ready(0.0)
    moved = [leaving.entry for leaving in one.remove_instance(first, WorkerLostError("gone")) if not leaving.error]
    assert len(moved) == 1
    one.requeue(moved)
    one.release(second.slots[0])
    assert one.place_waiting() == moved


def test_one_tenants_requests_do_not_lock_out_anothers() -> None:
    """A caller has more calls than a model has places for waiting requests, and would hold them all the time."""
    one = batcher(max_rows=1, waiting_limit=16)
    one.add_instance(1, 1)
    while one.waiting < 16:
        one.submit(entry("a"))
    with pytest.raises(OverloadedError):
        one.submit(entry("a"))
    for _ in range(2):  # an eighth
        assert not one.submit(entry("b"))
    with pytest.raises(OverloadedError, match="wanted at most 16, got 19"):
        one.submit(entry("b"))
    for number in range(7):
        one.submit(entry(f"c{number}"))
        one.submit(entry(f"c{number}"))
    assert one.waiting == 32
    with pytest.raises(OverloadedError):
        one.submit(entry("d"))


def test_where_tenants_are_mixed_nobody_is_another() -> None:
    one = batcher(max_rows=1, waiting_limit=2)
    one.add_instance(1, 1)
    while one.waiting < 2:
        one.submit(entry(""))
    with pytest.raises(OverloadedError):
        one.submit(entry(""))


def busy_and_idle(**changes: object) -> tuple[Batcher[Entry], list[Entry]]:
    """Two instances; the first runs one request and has four more in a buffer, the second has just become idle."""
    one = batcher(waiting_limit=100, **changes)
    first, second = one.add_instance(2, 1), one.add_instance(1, 1)
    running = [entry(at=0.0), entry("b", at=0.0)]
    for each in running:
        one.submit(each)
    assert len(one.take_ready(0.0)) == 2
    waiting = [entry(at=1.0 + at) for at in range(3)]
    for each in waiting:
        one.submit(each)
    assert {each.slot.instance for each in waiting if each.slot is not None} == {first}
    assert one.rearrange(5.0) == []
    one.release(second.slots[0])
    return one, waiting


def test_an_idle_instance_gets_half_of_what_waits_for_a_busy_one() -> None:
    one, waiting = busy_and_idle()
    lent = one.rearrange(5.0)
    assert [leaving.entry for leaving in lent] == waiting[:0:-1]
    assert [leaving.removal.gaps for leaving in lent if leaving.removal] == [[(2, 1, 3)], [(1, 1, 2)]]
    one.requeue([leaving.entry for leaving in lent])
    assert one.place_waiting() == waiting[1:]
    (slot,) = one.take_ready(5.0)
    assert slot.entries == waiting[1:]
    assert one.rearrange(5.0) == []


def test_an_idle_instance_gets_all_of_a_full_buffer() -> None:
    one, waiting = busy_and_idle(max_rows=3)
    one.requeue([leaving.entry for leaving in one.rearrange(5.0)])
    one.place_waiting()
    (slot,) = one.take_ready(5.0)
    assert slot.entries == waiting


def test_nothing_is_lent_before_it_would_run() -> None:
    one = batcher(delay_s=1.0, waiting_limit=100)
    first, second = one.add_instance(2, 1), one.add_instance(2, 1)
    for tenant in "ab":
        one.submit(entry(tenant, at=0.0))
    assert len(one.take_ready(1.0)) == 2
    one.submit(entry("a", at=1.5))
    one.release(second.slots[-1])
    assert one.rearrange(2.0) == []
    assert one.next_moment() == 2.5
    assert len(one.rearrange(2.5)) == 1
    assert first.running == 1
