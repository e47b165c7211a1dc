"""Canonical JSON (RFC 8785), quickly where that is simple.

Text, small integers and the like have the same bytes from the standard library's encoder, which is written in C;
records and evidence are mostly text. Everything else is rfc8785's.
"""

import json
from collections.abc import Collection
from typing import Any, Final

import rfc8785

_SAFE_INTEGER: Final = 2**53 - 1
_ATOMS: Final = frozenset({str, bool, type(None)})


def dumps(value: object) -> bytes:
    """The RFC 8785 form; raises as `rfc8785.dumps`, `UnicodeEncodeError` and `RecursionError`."""
    if _is_plain(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return rfc8785.dumps(value)  # type: ignore[arg-type]


def _is_plain(value: object) -> bool:
    """Whether both encoders agree on `value`: no floats, integers that a double holds, keys of ASCII."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is int:
        return -_SAFE_INTEGER <= value <= _SAFE_INTEGER  # type: ignore[operator]
    if kind is dict:
        keys: list[Any] = list(value)  # type: ignore[call-overload]
        if not {str}.issuperset(map(type, keys)) or not "".join(keys).isascii():
            return False
        return _are_plain(value.values())  # type: ignore[attr-defined]
    return kind is list and _are_plain(value)  # type: ignore[arg-type]


def _are_plain(values: Collection[object]) -> bool:
    """The same of each; most are text, which needs no look at one after the other."""
    if _ATOMS.issuperset(map(type, values)):
        return True
    return all(_is_plain(value) for value in values if type(value) not in _ATOMS)
