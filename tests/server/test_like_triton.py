"""Every recorded call gets from us what it got from Triton: the same status, the same words, the same answer.

The recordings are tests/vectors/triton/*.json; `differences.toml` beside them says where we differ and why, and what is
still to come. A case that is still to come must fail: when it passes, its mark has to go.
"""

import base64
import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.calls import await_ready
from tests.server.far_side import FarSide, Pki, settings
from tests.server.triton_models import serving
from tests.vectors.triton.calls import GROUPS, Case
from tests.vectors.triton.record import play

VECTORS = Path(__file__).parents[1] / "vectors" / "triton"
CASES = {
    f"{path.stem}: {case['name']}": case
    for path in sorted(VECTORS.glob("*.json"))
    for case in json.loads(path.read_text())["cases"]
}
RULES = tomllib.loads((VECTORS / "differences.toml").read_text())
OWN_SERVER = ("statistics",)


def rule(kind: str, name: str) -> dict[str, Any] | None:
    """Return the first rule of a kind for a case."""
    rules: list[dict[str, Any]] = RULES[kind]
    return next((each for each in rules if any(fnmatchcase(name, pattern) for pattern in each["cases"])), None)


def marked(name: str) -> Any:
    """Return the case, marked where its feature is still to come."""
    pending = rule("pending", name)
    return pytest.param(name, marks=pytest.mark.xfail(reason=pending["feature"], strict=True)) if pending else name


@pytest.fixture(scope="module")
def channel_to(pki: Pki) -> Iterator[Callable[[str], grpc.Channel]]:
    """A function that gives a channel to the server of a group; those that count have one of their own."""
    without = {model for each in RULES["pending"] for model in each.get("models", ())}
    channels: dict[str, grpc.Channel] = {}
    with ExitStack() as stack:

        def channel(group: str) -> grpc.Channel:
            stage = group if group in OWN_SERVER else "all others"
            if stage not in channels:
                side = FarSide(pki, settings(pki))
                stack.callback(side.close)
                stack.enter_context(serving(side, without=without))
                channels[stage] = stack.enter_context(side.channel_as(pki.everything))
                for name in ("echo", "chain"):
                    await_ready(channels[stage], name)
            return channels[stage]

        yield channel


@pytest.mark.parametrize("name", [marked(name) for name in CASES if not rule("elsewhere", name)])
def test_answers_as_triton_does(channel_to: Callable[[str], grpc.Channel], name: str) -> None:
    recorded = CASES[name]
    messages = tuple(base64.b64decode(request["bytes"]) for request in recorded["requests"])
    case = Case(recorded["name"], recorded["method"], messages, tuple(recorded["metadata"].items()))
    wanted, got = recorded["answer"], play(channel_to(name.split(":", maxsplit=1)[0]), case)
    different = rule("difference", name)
    if different is None:
        assert got["code"] == wanted["code"], got
        assert got["message"].startswith(wanted["message"].rstrip()), got
        assert alike(got["responses"], wanted["responses"]), got
        return
    assert got["code"] == different.get("code", wanted["code"]), got
    assert different.get("message", "") in got["message"], got
    if different.get("responses", True):
        assert alike(got["responses"], wanted["responses"]), got


def alike(got: Any, wanted: Any) -> bool:
    """Whether responses say the same, but for what no two servers share (`not-compared` in differences.toml).

    An error in a stream may go on where Triton's ends.
    """
    if not wanted and not got:  # a message that says nothing is as good as none
        return True
    if isinstance(wanted, dict):
        if not isinstance(got, dict):
            return False
        keys = (wanted.keys() | got.keys()) - set(RULES["not-compared"])
        return all(
            str(got.get(key)).startswith(wanted[key].rstrip())
            if key == "error_message" and key in wanted
            else alike(got.get(key), wanted.get(key))
            for key in keys
        )
    if isinstance(wanted, list):
        return isinstance(got, list) and len(got) == len(wanted) and all(map(alike, got, wanted))
    return bool(got == wanted)


def test_recordings_are_of_the_calls_that_are_asked_now() -> None:
    for group, cases in GROUPS.items():
        assert [case.name for case in cases()] == [
            name.split(": ", 1)[1] for name in CASES if name.startswith(f"{group}: ")
        ]


@pytest.mark.parametrize("kind", ["difference", "pending", "elsewhere"])
def test_every_rule_is_for_some_case(kind: str) -> None:
    for each in RULES[kind]:
        for pattern in each["cases"]:
            assert any(fnmatchcase(name, pattern) for name in CASES), pattern
