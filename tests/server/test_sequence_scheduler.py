"""What the sequence scheduler decides: what waits for what, in which row; random steps checked against the rules."""

from collections import defaultdict
from collections.abc import Sequence as Many
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hermetic.enclave.buffers import layout
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import CallerError, HermeticError, InvalidRequestError, OverloadedError, WorkerLostError
from hermetic.server.config import Limits
from hermetic.server.contents import Buffer
from hermetic.server.outputs import Output
from hermetic.server.scheduling import sequence_limits
from hermetic.server.sequence_call import SequenceCall
from hermetic.server.sequence_scheduler import Room, SequenceScheduler
from hermetic.server.sequence_tensors import SequenceTensors
from hermetic.server.sequences import Sequence, SequenceLimits, Sequences, SequenceWork
from hermetic.server.slots import RUNNING, Instance, Key, Slot, Wishes
from hermetic.server.work import Work
from tests.server.sequence_models import accumulator, countdown

ROWS = 4
ROW = ((1,),)


class Asked(SequenceWork):
    """A request that nobody waits for."""

    def __init__(
        self, call: SequenceCall, tenant: str = "red", arrived: float = 0.0, row_shapes: Any = ROW, **options: Any
    ) -> None:
        raw: Many[Buffer] = [bytes(4 * row_shapes[0][0])]
        super().__init__(Key(tenant, row_shapes), 1, raw, arrived, options.get("wishes", Wishes()))
        self.call = call
        self._tenant = tenant
        self.client: object = tenant
        self.begun = False
        self.finished = options.get("finished", True)
        self.queued = arrived
        self.turn = 0
        self.sequence: Sequence | None = None
        self.error: HermeticError | None = None

    @property
    def tenant(self) -> str:
        return self._tenant

    def copied(self) -> None:
        """Nothing."""

    def answer(self, outputs: Many[Output], total_rows: int, started: float) -> None:
        """Nothing."""

    def fail(self, error: HermeticError) -> None:
        self.error = error


class Model:
    """A scheduler with the clock and the worker in one's own hands."""

    def __init__(self, description: ModelDescription, instances: int = 1, capacity: int = 1000) -> None:
        options = description.configuration.sequence_batching
        assert options is not None
        hidden = len(description.model_inputs) - len(description.inputs)
        tensors = SequenceTensors(description, options, (capacity,) * hidden, {})
        self.sequences = Sequences(description.name, SequenceLimits(50, 20), several_front_ends=False)
        room = Room(description.inputs, (capacity,) * len(description.inputs), description.max_batch_size, 100)
        self.scheduler = SequenceScheduler(options, room, self.sequences, tensors)
        self.instances = [self.scheduler.add_instance(2, 2) for _ in range(instances)]
        self.now = 0.0

    def ask(self, sequence: int, *, start: bool = False, end: bool = False, **options: Any) -> Asked:
        work = Asked(SequenceCall(sequence, start=start, end=end), arrived=self.now, **options)
        assert not self.scheduler.submit(work)
        return work

    def run(self, step: float = 0.0) -> list[Slot[Work]]:
        """Let time pass; return the batches that go to workers."""
        self.now += step
        for work, _, error in self.scheduler.rearrange(self.now):
            assert error is not None
            work.fail(error)
        self.scheduler.place_waiting()
        return self.scheduler.take_ready(self.now)

    def finish(self, *slots: Slot[Work]) -> None:
        for slot in slots:
            self.scheduler.release(slot)


def ids(slot: Slot[Work]) -> list[int | str]:
    return [work.call.id for work in slot.entries if isinstance(work, Asked)]


def test_one_request_of_a_sequence_at_a_time() -> None:
    model = Model(accumulator("m"))
    for start in (True, False, False):
        model.ask(1, start=start)
    for _ in range(3):
        (slot,) = model.run()
        assert ids(slot) == [1]
        assert model.run() == []
        model.finish(slot)
    assert model.run() == []
    assert model.scheduler.waiting == 0


def test_oldest_takes_the_longest_waiting_up_to_the_largest_batch() -> None:
    model = Model(accumulator("m"))
    for at in range(1, 7):
        model.ask(at, start=True)
    (slot,) = model.run()
    assert ids(slot) == [1, 2, 3, 4]
    assert [work.row for work in slot.entries] == [0, 1, 2, 3]
    model.now = 1.0
    model.ask(1)
    model.finish(slot)
    (slot,) = model.run()
    assert ids(slot) == [5, 6, 1]


