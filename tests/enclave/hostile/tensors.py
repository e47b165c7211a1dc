"""Hostile safetensors: name -> (what builds it, how it is refused)."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

Build = Callable[[], bytes]
ONE: Final = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def file(header: bytes, data: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def one(data: bytes = bytes(16), **changes: Any) -> bytes:
    """One tensor of which the header says something else."""
    return file(json.dumps({"w": ONE | changes}).encode(), data)


def two(first: list[int], second: list[int], size: int) -> bytes:
    shape = {"dtype": "U8", "shape": [8]}
    header = {"a": shape | {"data_offsets": first}, "b": shape | {"data_offsets": second}}
    return file(json.dumps(header).encode(), bytes(size))


CORPUS: Final[Mapping[str, tuple[Build, str]]] = {
    "safetensors: nothing": (lambda: bytes(7), "safetensors"),
    "safetensors: a header longer than the file": (lambda: struct.pack("<Q", 2**63) + bytes(8), "safetensors"),
    "safetensors: a huge header": (lambda: file(b" " * (17 << 20)), "safetensors"),
    "safetensors: no JSON": (lambda: file(b"not json"), "safetensors"),
    "safetensors: deep JSON": (lambda: file(b"[" * 1_000_000), "safetensors"),
    "safetensors: a list": (lambda: file(b"[]", b""), "safetensors"),
    "safetensors: too many tensors": (
        lambda: file(json.dumps({str(at): 0 for at in range(65_537)}).encode(), b""),
        "safetensors",
    ),
    "safetensors: a type that is none": (lambda: one(dtype="F31"), "safetensors"),
    "safetensors: a type that is a list": (lambda: one(dtype=["F32"]), "safetensors"),
    "safetensors: a member too many": (lambda: one(path="/etc/passwd"), "safetensors"),
    "safetensors: metadata that is no text": (lambda: file(b'{"__metadata__": {"a": {}}}', b""), "safetensors"),
    "safetensors: a shape below nothing": (lambda: one(shape=[-2, -2]), "safetensors"),
    "safetensors: a shape of truths": (lambda: one(shape=[True, 4]), "safetensors"),
    "safetensors: too many dimensions": (lambda: one(shape=[1] * 17), "safetensors"),
    "safetensors: a name twice": (
        lambda: file(f'{{"w": {json.dumps(ONE)}, "w": {json.dumps(ONE)}}}'.encode()),
        "safetensors-names",
    ),
    "safetensors: a member twice": (
        lambda: file(b'{"w": {"dtype": "F32", "dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}'),
        "safetensors-names",
    ),
    "safetensors: a long name": (lambda: file(json.dumps({"w" * 1025: ONE}).encode()), "safetensors-names"),
    "safetensors: overlap": (lambda: two([0, 8], [4, 12], 12), "safetensors-places"),
    "safetensors: the same place": (lambda: two([0, 8], [0, 8], 8), "safetensors-places"),
    "safetensors: a gap": (lambda: two([0, 8], [9, 17], 17), "safetensors-places"),
    "safetensors: beyond the end": (lambda: two([0, 8], [8, 16], 15), "safetensors-places"),
    "safetensors: something behind": (lambda: two([0, 8], [8, 16], 17), "safetensors-places"),
    "safetensors: from its end to its beginning": (lambda: one(data_offsets=[16, 0]), "safetensors-places"),
    "safetensors: another size than its type has": (lambda: one(dtype="F64"), "safetensors-places"),
    "safetensors: a product that overflows": (lambda: one(shape=[2**40, 2**40]), "safetensors-places"),
}
