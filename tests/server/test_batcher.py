"""The batcher's decisions, as a machine of random steps checked against its rules after each."""

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hermetic.errors import InvalidRequestError, OverloadedError, WorkerLostError
from hermetic.server.batcher import Batcher
from hermetic.server.slots import FORMING, FREE, RUNNING, Entry, Key, Slot

CAPACITIES = (40, 24)
MAX_ROWS = 4
WAITING = 5


def key(tenant: str, width: int = 1) -> Key:
    return Key(tenant, ((width,), (width,)))


class BatcherMachine(RuleBasedStateMachine):
    """Memory is modelled too: what is copied, moved and wiped must leave every live request's bytes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.batcher: Batcher[Entry] = Batcher(MAX_ROWS, CAPACITIES, 1.0, WAITING)
        self.instances = [self.batcher.add_instance(3, 2), self.batcher.add_instance(2, 1)]
        self.memory: dict[Slot[Entry], list[list[int]]] = {}
        self.live: dict[Entry, int] = {}
        self.serial = 0

    def copy_in(self, entry: Entry) -> None:
        slot = entry.slot
        assert slot is not None
        regions = self.memory.setdefault(slot, [[0] * capacity for capacity in CAPACITIES])
        for region, offset, length in zip(regions, entry.offsets, entry.lengths, strict=True):
            assert region[offset : offset + length] == [0] * length  # wiped, and nobody's
            region[offset : offset + length] = [self.live[entry]] * length

    @rule(tenant=st.sampled_from("ab"), width=st.integers(1, 2), rows=st.integers(1, MAX_ROWS), extra=st.integers(0, 6))
    def submit(self, tenant: str, width: int, rows: int, extra: int) -> None:
        self.serial += 1
        self.now += 0.1
        entry = Entry(key(tenant, width), rows, (rows * width + extra, rows), self.now)
        waiting = self.batcher.waiting
        try:
            placed = self.batcher.submit(entry)
        except OverloadedError:
            assert waiting == WAITING
            return
        self.live[entry] = self.serial
        if placed:
            self.copy_in(entry)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(list(self.live)))
        removal = self.batcher.cancel(entry)
        if removal is not None:
            for region, (start, length, end) in zip(self.memory[removal.slot], removal.gaps, strict=True):
                region[start : end - length] = region[start + length : end]
                region[end - length : end] = [0] * length
        if entry.slot is None or entry.slot.state != RUNNING:
            del self.live[entry]

    @rule(step=st.sampled_from([0.0, 0.5, 2.0]))
    def run(self, step: float) -> None:
        self.now += step
        for slot in self.batcher.take_ready(self.now):
            assert slot.entries
            assert slot.state == RUNNING
        assert not self.batcher.take_ready(self.now)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        running = [slot for instance in self.instances for slot in instance.slots if slot.state == RUNNING]
        if not running:
            return
        slot = data.draw(st.sampled_from(running))
        for entry in slot.entries:
            self.live.pop(entry, None)
        self.memory[slot] = [[0] * capacity for capacity in CAPACITIES]
        self.batcher.release(slot)
        for entry in self.batcher.place_waiting():
            self.copy_in(entry)

    @invariant()
    def rules_hold(self) -> None:
        for instance in self.instances:
            states = [slot.state for slot in instance.slots]
            assert states.count(RUNNING) == instance.running <= instance.in_flight
            assert states.count(FORMING) == len(instance.forming)
            assert states.count(FREE) == len(instance.free)
            for slot in instance.slots:
                self.slot_holds(slot)
        placed = sum(len(slot.entries) for instance in self.instances for slot in instance.slots)
        assert placed + self.batcher.waiting >= len(self.live)
        assert self.batcher.waiting <= WAITING

    def slot_holds(self, slot: Slot[Entry]) -> None:
        assert slot.rows == sum(entry.rows for entry in slot.entries) <= MAX_ROWS
        assert {entry.key for entry in slot.entries} <= {slot.key}
        row = 0
        at = [0] * len(CAPACITIES)
        for entry in slot.entries:
            assert entry.row == row
            assert list(entry.offsets) == at
            row += entry.rows
            for region, offset, length in zip(self.memory[slot], entry.offsets, entry.lengths, strict=True):
                if entry in self.live:
                    assert region[offset : offset + length] == [self.live[entry]] * length
            at = [offset + length for offset, length in zip(at, entry.lengths, strict=True)]
        assert slot.filled == at
        assert all(filled <= capacity for filled, capacity in zip(at, CAPACITIES, strict=True))


BatcherMachine.TestCase.settings = hypothesis_settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBatcherMachine = BatcherMachine.TestCase


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
