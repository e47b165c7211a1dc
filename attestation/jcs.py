"""Canonical JSON (RFC 8785), quickly where that is simple.

Text, small integers and the like have the same bytes from the standard library's encoder, which is written in C;
records and evidence are mostly text. Everything else is rfc8785's.
"""

import json
from typing import Final

import rfc8785

_SAFE_INTEGER: Final = 2**53 - 1


def dumps(value: object) -> bytes:
    """The RFC 8785 form; raises as `rfc8785.dumps`, `UnicodeEncodeError` and `RecursionError`."""
    if _is_plain(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return rfc8785.dumps(value)  # type: ignore[arg-type]


def _is_plain(value: object) -> bool:
    """Whether both encoders agree on `value`: no floats, integers that a double holds, keys of ASCII."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -_SAFE_INTEGER <= value <= _SAFE_INTEGER  # type: ignore[operator]
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or not key.isascii() or not _is_plain(item):
                return False
        return True
    return kind is list and all(map(_is_plain, value))  # type: ignore[call-overload]
