"""Every recorded call gets from us what it got from Triton: the same status, the same words, the same answer.

The recordings are tests/vectors/triton/*.json; `differences.toml` beside them says where we differ and why.
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
from tests.vectors.triton.calls import Case
from tests.vectors.triton.groups import GROUPS
from tests.vectors.triton.models import models_of
from tests.vectors.triton.record import play

VECTORS = Path(__file__).parents[1] / "vectors" / "triton"
CASES = {
    f"{group}: {case['name']}": case
    for group in sorted(GROUPS)
    for case in json.loads((VECTORS / f"{group}.json").read_text())["cases"]
}
RULES = tomllib.loads((VECTORS / "differences.toml").read_text())
OWN_SERVER = ("statistics", "counts", "decoupled")


def rule(kind: str, name: str) -> dict[str, Any] | None:
    """Return the first rule of a kind for a case."""
    rules: list[dict[str, Any]] = RULES[kind]
    return next((each for each in rules if any(fnmatchcase(name, pattern) for pattern in each["cases"])), None)


@pytest.fixture(scope="module")
def channel_to(pki: Pki) -> Iterator[Callable[[str], grpc.Channel]]:
    """A function that gives a channel to the server of a group; those that count have one of their own."""
    channels: dict[str, grpc.Channel] = {}
    with ExitStack() as stack:

        def channel(group: str) -> grpc.Channel:
            stage = group if group in OWN_SERVER else "all others"
            if stage not in channels:
                side = FarSide(pki, settings(pki))
                stack.callback(side.close)
                stack.enter_context(serving(side, models_of(group)))
                channels[stage] = stack.enter_context(side.channel_as(pki.everything))
                for name in {"echo", "chain", "generator"} & models_of(group).keys():
                    await_ready(channels[stage], name)
            return channels[stage]

        yield channel


@pytest.mark.parametrize("name", [name for name in CASES if not rule("elsewhere", name)])
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
        assert alike(got["responses"], _with_our_words(wanted["responses"], different)), got


def _with_our_words(responses: list[dict[str, Any]], different: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what Triton answered with our words for its errors, where the rule has some."""
    if "said" not in different:
        return responses
    return [{**one, "error_message": different["said"]} if "error_message" in one else one for one in responses]


def alike(got: Any, wanted: Any) -> bool:
    """Whether responses say the same, but for what no two servers share (`not-compared` in differences.toml).

    An error in a stream may go on where Triton's ends.
    """
    return _same(_compared(got), _compared(wanted))


def _compared(value: Any) -> Any:
    """Return what is compared of a response. A message that says nothing of it is as good as none, and is left out."""
    if isinstance(value, list):
        return [_compared(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _compared(one) for key, one in value.items() if key not in RULES["not-compared"]}
    return {key: one for key, one in kept.items() if one}


def _same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and isinstance(got, dict):
        return got.keys() == wanted.keys() and all(
            got[key].startswith(wanted[key].rstrip()) if key == "error_message" else _same(got[key], wanted[key])
            for key in wanted
        )
    if isinstance(wanted, list) and isinstance(got, list):
        return len(got) == len(wanted) and all(map(_same, got, wanted))
    return bool(got == wanted)


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        ({"parameters": {"sequence_id": {"int64_param": "0"}}}, {}, True),
        ({"parameters": {"other": {"int64_param": "1"}}}, {}, False),
        ({}, {"parameters": {"other": {"int64_param": "1"}}}, False),
        ([{}], [], False),
        ([{"id": "1"}], [{"id": "2"}], False),
        ({"error_message": "went on and on"}, {"error_message": "went on "}, True),
        ({"error_message": "went"}, {"error_message": "went on"}, False),
        ({}, {"error_message": "went on"}, False),
    ],
)
def test_what_is_alike(got: Any, wanted: Any, same: bool) -> None:
    assert alike(got, wanted) is same


def test_recordings_are_of_the_calls_that_are_asked_now() -> None:
    for group, cases in GROUPS.items():
        assert [case.name for case in cases()] == [
            name.split(": ", 1)[1] for name in CASES if name.startswith(f"{group}: ")
        ]


@pytest.mark.parametrize("kind", ["difference", "elsewhere"])
def test_every_rule_is_for_some_case(kind: str) -> None:
    for each in RULES[kind]:
        for pattern in each["cases"]:
            assert any(fnmatchcase(name, pattern) for name in CASES), pattern
