"""What a load or unload may come with: Triton's texts where it refuses, ours where a sealed model is another thing."""

from typing import Any, cast

import pytest

from hermetic.errors import HermeticError, InvalidRequestError, UnsupportedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.commands import Commands
from hermetic.server.gate import Request
from hermetic.server.messages import CONFIGURATION_LIMIT, Command


class Nobody:
    """A caller without a name."""

    caller = None


def sent(**parameters: Any) -> Command:
    frames: list[bytes] = []

    def send(frame: bytes) -> bool:
        frames.append(frame)
        return True

    asked = pb.RepositoryModelLoadRequest(model_name="m")
    for name, value in parameters.items():
        field = {str: "string_param", bytes: "bytes_param", bool: "bool_param", int: "int64_param"}[type(value)]
        setattr(asked.parameters[name], field, value)
    Commands(send).load(cast(Request, Nobody()), asked)
    return Command.decode(frames[0])


def test_a_load_carries_its_configuration() -> None:
    assert sent(config='{"name": "m"}').configuration == '{"name": "m"}'
    assert sent().configuration == ""


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        ({"file:1/model.onnx": b"x"}, UnsupportedError, "load parameter 'file:1/model.onnx': files are not taken"),
        ({"config": "{}", "file:x": b""}, UnsupportedError, "models come sealed"),
        ({"foo": "x"}, InvalidRequestError, "unrecognized load parameter 'foo'."),
        ({"config": 5}, InvalidRequestError, "invalid value type for load parameter 'config', expected string_param."),
        ({"config": ""}, InvalidRequestError, "expected 1 to"),
        ({"config": "x" * (CONFIGURATION_LIMIT + 1)}, InvalidRequestError, "expected 1 to"),
    ],
)
def test_everything_else_is_refused(parameters: dict[str, Any], error: type[HermeticError], text: str) -> None:
    with pytest.raises(error) as caught:
        sent(**parameters)
    assert text in str(caught.value)


def test_an_unload_may_take_its_dependents_with_it() -> None:
    frames: list[bytes] = []
    asked = pb.RepositoryModelUnloadRequest(model_name="m")
    asked.parameters["unload_dependents"].bool_param = True

    def send(frame: bytes) -> bool:
        frames.append(frame)
        return True

    Commands(send).unload(cast(Request, Nobody()), asked)
    assert Command.decode(frames[0]).dependents
