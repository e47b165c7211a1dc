"""Canonical JSON (RFC 8785), quickly where that is simple.

Text, small integers and the like have the same bytes from the standard library's encoder, which is written in C;
records and evidence are mostly text. Everything else is rfc8785's.
"""

import json
from collections.abc import Collection
from typing import Any, Final

import rfc8785

_SAFE_INTEGER: Final = 2**53 - 1
_TEXT: Final = frozenset({str})
_ATOMS: Final = frozenset({str, bool, type(None)})
_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def dumps(value: object) -> bytes:
    """The RFC 8785 form; raises as `rfc8785.dumps`, `UnicodeEncodeError` and `RecursionError`."""
    if _are_plain((value,)):
        return _encode(value).encode("utf-8")
    return rfc8785.dumps(value)  # type: ignore[arg-type]


def _are_plain(values: Collection[object]) -> bool:
    """Whether both encoders agree on `values`: no floats, integers that a double holds, keys of ASCII."""
    if _ATOMS.issuperset(map(type, values)):  # most are text, which needs no look at one after the other
        return True
    for value in values:
        kind = type(value)
        if kind in _ATOMS:
            continue
        if kind is int:
            if not -_SAFE_INTEGER <= value <= _SAFE_INTEGER:  # type: ignore[operator]
                return False
        elif kind is dict:
            if not _are_plain_keys(list(value)) or not _are_plain(value.values()):  # type: ignore[call-overload,attr-defined]
                return False
        elif kind is not list or not _are_plain(value):  # type: ignore[arg-type]
            return False
    return True


def _are_plain_keys(keys: list[Any]) -> bool:
    return _TEXT.issuperset(map(type, keys)) and "".join(keys).isascii()
