"""One tensor's content: typed contents to raw bytes, and checks of raw bytes. Pure; no shape logic beyond a count.

Raw bytes are little-endian and row-major; BYTES elements are each preceded by their length as u32 (the protocol's
"Raw Tensor Contents"). FP16 and BF16 have no typed field in the protocol, so they travel raw only.
"""

import struct
import sys
from array import array
from typing import Final

from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.errors import ConfigurationError, InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb

Buffer = bytes | bytearray | memoryview

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
_BOOLS: Final = bytes([0]) + bytes([1]) * 255

if sys.byteorder != "little":
    raise ConfigurationError("tensors are little-endian: wanted a little-endian machine, got a big-endian one")


def raw_from_typed(name: str, datatype: str, count: int, contents: pb.InferTensorContents) -> bytes:
    """Return `count` elements of `contents` as raw bytes, or raise `InvalidRequestError`."""
    filled = [field.name for field, _ in contents.ListFields()]
    if datatype not in _FIELDS:
        raise InvalidRequestError(
            f"input '{name}': datatype {datatype} is expected in raw_input_contents, got typed contents"
        )
    field, typecode = _FIELDS[datatype]
    if filled not in ([field], []):
        raise InvalidRequestError(f"input '{name}': expected {datatype} in {field}, got {', '.join(filled)}")
    values = getattr(contents, field)
    if len(values) != count:
        raise InvalidRequestError(f"input '{name}': expected {count} elements in {field}, got {len(values)}")
    if datatype == BYTES:
        return b"".join(piece for value in values for piece in (_LENGTH.pack(len(value)), value))
    try:
        return array(typecode, values).tobytes()
    except OverflowError as error:
        raise InvalidRequestError(f"input '{name}': expected values of {datatype}, got {error}") from None


def check_raw(name: str, datatype: str, count: int, raw: Buffer) -> Buffer:
    """Return `raw` where it holds `count` elements, or raise `InvalidRequestError`.

    BOOL comes back with every true element as 1: any other value is undefined in most runtimes.
    """
    element = ELEMENT_BYTES[datatype]
    if element is None:
        check_strings(name, count, raw)
        return raw
    if len(raw) != count * element:
        raise InvalidRequestError(
            f"input byte size mismatch for input '{name}': expected {count * element}, got {len(raw)}"
        )
    return bytes(raw).translate(_BOOLS) if datatype == "BOOL" else raw


def check_strings(name: str, count: int, raw: Buffer) -> None:
    """Raise `InvalidRequestError` unless `raw` is exactly `count` elements of BYTES."""
    ends = string_ends(raw, count)
    if len(ends) != count or (ends[-1] if ends else 0) != len(raw):
        raise InvalidRequestError(
            f"input '{name}': expected {count} BYTES elements in {len(raw)} bytes, "
            f"got {len(ends)} elements in {ends[-1] if ends else 0} bytes"
        )


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
