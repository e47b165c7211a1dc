"""BYTES tensors: each element is its length (4 bytes, little-endian) and then its bytes, one after the other."""

import struct
from collections.abc import Iterable
from typing import Final

from hermetic.errors import InvalidRequestError, ModelFormatError

__all__ = ["pack_into", "unpack"]

_LENGTH: Final = struct.Struct("<I")


def unpack(name: str, raw: bytes, count: int) -> list[bytes]:
    """Return the `count` elements of input `name`; `InvalidRequestError` where `raw` does not hold exactly those."""
    elements: list[bytes] = []
    at = 0
    while at + _LENGTH.size <= len(raw) and len(elements) < count:
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length > len(raw) - at:
            break
        elements.append(raw[at : at + length])
        at += length
    if at != len(raw) or len(elements) != count:
        raise InvalidRequestError(
            f"input {name!r}: wanted {count} strings with their lengths in {len(raw)} bytes, got {len(elements)}"
        )
    return elements


def pack_into(view: memoryview, name: str, elements: Iterable[bytes]) -> int:
    """Write the elements of output `name` to `view`; returns the bytes written."""
    at = 0
    for element in elements:
        end = at + _LENGTH.size + len(element)
        if end > len(view):
            raise ModelFormatError(f"output {name!r}: wanted at most {len(view)} bytes of strings, got more")
        _LENGTH.pack_into(view, at, len(element))
        view[at + _LENGTH.size : end] = element
        at = end
    return at
