"""Below the calls, too, we answer as Triton does, or otherwise for a reason: what is compressed, cut, doubled, missing.

The recording is tests/vectors/triton/transport.json; where we differ, `[[transport]]` in `differences.toml` says why.
"""

import json
import socket
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.server.calls import await_ready
from tests.server.far_side import FarSide, Pki, settings
from tests.server.raw_http2 import tls_context
from tests.server.triton_models import serving
from tests.vectors.triton.models import CONFIGURATIONS
from tests.vectors.triton.transport import ANSWERS, CASES, play

RECORDED: dict[str, dict[str, Any]] = json.loads(ANSWERS.read_text())["answers"]
RULES: list[dict[str, Any]] = tomllib.loads(ANSWERS.with_name("differences.toml").read_text())["transport"]


@pytest.fixture(scope="module")
def connect(pki: Pki) -> Iterator[Callable[[], socket.socket]]:
    """A function that gives a connection to a server that has the model `echo`."""
    side = FarSide(pki, settings(pki))
    context = tls_context(pki.server_authority.pem, pki.everything)
    with serving(side, {"echo": CONFIGURATIONS["echo"]}):
        with side.channel_as(pki.everything) as channel:
            await_ready(channel, "echo")
        yield lambda: context.wrap_socket(
            socket.create_connection(("localhost", side.port)), server_hostname="localhost"
        )
    side.close()


@pytest.mark.parametrize("name", CASES)
def test_frames_are_answered_as_triton_does(connect: Callable[[], socket.socket], name: str) -> None:
    wanted, got = RECORDED[name], play(connect(), CASES[name])
    rule = next((each for each in RULES if any(fnmatchcase(name, pattern) for pattern in each["cases"])), None)
    if rule is not None:
        assert got != wanted, "no difference any more"
        wanted = rule["answer"]
    assert {key: got.get(key) for key in wanted if key != "message"} == {
        key: value for key, value in wanted.items() if key != "message"
    }, got
    assert got.get("message", "").startswith(wanted.get("message", "")), got


def test_the_recording_is_of_what_is_sent_now() -> None:
    assert list(RECORDED) == list(CASES)
    for rule in RULES:
        for pattern in rule["cases"]:
            assert any(fnmatchcase(name, pattern) for name in CASES), pattern
