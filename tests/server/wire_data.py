"""Protobuf's wire format as strangers write it: hypothesis strategies for messages that no encoder would make.

Fields in any order and any number of times, unknown fields, groups, wrong wire types, varints longer than need be,
lengths that are wrong, submessages that are to be merged, packed and unpacked numbers, plain damage. Most is valid.
Source: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5

Field = st.SearchStrategy[bytes]


def varint(value: int, padding: int = 0) -> bytes:
    """Return `value` (of 64 bits) as a varint, with `padding` bytes more than it needs."""
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def tag(number: int, wire_type: int, padding: int = 0) -> bytes:
    """Return a field's tag."""
    return varint(number << 3 | wire_type, padding)


PADDING: Final = st.sampled_from([0] * 12 + [1, 2, 5, 9])
NUMBERS: Final = st.one_of(st.integers(-4, 300), st.sampled_from([2**31, 2**32, 2**40, 2**62, -(2**63), 2**64 - 1]))


@st.composite
def delimited(draw: st.DrawFn, number: int, content: Field) -> bytes:
    """One length-delimited field; now and then its length is a lie."""
    data = draw(content)
    lie = draw(st.sampled_from([0] * 40 + [1, -1, 100, 2**31, 2**32]))
    return tag(number, BYTES, draw(PADDING)) + varint(max(0, len(data) + lie), draw(PADDING)) + data


@st.composite
def number(draw: st.DrawFn, at: int, values: st.SearchStrategy[int] = NUMBERS) -> bytes:
    """One varint field."""
    return tag(at, VARINT, draw(PADDING)) + varint(draw(values), draw(PADDING))


@st.composite
def strange(draw: st.DrawFn) -> bytes:
    """One field that nobody knows, or that is known with another wire type; groups may be nested, and broken."""
    at = draw(st.one_of(st.integers(1, 9), st.sampled_from([0, 15, 16, 2047, 2**29 - 1, 2**29])))
    kind = draw(st.sampled_from([VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32, 6, 7]))
    head = tag(at, kind, draw(PADDING))
    if kind == VARINT:
        return head + varint(draw(NUMBERS), draw(PADDING))
    if kind == FIXED64:
        return head + draw(st.binary(min_size=8, max_size=8))
    if kind == FIXED32:
        return head + draw(st.binary(min_size=4, max_size=4))
    if kind == BYTES:
        content = draw(st.binary(max_size=6))
        return head + varint(len(content)) + content
    if kind == GROUP:
        depth = draw(st.sampled_from([1, 1, 2, 3, 99, 101]))
        end = at if draw(st.integers(0, 9)) else at + 1
        return head * depth + draw(st.sampled_from([b"", varint(8) + b"\x01"])) + tag(end, GROUP_END) * depth
    return head


def message(*fields: Field, most: int = 8) -> Field:
    """Any number of these fields in any order, strange ones among them now and then."""
    one = st.one_of(*fields)
    return st.lists(st.one_of(*[one] * 9, strange()), max_size=most).map(b"".join)


def choose(*words: str) -> Field:
    """One of these words, or other bytes."""
    return st.one_of(*[st.sampled_from([word.encode() for word in words])] * 6, st.binary(max_size=5))


SHAPES: Final = st.one_of(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=2), st.lists(NUMBERS, max_size=4))


@st.composite
def shape(draw: st.DrawFn) -> bytes:
    """Field 3 of an input: packed, unpacked, or some of each."""
    numbers = draw(SHAPES)
    split = draw(st.integers(0, len(numbers)))
    packed = b"".join(varint(value, draw(PADDING)) for value in numbers[:split])
    unpacked = b"".join(tag(3, VARINT) + varint(value, draw(PADDING)) for value in numbers[split:])
    return (tag(3, BYTES) + varint(len(packed)) + packed if packed else b"") + unpacked


PARAMETER: Final = message(number(1), number(2), delimited(3, choose("x")), number(5), most=2)
NAMED: Final = message(
    delimited(1, choose("sequence_id", "priority", "timeout", "shared_memory_region", "x")),
    delimited(2, PARAMETER),
    most=3,
)  # an entry of a map
CONTENTS: Final = message(
    number(1), number(2), number(3), delimited(2, st.binary(max_size=4)), delimited(6, st.binary(max_size=8)),
    delimited(8, st.binary(max_size=4)), most=3,
)  # fmt: skip
INPUT_NAMES: Final = ("INPUT0", "A", "B", "F")
INPUT: Final = message(
    delimited(1, choose(*INPUT_NAMES)), delimited(2, choose("FP32", "INT8", "BYTES", "BOOL")), shape(), shape(),
    delimited(4, NAMED), delimited(5, CONTENTS), most=5,
)  # fmt: skip
OUTPUT: Final = message(delimited(1, choose("OUTPUT0", "A", "B", "F")), delimited(2, NAMED), most=2)
RAW: Final = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([bytes(16), bytes(32), b"\1\0\0\0x", b"\0\0\0\0", b"\2\0", b"\1\2", b"x" * 130]),
)
FIELDS: Final[Sequence[Field]] = (
    delimited(1, choose("echo", "two", "flags", "none")),
    delimited(2, choose("1", "", "2")),
    delimited(3, st.one_of(st.text(max_size=4).map(str.encode), st.binary(max_size=3))),
    delimited(4, NAMED),
    delimited(5, INPUT),
    delimited(6, OUTPUT),
    delimited(7, RAW),
)
ANY_REQUEST: Final = message(*FIELDS)


Tensor = tuple[str, str, tuple[int, ...], bytes]
TAKEN: Final[Sequence[tuple[str, Sequence[Tensor]]]] = (
    ("echo", [("INPUT0", "FP32", (1, 4), bytes(range(16)))]),
    ("echo", [("INPUT0", "FP32", (2, 4), bytes(32))]),
    ("two", [("A", "INT8", (1, 3), b"abc"), ("B", "BYTES", (1, 1), b"\1\0\0\0z")]),
    ("two", [("B", "BYTES", (1, 1), b"\0\0\0\0"), ("A", "INT8", (1, 0), b"")]),
    ("flags", [("F", "BOOL", (2,), b"\0\7")]),
    ("none", []),
)


@st.composite
def sound(draw: st.DrawFn) -> bytes:
    """A request that a model takes, its fields in any order, strange ones among them, and maybe damaged."""
    name, inputs = draw(st.sampled_from(TAKEN))
    pieces = [field(1, name.encode())]
    if draw(st.booleans()):
        pieces.append(field(3, draw(st.text(max_size=3)).encode()))
    for tensor, datatype, dimensions, _ in inputs:
        packed = b"".join(map(varint, dimensions))
        pieces.append(field(5, field(1, tensor.encode()) + field(2, datatype.encode()) + field(3, packed)))
    pieces += [field(7, raw) for _, _, _, raw in inputs]
    pieces += draw(st.lists(strange(), max_size=2))
    data = bytearray(b"".join(draw(st.one_of(st.just(pieces), st.permutations(pieces)))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def field(at: int, content: bytes) -> bytes:
    """Return one length-delimited field, as an encoder would write it."""
    return tag(at, BYTES) + varint(len(content)) + content
