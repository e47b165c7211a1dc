"""JSON from strangers: UTF-8, bounded depth, no duplicate members, no NaN, no half of a character.

Members are read with errors that name them.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import InvalidRequestError

MAX_DEPTH: Final = 64
"""Deepest nesting that is taken; json itself stops only at the interpreter's recursion limit."""

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""How half of a character is written; two of them may be a whole one."""

_CONTAINERS: Final = frozenset({dict, list})


def parse_object(data: bytes | bytearray | str, what: str) -> dict[str, JsonValue]:
    """The JSON object in `data`; raises `InvalidRequestError` naming `what`."""
    try:
        written = data if isinstance(data, str) else data.decode()  # json would guess another encoding
        value = json.loads(written, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if _SURROGATE.search(written):  # what has no UTF-8 could be neither recorded nor answered
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{what}: expected JSON, got {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what}: expected a JSON object, got {type(value).__name__}")
    _check_depth(value, what)
    return value


def exactly(
    members: Mapping[str, JsonValue], what: str, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Check the member names; raises `InvalidRequestError` with expected and got."""
    if not set(required) <= members.keys() or not members.keys() <= {*required, *optional}:
        expected = ", ".join(sorted(required)) + "".join(f"[, {name}]" for name in sorted(optional))
        raise InvalidRequestError(f"{what}: expected the members {expected}, got {sorted(members)}")


def text(members: Mapping[str, JsonValue], name: str, what: str) -> str:
    """The text in member `name`; raises `InvalidRequestError`."""
    value = members.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what}: expected text in {name!r}, got {type(value).__name__}")
    return value


def json_object(members: Mapping[str, JsonValue], name: str, what: str) -> dict[str, JsonValue]:
    """The object in member `name`; raises `InvalidRequestError`."""
    value = members.get(name)
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what}: expected an object in {name!r}, got {type(value).__name__}")
    return value


def _check_depth(value: dict[str, Any], what: str) -> None:
    """Level by level, so that the check itself cannot recurse."""
    level: list[Any] = [value]  # objects and lists alone: nothing lies in anything else
    for _ in range(MAX_DEPTH - 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    if any(level):
        raise InvalidRequestError(f"{what}: expected nesting of at most {MAX_DEPTH}, got more")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name twice in one object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")
