"""ONNX files as bytes on the wire, judged before any parser makes objects of them.

Two bytes of a protobuf can become a hundred in memory, and a parser recurses as deep as its input says. So the whole
file is walked once, where it lies, along the schema: how many fields, nodes and levels it has, how much packed numbers
will grow, and whether text is text. Only then is anything parsed.

Source: protobuf's encoding, and onnx.proto through its own descriptors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from hermetic.enclave.runtimes.refusals import ModelRefusal, refused

__all__ = ["Field", "check_wire", "encode_field", "fields"]

FIELDS_LIMIT: Final = 2_000_000  # fields in a file: BERT has some 20,000
NODES_LIMIT: Final = 100_000  # nodes, of all graphs and functions
DEPTH_LIMIT: Final = 64  # messages within messages; each graph within a graph is three
PACKED_LIMIT: Final = 64 << 20  # bytes of packed integers: each may become eight
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

_MESSAGE, _PACKED, _TEXT, _OTHER = range(4)


class Field(NamedTuple):
    """One field on the wire: its number, its value if it is an integer, and where all of it and its content lie.

    `value` is -1 for a field with a length.
    """

    number: int
    value: int
    start: int
    content: int
    end: int


class _Kind(NamedTuple):
    """What a field is: for a message, of which type."""

    kind: int
    message: str = ""


def _kind_of(field: FieldDescriptor) -> _Kind:
    if field.message_type is not None:
        return _Kind(_MESSAGE, field.message_type.full_name)
    if field.type == field.TYPE_STRING:
        return _Kind(_TEXT)
    fixed = (field.TYPE_FLOAT, field.TYPE_DOUBLE, field.TYPE_BYTES)
    return _Kind(_OTHER if field.type in fixed else _PACKED)


def _schema(descriptor: Descriptor, known: dict[str, dict[int, _Kind]]) -> dict[str, dict[int, _Kind]]:
    """Return message -> field number -> what it is, for a message and all that it can hold."""
    if descriptor.full_name not in known:
        known[descriptor.full_name] = {field.number: _kind_of(field) for field in descriptor.fields}
        for field in descriptor.fields:
            if field.message_type is not None:
                _schema(field.message_type, known)
    return known


_SCHEMA: Final = _schema(cast(Descriptor, onnx.ModelProto.DESCRIPTOR), {})
_MODEL: Final = onnx.ModelProto.DESCRIPTOR.full_name
_NODE: Final = onnx.NodeProto.DESCRIPTOR.full_name


@dataclass(slots=True)
class _Census:
    """What was counted so far."""

    fields: int = 0
    nodes: int = 0
    packed: int = 0

    def count(self, kind: _Kind, length: int) -> None:
        self.fields += 1
        self.nodes += kind.message == _NODE
        self.packed += length if kind.kind == _PACKED else 0
        if self.nodes > NODES_LIMIT:
            raise refused(ModelRefusal.GRAPH_NODES, f"wanted at most {NODES_LIMIT} nodes, got more")
        if self.fields > FIELDS_LIMIT or self.packed > PACKED_LIMIT:
            raise refused(
                ModelRefusal.PROTOBUF_SIZE,
                f"wanted at most {FIELDS_LIMIT} fields and {PACKED_LIMIT} bytes of packed integers, got more",
            )


def check_wire(file: memoryview) -> None:
    """Refuse a file that would become too large or too deep, or is no ONNX model at all, without parsing it.

    Raises `ModelFormatError` named `protobuf...` or `graph-nodes`.
    """
    census = _Census()
    levels = [(_SCHEMA[_MODEL], fields(file, 0, len(file)))]
    while levels:
        schema, rest = levels[-1]
        field = next(rest, None)
        if field is None:
            levels.pop()
            continue
        kind = schema.get(field.number)
        if kind is None:
            raise refused(ModelRefusal.PROTOBUF_UNKNOWN, f"wanted fields of onnx.proto, got number {field.number}")
        census.count(kind, field.end - field.content)
        if field.value >= 0:
            if kind.kind in (_MESSAGE, _TEXT):
                raise refused(ModelRefusal.PROTOBUF_UNKNOWN, f"wanted field {field.number} with a length, got a number")
            continue
        if kind.kind == _MESSAGE:
            if len(levels) > DEPTH_LIMIT:
                raise refused(ModelRefusal.PROTOBUF_DEPTH, f"wanted at most {DEPTH_LIMIT} levels, got more")
            levels.append((_SCHEMA[kind.message], fields(file, field.content, field.end)))
        elif kind.kind == _TEXT:
            _check_text(file[field.content : field.end])


def fields(file: memoryview, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between `start` and `end`; a malformed one is refused as `protobuf`."""
    at = start
    while at < end:
        key, content = file[at], at + 1
        if key >= 0x80:  # noqa: PLR2004 - more than one byte; most keys are one
            key, content = _decode_varint(file, at, end)
        value, kind = -1, key & 7
        if kind == VARINT:
            value, stop = _decode_varint(file, content, end)
        elif kind == LENGTH_DELIMITED:
            length, content = _decode_varint(file, content, end)
            stop = content + length
        elif kind in (FIXED64, FIXED32):
            value, stop = 0, content + (8 if kind == FIXED64 else 4)
        else:
            raise refused(ModelRefusal.PROTOBUF, f"ONNX: wanted a protobuf message, got wire type {kind}")
        if stop > end:
            raise refused(ModelRefusal.PROTOBUF, f"ONNX: wanted a field that ends by {end}, got one to {stop}")
        yield Field(key >> 3, value, at, content, stop)
        at = stop


def encode_field(number: int, length: int) -> bytes:
    """Return what stands before the content of a field with a length."""
    return _encode_varint(number << 3 | LENGTH_DELIMITED) + _encode_varint(length)


def _check_text(content: memoryview) -> None:
    try:
        str(content, "utf-8")
    except UnicodeDecodeError:
        raise refused(ModelRefusal.PROTOBUF_TEXT, "wanted text in UTF-8, got other bytes") from None


def _decode_varint(file: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = file[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            return value, at
    raise refused(ModelRefusal.PROTOBUF, "ONNX: wanted a protobuf message, got a broken integer")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
