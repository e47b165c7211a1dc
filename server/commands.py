"""What a caller with the role `operate` asks of the supervisor, and the supervisor's answers on their way back."""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Final, Literal

from hermetic import errors
from hermetic.enclave.model_description import NAME_LIMIT
from hermetic.errors import BorderError, InvalidRequestError, NotReadyError, OverloadedError, UnsupportedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.gate import Request
from hermetic.server.messages import CONFIGURATION_LIMIT, Command, CommandReply

CONFIGURATION: Final = "config"  # Triton's load parameter: a model configuration in JSON
FILE: Final = "file:"  # what its load parameters begin with that carry files
DEPENDENTS: Final = "unload_dependents"
COMMANDS_LIMIT: Final = 64  # commands without an answer
IDENTITY_LIMIT: Final = 512  # characters, as in messages.Command


class Commands:
    """Commands that wait for the supervisor's answer. A command that was sent is carried out, whoever goes away."""

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        """`send` hands a frame to the supervisor, or returns False where the border is busy."""
        self._send = send
        self._ids = count(1)
        self._waiting: dict[int, tuple[Request, bytes]] = {}

    def load(self, request: Request, asked: pb.RepositoryModelLoadRequest) -> None:
        """Pass a load on, or raise what its parameters deserve."""
        reply = pb.RepositoryModelLoadResponse().SerializeToString()
        self._ask(request, "load", asked.model_name, reply, configuration=_configuration(asked.parameters))

    def unload(self, request: Request, asked: pb.RepositoryModelUnloadRequest) -> None:
        """Pass an unload on, or raise what its parameters deserve."""
        unknown = sorted(asked.parameters.keys() - {DEPENDENTS})
        if unknown:
            raise InvalidRequestError(f"unrecognized unload parameter '{unknown[0][:NAME_LIMIT]}'.")
        if DEPENDENTS in asked.parameters and not asked.parameters[DEPENDENTS].HasField("bool_param"):
            raise InvalidRequestError(f"invalid value type for '{DEPENDENTS}' parameter, expected bool_param.")
        reply = pb.RepositoryModelUnloadResponse().SerializeToString()
        dependents = DEPENDENTS in asked.parameters and asked.parameters[DEPENDENTS].bool_param
        self._ask(request, "unload", asked.model_name, reply, dependents=dependents)

    def _ask(
        self,
        request: Request,
        action: Literal["load", "unload"],
        model: str,
        reply: bytes,
        *,
        configuration: str = "",
        dependents: bool = False,
    ) -> None:
        """Pass a command on; `request` is answered with `reply` when it has been carried out."""
        if not 0 < len(model) <= NAME_LIMIT:
            raise InvalidRequestError(f"model name: expected 1 to {NAME_LIMIT} characters, got {len(model)}")
        if len(self._waiting) >= COMMANDS_LIMIT:
            raise OverloadedError(f"commands waiting: wanted at most {COMMANDS_LIMIT}, got {len(self._waiting) + 1}")
        identity = request.caller.principal.identity if request.caller else None
        name = f"{identity.authority}:{identity.name}"[:IDENTITY_LIMIT] if identity else ""
        command = Command(
            id=next(self._ids),
            action=action,
            model=model,
            identity=name,
            configuration=configuration,
            dependents=dependents,
        )
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


def _configuration(parameters: Mapping[str, pb.ModelRepositoryParameter]) -> str:
    """Return the configuration that a load comes with, "" for none; every other parameter is refused, as by Triton."""
    for name in sorted(parameters):
        if name.startswith(FILE):
            raise UnsupportedError(
                f"load parameter '{name[:NAME_LIMIT]}': files are not taken over the network: models come sealed"
            )
        if name != CONFIGURATION:
            raise InvalidRequestError(f"unrecognized load parameter '{name[:NAME_LIMIT]}'.")
    if CONFIGURATION not in parameters:
        return ""
    parameter = parameters[CONFIGURATION]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequestError(f"invalid value type for load parameter '{CONFIGURATION}', expected string_param.")
    if not 0 < len(parameter.string_param) <= CONFIGURATION_LIMIT:
        raise InvalidRequestError(
            f"load parameter '{CONFIGURATION}': expected 1 to {CONFIGURATION_LIMIT} characters, "
            f"got {len(parameter.string_param)}"
        )
    return parameter.string_param


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
