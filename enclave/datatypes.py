"""The datatypes of the v2 inference protocol: their names and the size of one element.

Source: the protocol's "Tensor Data Types". Which numpy or torch type holds a datatype is a runtime's business and
is not here.
"""

from typing import Final

BYTES: Final = "BYTES"

ELEMENT_BYTES: Final[dict[str, int | None]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    # Each element: its length as 4 bytes, little-endian, then the bytes themselves.
    BYTES: None,
}
"""Bytes of one element; None where each element carries its own length."""
