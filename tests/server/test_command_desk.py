"""Commands in the supervisor: a front end that floods is ended before it fills the supervisor's memory."""

import pytest

from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError, NotReadyError
from hermetic.server.command_desk import CommandDesk
from hermetic.server.commands import COMMANDS_LIMIT
from hermetic.server.generation import Reply
from hermetic.server.messages import Command, CommandReply


class Commander:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        self.frames.append(frame)


def command(number: int) -> Command:
    return Command(id=number, action="load", model=f"m{number}", identity="x")


class World:
    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.desk = CommandDesk(lambda _, reply: self.replies.append(reply))


def test_each_command_is_answered_with_its_number() -> None:
    world, front_end = World(), Commander()
    world.desk.take(front_end, command(1))
    world.desk.take(front_end, command(2))
    world.replies[1](NotReadyError("x" * 2000))
    world.replies[0](None)
    assert front_end.frames == [
        CommandReply(id=2, error="NotReadyError", text="x" * 1024),
        CommandReply(id=1, error="", text=""),
    ]


def test_more_commands_than_a_front_end_may_have_are_its_end_and_leave_others_alone() -> None:
    world, flood, other = World(), Commander(), Commander()
    for number in range(COMMANDS_LIMIT):
        world.desk.take(flood, command(number))
    with pytest.raises(BorderError, match="without an answer"):
        world.desk.take(flood, command(99))
    assert len(world.replies) == COMMANDS_LIMIT
    world.desk.take(other, command(1))
    world.replies[0](None)
    world.desk.take(flood, command(100))  # one is answered: there is room for one


def test_who_is_gone_is_told_nothing() -> None:
    world, front_end = World(), Commander()
    world.desk.take(front_end, command(1))
    world.desk.gone(front_end)
    world.replies[0](None)
    assert front_end.frames == []