def test_oldest_waits_for_a_preferred_size_or_the_delay() -> None:
    model = Model(accumulator("m", max_queue_delay_us=1_000_000, preferred_batch_sizes=(2,)))
    model.ask(1, start=True)
    assert model.run() == []
    assert model.scheduler.next_moment() == 1.0
    model.now = 0.5
    model.ask(2, start=True)
    model.ask(3, start=True)
    (slot,) = model.run()
    assert ids(slot) == [1, 2]  # the preferred size, no more
    model.finish(slot)
    assert model.run() == []
    (slot,) = model.run(1.0)
    assert ids(slot) == [3]


def test_direct_waits_for_its_utilisation_or_the_delay() -> None:
    model = Model(accumulator("m", strategy="direct", max_queue_delay_us=1_000_000, minimum_slot_utilization=0.75))
    model.ask(1, start=True)
    model.ask(2, start=True)
    assert model.run() == []
    model.ask(3, start=True)
    (slot,) = model.run()
    assert ids(slot) == [1, 2, 3]
    model.finish(slot)
    model.ask(2)
    assert model.run(0.9) == []
    (slot,) = model.run(0.2)
    assert [(work.row, ids(slot)) for work in slot.entries] == [(1, [2])]
    assert slot.rows == 2
    assert slot.entries[0].offsets == [4]


def test_direct_keeps_the_row_of_a_sequence_and_gives_it_to_the_backlog_when_it_ends() -> None:
    model = Model(accumulator("m", strategy="direct", rows=2))
    for at in (1, 2, 3):
        model.ask(at, start=True)
    (slot,) = model.run()
    assert ids(slot) == [1, 2]
    model.finish(slot)
    model.ask(1, end=True)
    (slot,) = model.run()
    assert ids(slot) == [1]
    model.finish(slot)
    (slot,) = model.run()
    assert [(work.row, ids(slot)) for work in slot.entries] == [(0, [3])]


def test_sequences_are_spread_over_instances_and_stay_there() -> None:
    model = Model(accumulator("m"), instances=2)
    for at in range(1, 5):
        model.ask(at, start=True)
    slots = model.run()
    assert [ids(slot) for slot in slots] == [[1, 3], [2, 4]]
    model.finish(*slots)
    for at in range(1, 5):
        model.ask(at)
    assert {(slot.instance, tuple(ids(slot))) for slot in model.run()} == {
        (model.instances[0], (1, 3)),
        (model.instances[1], (2, 4)),
    }


def test_what_cannot_be_mixed_runs_in_turn() -> None:
    model = Model(accumulator("m"))
    model.ask(1, start=True, tenant="red")
    model.ask(1, start=True, tenant="blue")
    model.ask(2, start=True, tenant="red")
    model.ask(3, start=True, tenant="red", row_shapes=((2,),))
    batches = []
    for _ in range(3):
        (slot,) = model.run()
        batches.append([(work.key.tenant, work.call.id) for work in slot.entries if isinstance(work, Asked)])
        model.finish(slot)
    assert batches == [[("red", 1), ("red", 2)], [("blue", 1)], [("red", 3)]]


def test_with_preserved_order_nothing_overtakes() -> None:
    model = Model(accumulator("m", preserve_ordering=True))
    model.ask(1, start=True, tenant="red")
    model.ask(1, start=True, tenant="blue")
    model.ask(2, start=True, tenant="red")
    (slot,) = model.run()
    assert [work.key.tenant for work in slot.entries] == ["red"]


def test_a_batch_holds_no_more_than_a_buffer_has_room_for() -> None:
    model = Model(accumulator("m"), capacity=33)  # four correlation ids of 8 bytes
    for at in range(1, 5):
        model.ask(at, start=True, row_shapes=((4,),))
    (slot,) = model.run()
    assert ids(slot) == [1, 2]  # 16 bytes of input each


def test_an_input_that_never_fits_is_refused() -> None:
    model = Model(accumulator("m"), capacity=33)
    with pytest.raises(InvalidRequestError, match="at most 33 bytes"):
        model.ask(1, start=True, row_shapes=((20,),))


