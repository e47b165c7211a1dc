"""The header of a safetensors file, judged before anything is made of it: which tensors there are, and where they lie.

Own reader, stricter than the format asks: each name once, tensors one after the other from the first byte to the last.
Torch is not imported here: `hermetic seal` judges by the same rules. Source: the format's README
(huggingface/safetensors): u64 header length, JSON header, tensors without gaps or overlaps.
"""

import json
import struct
from collections.abc import Mapping
from math import prod
from typing import Final, NamedTuple

from hermetic.enclave.runtimes.refusals import ModelRefusal, refused
from hermetic.errors import ModelFormatError

__all__ = ["DTYPE_BYTES", "Place", "read_header"]

HEADER_LIMIT: Final = 16 << 20  # bytes
TENSORS_LIMIT: Final = 65_536  # tensors of one file
NAME_LIMIT: Final = 1024  # characters
DIMENSIONS_LIMIT: Final = 16
_LENGTH: Final = struct.Struct("<Q")

DTYPE_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2,
    "F32": 4, "F64": 8,
}  # fmt: skip
"""Data type -> bytes of one element."""


class Place(NamedTuple):
    """One tensor: its bytes in the file, from `begin` to `end`."""

    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]
    name: str


class _TwiceError(ValueError):
    """A member of an object stands there twice."""


def read_header(file: memoryview) -> list[Place]:
    """Return the tensors in the order of their places.

    Raises `ModelFormatError`, named `safetensors...`, for a header that lies: about lengths, names, overlaps, gaps, or
    the file's end.
    """
    if len(file) < _LENGTH.size:
        raise _malformed(f"wanted at least {_LENGTH.size} bytes, got {len(file)}")
    (header_bytes,) = _LENGTH.unpack_from(file)
    start = _LENGTH.size + header_bytes
    if header_bytes > HEADER_LIMIT or start > len(file):
        raise _malformed(f"wanted a header of at most {min(HEADER_LIMIT, len(file) - 8)} bytes, got {header_bytes}")
    places = sorted(_parse(bytes(file[_LENGTH.size : start]), start))
    ends, begins = [start, *(one.end for one in places)], [*(one.begin for one in places), len(file)]
    if ends != begins:
        raise _misplaced(
            f"wanted tensors one after the other in {len(file) - start} bytes, got gaps, overlaps or another end"
        )
    return places


def _parse(text: bytes, start: int) -> list[Place]:
    try:
        header = json.loads(text, object_pairs_hook=_once)
    except _TwiceError as error:
        raise refused(
            ModelRefusal.SAFETENSORS_NAMES, f"safetensors: wanted each name once, got {error} twice"
        ) from None
    except (ValueError, RecursionError):
        raise _malformed(f"wanted a header in JSON, got {len(text)} other bytes") from None
    if not isinstance(header, dict) or len(header) > TENSORS_LIMIT:
        raise _malformed(f"wanted an object of at most {TENSORS_LIMIT} tensors as header, got another")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed("__metadata__: wanted texts, got others")
    return [_place(name, value, start) for name, value in header.items()]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise _TwiceError(repr(name[:64]))
        members[name] = value
    return members


def _place(name: str, value: object, start: int) -> Place:
    if len(name) > NAME_LIMIT:
        raise refused(
            ModelRefusal.SAFETENSORS_NAMES,
            f"safetensors: wanted names of at most {NAME_LIMIT} characters, got {len(name)}",
        )
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(f"{name!r}: wanted dtype, shape and data_offsets, got others")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    whole = (
        isinstance(shape, list)
        and isinstance(offsets, list)
        and all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    )
    known = isinstance(dtype, str) and dtype in DTYPE_BYTES
    if not whole or not known or len(offsets) != 2 or len(shape) > DIMENSIONS_LIMIT:  # noqa: PLR2004 - begin, end
        raise _malformed(f"{name!r}: wanted a known dtype, a shape and two offsets, got others")
    wanted = prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != wanted:
        raise _misplaced(f"{name!r}: wanted {wanted} bytes, got {offsets[1] - offsets[0]}")
    return Place(start + offsets[0], start + offsets[1], dtype, tuple(shape), name)


def _malformed(detail: str) -> ModelFormatError:
    return refused(ModelRefusal.SAFETENSORS, f"safetensors: {detail}")


def _misplaced(detail: str) -> ModelFormatError:
    return refused(ModelRefusal.SAFETENSORS_PLACES, f"safetensors: {detail}")
