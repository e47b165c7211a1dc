"""Front ends' commands in the supervisor: so many of each without an answer, and each answered once."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError, HermeticError
from hermetic.server.commands import COMMANDS_LIMIT
from hermetic.server.generation import Reply
from hermetic.server.messages import Command, CommandReply

TEXT_LIMIT: Final = 1024  # characters of an error that a front end is told


class Commanding(Protocol):
    """A front end, as the desk sees it."""

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        """Send a frame."""


class CommandDesk:
    """Event loop's thread only."""

    def __init__(self, carry_out: Callable[[Command, Reply], None]) -> None:
        """`carry_out` is given each command, and calls the reply once, now or later."""
        self._carry_out = carry_out
        self._waiting: Counter[Commanding] = Counter()

    def take(self, front_end: Commanding, command: Command) -> None:
        """Take a command; `BorderError` where the front end has more without an answer than its own limit allows."""
        if self._waiting[front_end] >= COMMANDS_LIMIT:
            raise BorderError(f"commands: wanted at most {COMMANDS_LIMIT} without an answer, got one more")
        self._waiting[front_end] += 1
        self._carry_out(command, partial(self._answer, front_end, command.id))

    def gone(self, front_end: Commanding) -> None:
        """A front end has ended. What it asked for is carried out, and nobody is told."""
        self._waiting.pop(front_end, None)

    def _answer(self, front_end: Commanding, command: int, error: HermeticError | None) -> None:
        if front_end not in self._waiting:
            return
        self._waiting[front_end] -= 1
        name, text = ("", "") if error is None else (type(error).__name__, str(error)[:TEXT_LIMIT])
        front_end.send(CommandReply(id=command, error=name, text=text))