def test_a_request_that_does_not_fit_behind_empty_rows_fails_alone() -> None:
    model = Model(accumulator("m", strategy="direct", rows=3), capacity=40)
    for at in (1, 2, 3):
        model.ask(at, start=True)
    model.finish(*model.run())
    wide = model.ask(3, row_shapes=((8,),))
    model.ask(1)
    (slot,) = model.run()
    assert ids(slot) == [1]
    assert model.scheduler.next_moment() == model.now  # there is something to tell
    model.run()
    assert isinstance(wide.error, InvalidRequestError)


def test_an_idle_sequence_is_forgotten_in_time() -> None:
    model = Model(accumulator("m", max_idle_us=2_000_000))
    model.ask(1, start=True)
    model.finish(*model.run())
    model.run()
    assert model.scheduler.next_moment() == 2.0
    model.run(1.9)
    model.ask(1)
    (slot,) = model.run()
    model.run(5.0)  # it runs: that is not idle
    model.finish(slot)
    model.run()
    assert len(list(model.sequences)) == 1
    model.run(2.0)
    assert not list(model.sequences)
    with pytest.raises(InvalidRequestError, match="START"):
        model.ask(1)


def test_a_lost_instance_takes_its_sequences_along_and_no_others() -> None:
    model = Model(accumulator("m", max_candidate_sequences=1), instances=2)
    works = [model.ask(at, start=True) for at in (1, 2, 3)]
    works.append(model.ask(1))
    slots = model.run()
    lost = next(slot.instance for slot in slots if ids(slot) == [1])
    leaving = model.scheduler.remove_instance(lost, WorkerLostError("gone"))
    assert [leave.entry for leave in leaving] == [works[0], works[3]]
    assert model.scheduler.waiting == 1  # the third, in the backlog
    model.finish(*(slot for slot in slots if slot.instance is not lost))
    model.ask(2, end=True)
    model.finish(*model.run())
    assert [ids(slot) for slot in model.run()] == [[3]]
    rest = model.scheduler.remove_instance(next(one for one in model.instances if one is not lost), WorkerLostError(""))
    assert len(rest) == 1
    assert not list(model.sequences)


def test_an_iterative_request_goes_to_the_end_of_the_line_each_time() -> None:
    model = Model(countdown("m", rows=2))
    works = [model.ask(0, start=True, finished=False) for _ in range(3)]
    ran = []
    for _ in range(3):
        model.now += 1
        (slot,) = model.run()
        ran.append([works.index(work) for work in slot.entries if isinstance(work, Asked)])
        model.finish(slot)
    assert ran == [[0, 1], [2, 0], [1, 2]]


class SequenceMachine(RuleBasedStateMachine):
    """Requests of few sequences of two tenants, at two instances that may be lost."""

    strategy = "oldest"

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {} if self.strategy == "direct" else {"max_candidate_sequences": 3}
        self.model = Model(
            accumulator("m", strategy=self.strategy, rows=2, max_idle_us=3_000_000, **options), instances=2
        )
        self.waiting: dict[Asked, None] = {}
        self.running: list[Slot[Work]] = []
        self.order: defaultdict[Sequence, list[Asked]] = defaultdict(list)

    @rule(
        sequence=st.integers(1, 5), tenant=st.sampled_from(["red", "blue"]), start=st.booleans(), end=st.booleans(),
        width=st.integers(1, 2),
    )  # fmt: skip
    def ask(self, sequence: int, tenant: str, start: bool, end: bool, width: int) -> None:
        try:
            work = self.model.ask(
                sequence, start=start, end=end, tenant=tenant, row_shapes=((width,),),
                wishes=Wishes(timeout_us=4_000_000),
            )  # fmt: skip
        except CallerError:
            return
        self.waiting[work] = None
        assert work.sequence is not None
        self.order[work.sequence].append(work)

    @rule(step=st.sampled_from([0.0, 0.5, 2.0]))
    def run(self, step: float) -> None:
        for slot in self.model.run(step):
            self.running.append(slot)
            for work in slot.entries:
                assert isinstance(work, Asked)
                assert work.sequence is not None
                assert self.order[work.sequence].pop(0) is work  # in order
                del self.waiting[work]
        self._drop_failed()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.running))
        self.running.remove(slot)
        self.model.finish(slot)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(list(self.waiting)))
        assert self.model.scheduler.cancel(work) is None
        del self.waiting[work]
        self._forget(work)
        self.run(0.0)  # as the dispatcher does

    @precondition(lambda self: len(self.model.instances) > 1)
    @rule(which=st.integers(0, 1))
    def lose(self, which: int) -> None:
        instance = self.model.instances.pop(which)
        for leave in self.model.scheduler.remove_instance(instance, WorkerLostError("lost")):
            assert isinstance(leave.entry, Asked)
            leave.entry.fail(leave.error or WorkerLostError("lost"))
        self.running = [slot for slot in self.running if slot.instance is not instance]
        self._drop_failed()

    @precondition(lambda self: len(self.model.instances) < 2)
    @rule()
    def add(self) -> None:
        self.model.instances.append(self.model.scheduler.add_instance(2, 2))

    def _drop_failed(self) -> None:
        for work in [one for one in self.waiting if one.error is not None]:
            del self.waiting[work]
            self._forget(work)

    def _forget(self, work: Asked) -> None:
        assert work.sequence is not None
        self.order[work.sequence].remove(work)

    @invariant()
    def one_tenant_one_shape_one_batch(self) -> None:
        instances: list[Instance[Work]] = []
        for slot in self.running:
            assert slot.state == RUNNING
            assert slot.rows <= 2
            assert len({work.key for work in slot.entries}) == 1
            assert len({work.row for work in slot.entries}) == len(slot.entries)
            instances.append(slot.instance)
        assert len(set(instances)) == len(instances)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.model.scheduler.waiting == len(self.waiting)
        assert all(work.error is None for work in self.waiting)

    def teardown(self) -> None:
        """Everything that is left runs, and then nothing is kept."""
        for _ in range(100):
            for slot in self.running:
                self.model.finish(slot)
            self.running = []
            self.run(1.0)
            if not self.running and not self.waiting:
                break
        self.model.run(10.0)
        self.model.run(10.0)
        assert not self.waiting
        assert self.model.scheduler.waiting == 0
        assert not list(self.model.sequences)


