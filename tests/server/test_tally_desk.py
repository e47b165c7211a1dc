"""What all front ends have counted: asked anew for each question, kept beyond a front end's end."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError
from hermetic.server import tally_desk
from hermetic.server.event_loop import EventLoop
from hermetic.server.shared_messages import AskTally, TallyPart
from hermetic.server.tally import ModelTally, Tally
from hermetic.server.tally_desk import Counting, TallyDesk

HELD = ("m", 1, 1)
LIVE = "/inference.GRPCInferenceService/ServerLive"


class Counter:
    """A front end that says its tally when a test has it do so."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.asked: list[int] = []
        self.inferences = 0

    def send(self, frame: Frame, _descriptors: tuple[int, ...] = ()) -> None:
        assert isinstance(frame, AskTally)
        self.asked.append(frame.ask)


class World:
    def __init__(self) -> None:
        self.loop = EventLoop()
        self.front_ends: dict[int, Counting] = {}
        self.held = {HELD}
        self.desk = TallyDesk(self.loop, self.front_ends, lambda: frozenset(self.held))
        self.heard: list[int] = []

    def counter(self, pid: int, inferences: int = 0) -> Counter:
        counter = Counter(pid)
        self.front_ends[pid] = counter
        if inferences:
            self.says(counter, inferences)
        return counter

    def says(self, counter: Counter, inferences: int, ask: int = 0) -> None:
        model = ModelTally(name="m", version=1, generation=1, inferences=inferences, pending=1)
        text = Tally(models=(model,), live=1, requests=((LIVE, 0, inferences),)).model_dump_json()
        for at, piece in enumerate((text[:20], text[20:])):
            self.desk.take(counter, TallyPart(ask=ask, text=piece, last=at == 1))

    def ask(self, asker: int) -> None:
        self.desk.ask(asker, lambda tally: self.heard.append(sum(model.inferences for model in tally.models)))

    def ends(self, pid: int) -> None:
        del self.front_ends[pid]
        self.desk.gone(pid)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.loop.close()


def test_one_alone_is_answered_at_once(world: World) -> None:
    world.counter(1, 5)
    world.ask(1)
    assert world.heard == [5]


def test_every_other_one_is_asked_for_what_it_has_now(world: World) -> None:
    world.counter(1, 5)
    two, three = world.counter(2, 10), world.counter(3, 100)
    world.ask(1)
    assert world.heard == []
    world.says(three, 200, ask=three.asked[0])
    assert world.heard == []
    world.says(two, 20, ask=two.asked[0])
    assert world.heard == [225]


def test_one_that_stays_silent_counts_with_what_it_said_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_desk, "PATIENCE_S", 0.01)
    world.counter(1, 5)
    two = world.counter(2, 10)
    world.ask(1)
    while not world.heard:
        world.loop.turn()
    assert world.heard == [15]
    world.says(two, 20, ask=two.asked[0])  # too late, and no harm
    assert world.heard == [15]


def test_counts_only_rise_when_a_front_end_ends(world: World) -> None:
    """Before the question, between question and answer, and with a successor."""
    world.counter(1, 5)
    world.counter(2, 10)
    world.ask(1)
    world.ends(2)
    assert world.heard == [15]
    world.ask(1)
    three = world.counter(3)
    world.ask(1)
    world.says(three, 1, ask=three.asked[0])
    assert world.heard == [15, 15, 16]
    assert all(earlier <= later for earlier, later in pairwise(world.heard))
    total = world.desk.total()
    assert (total.live, total.models[0].pending) == (2, 2)  # what the ended one held is gone
    assert total.requests == ((LIVE, 0, 16),)


def test_a_model_that_is_gone_is_forgotten(world: World) -> None:
    world.counter(1, 5)
    world.ends(1)
    assert world.desk.total().models[0].inferences == 5
    world.held.clear()
    assert world.desk.total().models == ()
    assert world.desk.total().requests  # calls were calls


@pytest.mark.parametrize("request_", [("/no/method", 0, 1), (LIVE, 99, 1)])
def test_methods_and_statuses_must_exist(world: World, request_: tuple[str, int, int]) -> None:
    text = Tally(requests=(request_,)).model_dump_json()
    with pytest.raises(BorderError, match="wanted a method and a status that exist"):
        world.desk.take(world.counter(1), TallyPart(ask=0, text=text, last=True))


def test_a_tally_without_end_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_desk, "TALLY_LIMIT", 100)
    counter = world.counter(1)
    part = TallyPart(ask=0, text="x" * 30, last=False)
    for _ in range(3):
        world.desk.take(counter, part)
    with pytest.raises(BorderError, match="at most 100 bytes"):
        world.desk.take(counter, part)


def test_one_that_asks_again_and_again_leaves_others_one_question_at_a_time(world: World) -> None:
    """A front end that floods would have the others' sockets fill up, and them ended for it."""
    world.counter(1, 5)
    two, three = world.counter(2, 10), world.counter(3, 100)
    for _ in range(50):
        world.ask(1)
    world.ask(3)
    assert (len(two.asked), len(three.asked)) == (1, 1)
    world.says(two, 20, ask=two.asked[-1])
    world.says(three, 100, ask=three.asked[-1])
    assert world.heard == [125]
    one = world.front_ends[1]
    assert isinstance(one, Counter)
    assert (len(two.asked), len(one.asked)) == (2, 1), "and one of two that ask is asked too"
    for counter, inferences in ((one, 6), (two, 30), (three, 200)):
        world.says(counter, inferences, ask=2)
    assert world.heard == [125] + 50 * [236]


def test_more_questions_than_a_front_end_may_have_are_its_end(world: World) -> None:
    world.counter(1, 5)
    two = world.counter(2, 10)
    for _ in range(tally_desk.ASKS_LIMIT):
        world.ask(1)
    with pytest.raises(BorderError, match="without an answer"):
        world.ask(1)
    world.ask(2)
    world.ends(1)
    world.says(two, 10, ask=two.asked[0])
    assert world.heard == [15], "who is gone is told nothing; who is there is"
