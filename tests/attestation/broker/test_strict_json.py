"""JSON from strangers: how deep it may be."""

import json
from typing import Any

import pytest

from hermetic.attestation.broker.strict_json import MAX_DEPTH, parse_object
from hermetic.errors import InvalidRequestError


def nested(levels: int, innermost: Any) -> str:
    value = innermost
    for level in range(levels):
        value = {"a": value} if level % 2 == 0 or level == levels - 1 else [value]
    return json.dumps(value)


@pytest.mark.parametrize(("innermost", "most"), [(1, MAX_DEPTH - 1), ({}, MAX_DEPTH - 1), ([], MAX_DEPTH - 1)])
def test_nesting_is_taken_up_to_a_depth_whatever_lies_innermost(innermost: Any, most: int) -> None:
    assert parse_object(nested(most, innermost), "it")
    with pytest.raises(InvalidRequestError, match="nesting of at most 64"):
        parse_object(nested(most + 1, innermost), "it")


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": "\\ud800"}',
        b'{"\\uDFFF": 1}',
        b'{"a": ["\\udc00\\ud800"]}',
        b'{"a": "\xed\xa0\x80"}',
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=["half", "half in a name", "halves", "raw half", "utf-16"],
)
def test_what_has_no_utf_8_is_refused(data: bytes) -> None:
    """It could be neither answered nor recorded: an attempt would leave no trace."""
    with pytest.raises(InvalidRequestError, match="it: expected JSON"):
        parse_object(data, "it")


def test_a_character_of_two_halves_is_one() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00"}', "it") == {"a": "\U0001f600"}