class DirectMachine(SequenceMachine):
    strategy = "direct"


TestSequenceMachine = SequenceMachine.TestCase
TestDirectMachine = DirectMachine.TestCase
QUICK = hypothesis_settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSequenceMachine.settings = QUICK
TestDirectMachine.settings = QUICK


def test_limits_name_what_was_wanted() -> None:
    model = Model(accumulator("m"))
    for at in range(1, 21):
        model.ask(at, start=True)
    with pytest.raises(OverloadedError, match="of this client at model 'm': wanted at most 20, got 21"):
        model.ask(99, start=True)


@pytest.mark.parametrize("how", ["end", "idle", "lost", "cancelled"])
def test_what_was_kept_is_overwritten_when_a_sequence_ends(how: str) -> None:
    model = Model(accumulator("m", max_idle_us=1_000_000))
    first = model.ask(1, start=True)
    model.finish(*model.run())
    assert first.sequence is not None
    kept = first.sequence.states[0].data
    kept[:] = b"\x01\x02\x03\x04"
    if how == "end":
        model.ask(1, end=True)
        model.finish(*model.run())
    elif how == "idle":
        model.run()
        model.run(2.0)
    elif how == "lost":
        model.scheduler.remove_instance(model.instances[0], WorkerLostError("lost"))
    else:
        model.scheduler.cancel(model.ask(1))
    assert kept == bytes(4)
    assert not list(model.sequences)


@pytest.mark.timeout(60)
def test_billions_of_places_cost_nothing() -> None:
    """A publisher says how many; the front end serves all other models with the same thread."""
    model = Model(accumulator("m", strategy="oldest", max_candidate_sequences=2**31 - 1))
    for sequence in range(1, 4):
        model.ask(sequence, start=True)
    (slot,) = model.run()
    assert ids(slot) == [1, 2, 3]


@pytest.mark.parametrize(("elements", "limits"), [(1, (4096, 1024)), (1 << 20, (16, 4)), (1 << 25, (1, 1))])
def test_no_more_sequences_than_their_states_have_room_for(elements: int, limits: tuple[int, int]) -> None:
    """A START costs its caller a few bytes, and us a state that stays."""
    state = {"input_name": "STATE_IN", "output_name": "STATE_OUT", "datatype": "FP32", "shape": (elements,)}
    model = accumulator("m", rows=1, states=(state,))
    options = model.configuration.sequence_batching
    assert options is not None
    settings = Limits(message_bytes=1 << 20, bytes_in_flight_per_client=1 << 24, bytes_in_flight=1 << 26)
    assert sequence_limits(options, layout(model, 2, 1 << 16), settings) == limits
