"""Members of JSON objects that carry bytes: standard base64, bounded."""

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import InvalidRequestError

_QUANTUM: Final = 4  # characters of base64, three bytes
_FILLING: Final = "/" * 1024  # bytes ff; whole quanta


def base64_bytes(value: JsonValue, what: str, limit: int) -> bytes:
    """The bytes of base64 text `value`, at most `limit`; raises `InvalidRequestError` naming `what`."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what}: expected base64 text, got {type(value).__name__}")
    if len(value) > 4 * (limit // 3 + 1):
        raise InvalidRequestError(f"{what}: expected at most {limit} bytes, got {len(value)} characters of base64")
    try:
        data = _decoded(value)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{what}: expected base64 text, got {error}") from error
    if len(data) > limit:
        raise InvalidRequestError(f"{what}: expected at most {limit} bytes, got {len(data)}")
    return data


def base64_member(members: Mapping[str, JsonValue], name: str, limit: int) -> bytes:
    """The bytes of the member `name`, at most `limit`; raises `InvalidRequestError`."""
    return base64_bytes(members.get(name), name, limit)


def _decoded(text: str) -> bytes:
    """As `base64.b64decode(text, validate=True)`, without a look at each character of a long filling.

    Tables of event logs (CCEL) are mostly bytes ff, in base64 slashes: a quarter of a megabyte, a millisecond.
    """
    kept = end = len(text) - _QUANTUM
    while text.endswith(_FILLING, 0, kept):
        kept -= len(_FILLING)
    head = text[:kept]
    if kept == end or len(text) % _QUANTUM or "=" in head:
        return base64.b64decode(text, validate=True)
    filled = b"\xff" * ((end - kept) // _QUANTUM * 3)
    return base64.b64decode(head, validate=True) + filled + base64.b64decode(text[end:], validate=True)
