"""One tensor's content: typed contents to raw bytes, and checks of raw bytes. Pure; no shape logic beyond a count.

Raw bytes are little-endian and row-major; BYTES elements are each preceded by their length as u32 (the protocol's
"Raw Tensor Contents"). FP16 and BF16 have no typed field in the protocol, so they travel raw only.
"""

import struct
import sys
from array import array
from typing import Final

from hermetic.enclave.batch_frames import STRINGS_LIMIT
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.errors import ConfigurationError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server import refusals

Buffer = bytes | bytearray | memoryview

RAW: Final = "raw_input_contents"

_LENGTH: Final = struct.Struct("<I")
_FIELDS: Final[dict[str, tuple[str, str]]] = {  # datatype -> field of InferTensorContents, array typecode
    "BOOL": ("bool_contents", "B"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    BYTES: ("bytes_contents", ""),
}
_NAMES: Final = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": BYTES,
}
"""Field of InferTensorContents -> what Triton calls its contents."""
BOOL: Final = "BOOL"
ONE_IF_TRUE: Final = bytes([0]) + bytes([1]) * 255  # a translation of bytes

if sys.byteorder != "little":
    raise ConfigurationError("tensors are little-endian: wanted a little-endian machine, got a big-endian one")


def raw_from_typed(name: str, model: str, datatype: str, count: int, contents: pb.InferTensorContents) -> bytes:
    """Return `count` elements of `contents` as raw bytes, or raise `InvalidRequestError`."""
    field, typecode = _FIELDS.get(datatype, ("", ""))
    for filled, _ in contents.ListFields():
        if filled.name != field:
            raise refusals.wrong_field(name, model, _NAMES[filled.name], datatype, field or RAW)
    values = getattr(contents, field) if field else ()
    if datatype == BYTES:
        if len(values) != count:
            raise (refusals.too_few_strings if len(values) < count else refusals.too_many_strings)(
                name, model, count, len(values)
            )
        return b"".join(piece for value in values for piece in (_LENGTH.pack(len(value)), value))
    size = ELEMENT_BYTES[datatype] or 0
    if len(values) != count:
        raise refusals.wrong_size(name, model, count * size, len(values) * size)
    try:
        return array(typecode, values).tobytes()
    except OverflowError:
        raise refusals.out_of_range(name, datatype) from None


def check_raw(name: str, model: str, datatype: str, count: int, raw: Buffer) -> Buffer:
    """Return `raw` where it holds `count` elements, or raise `InvalidRequestError`.

    BOOL comes back with every true element as 1: any other value is undefined in most runtimes.
    """
    element = ELEMENT_BYTES[datatype]
    if element is None:
        check_strings(name, model, count, raw)
        return raw
    if len(raw) != count * element:
        raise refusals.wrong_size(name, model, count * element, len(raw))
    return bytes(raw).translate(ONE_IF_TRUE) if datatype == BOOL else raw


def check_strings(name: str, model: str, count: int, raw: Buffer) -> None:
    """Raise `InvalidRequestError` unless `raw` is exactly `count` elements of BYTES."""
    ends = string_ends(raw, count)
    if len(ends) == count and (ends[-1] if ends else 0) == len(raw):
        return
    ends = string_ends(raw, STRINGS_LIMIT)  # the whole, to say what is wrong
    at = ends[-1] if ends else 0
    left = len(raw) - at
    if left and len(ends) == STRINGS_LIMIT:
        raise refusals.too_many_strings(name, model, count, len(ends))
    if left >= _LENGTH.size and len(ends) + 1 < count:  # too few in any case: Triton says that first
        raise refusals.too_few_strings(name, model, count, len(ends) + 1)
    if left >= _LENGTH.size:
        raise refusals.cut_string(name, _LENGTH.unpack_from(raw, at)[0], left - _LENGTH.size)
    if left:
        raise refusals.cut_length(name, model, left)
    if len(ends) < count:
        raise refusals.too_few_strings(name, model, count, len(ends))
    raise refusals.too_many_strings(name, model, count, len(ends))


def string_ends(raw: Buffer, count: int) -> list[int]:
    """Return where each of the first `count` BYTES elements ends; fewer where `raw` is too short for them."""
    ends: list[int] = []
    at, size = 0, len(raw)
    while len(ends) < count and at + 4 <= size:
        at += 4 + _LENGTH.unpack_from(raw, at)[0]
        if at > size:
            break
        ends.append(at)
    return ends
