"""Changes of settings in the supervisor: a front end that asks without end is held to a pace, and then ended."""

import pytest

from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError, NotReadyError
from hermetic.server.change_desk import CHANGE_EVERY_S, CHANGES_IN_A_ROW, ChangeDesk
from hermetic.server.generation import Reply
from hermetic.server.settings_rpc import CHANGES_LIMIT
from hermetic.server.shared_messages import ChangeSettings, SettingsChanged


class Asker:
    def __init__(self) -> None:
        self.answers: list[SettingsChanged] = []

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        assert isinstance(frame, SettingsChanged)
        self.answers.append(frame)


def change(number: int = 1) -> ChangeSettings:
    return ChangeSettings(id=number, identity="clients:oper")


class World:
    def __init__(self, *, at_once: bool = True) -> None:
        self.taken: list[ChangeSettings] = []
        self.replies: list[Reply] = []
        self.records: list[str] = []
        self._at_once = at_once
        self.desk = ChangeDesk(self._carry_out, lambda kind, _: self.records.append(kind))

    def _carry_out(self, asked: ChangeSettings, reply: Reply) -> None:
        self.taken.append(asked)
        self.replies.append(reply)
        if self._at_once:
            reply(None)


def test_each_change_is_answered_with_its_number() -> None:
    world, front_end = World(at_once=False), Asker()
    world.desk.take(front_end, change(1), 0.0)
    world.desk.take(front_end, change(2), 0.0)
    world.replies[1](NotReadyError("x" * 2000))
    world.replies[0](None)
    assert front_end.answers == [SettingsChanged(id=2, error="NotReadyError", text="x" * 1024), SettingsChanged(id=1)]


def test_who_asks_without_end_is_held_to_a_pace() -> None:
    world, front_end = World(), Asker()
    for moment in range(100_000):
        world.desk.take(front_end, change(), moment / 1000)
    assert len(world.taken) == pytest.approx(CHANGES_IN_A_ROW + 100 / CHANGE_EVERY_S, abs=1)
    assert len(front_end.answers) == 100_000, "each is answered"
    assert {answer.error for answer in front_end.answers} == {"", "OverloadedError"}
    assert len(world.records) <= len(world.taken), "a spell of refusals is one record"


def test_who_asks_seldom_is_never_refused() -> None:
    world, front_end = World(), Asker()
    for moment in range(500):
        world.desk.take(front_end, change(), moment * CHANGE_EVERY_S)
    assert len(world.taken) == 500
    assert world.records == []


def test_each_front_end_has_a_pace_of_its_own() -> None:
    world, greedy, other = World(), Asker(), Asker()
    for _ in range(CHANGES_IN_A_ROW + 5):
        world.desk.take(greedy, change(), 0.0)
    world.desk.take(other, change(), 0.0)
    assert other.answers[-1].error == ""
    world.desk.gone(greedy)
    world.desk.take(greedy, change(), 0.0)
    assert greedy.answers[-1].error == "", "a successor begins anew"


def test_more_than_its_own_limit_without_an_answer_is_a_breach() -> None:
    world, front_end = World(at_once=False), Asker()
    for moment in range(CHANGES_LIMIT):
        world.desk.take(front_end, change(), moment * 10.0)
    with pytest.raises(BorderError, match="without an answer, got one more"):
        world.desk.take(front_end, change(), 1e6)
    world.desk.gone(front_end)
    world.replies[0](None)
    assert front_end.answers == [], "nobody is told"
