"""What a caller with the role `operate` asks of the supervisor, and the supervisor's answers on their way back."""

from collections.abc import Callable
from itertools import count
from typing import Final, Literal

from hermetic import errors
from hermetic.enclave.messages import NAME_LIMIT
from hermetic.errors import BorderError, InvalidRequestError, NotReadyError, OverloadedError
from hermetic.server.gate import Request
from hermetic.server.messages import Command, CommandReply

COMMANDS_LIMIT: Final = 64  # commands without an answer
IDENTITY_LIMIT: Final = 512  # characters, as in messages.Command


class Commands:
    """Commands that wait for the supervisor's answer. A command that was sent is carried out, whoever goes away."""

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        """`send` hands a frame to the supervisor, or returns False where the border is busy."""
        self._send = send
        self._ids = count(1)
        self._waiting: dict[int, tuple[Request, bytes]] = {}

    def ask(self, request: Request, action: Literal["load", "unload"], model: str, reply: bytes) -> None:
        """Pass a command on; `request` is answered with `reply` when it has been carried out."""
        if not 0 < len(model) <= NAME_LIMIT:
            raise InvalidRequestError(f"model name: expected 1 to {NAME_LIMIT} characters, got {len(model)}")
        if len(self._waiting) >= COMMANDS_LIMIT:
            raise OverloadedError(f"commands waiting: wanted at most {COMMANDS_LIMIT}, got {len(self._waiting) + 1}")
        identity = request.caller.principal.identity if request.caller else None
        name = f"{identity.authority}:{identity.name}"[:IDENTITY_LIMIT] if identity else ""
        command = Command(id=next(self._ids), action=action, model=model, identity=name)
        if not self._send(command.encode()):
            raise NotReadyError("the supervisor is busy; try again")
        self._waiting[command.id] = (request, reply)

    def answered(self, answer: CommandReply) -> None:
        """Take the supervisor's answer to one command."""
        waiting = self._waiting.pop(answer.id, None)
        if waiting is None:
            raise BorderError(f"command reply: wanted the id of a command, got {answer.id}")
        request, reply = waiting
        if not answer.error:
            request.reply(reply)
            return
        request.fail(error_named(answer.error, answer.text))

    def fail_all(self, why: str) -> None:
        """Answer every command that still waits: nobody will."""
        for request, _ in self._waiting.values():
            request.fail(NotReadyError(why))
        self._waiting.clear()


def error_named(name: str, text: str) -> errors.HermeticError:
    """Return the error of our tree with this class name; one of unknown name becomes a plain `HermeticError`."""
    kind = getattr(errors, name, None)
    if (
        not isinstance(kind, type)
        or not issubclass(kind, errors.HermeticError)
        or issubclass(kind, errors.EvidenceError)
    ):
        return errors.HermeticError(f"{name}: {text}")
    return kind(text)
