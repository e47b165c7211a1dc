"""Scanner, contents and reply template against protobuf: on every message, the same meaning or the same refusal."""

import struct
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hermetic.enclave.batch_frames import STRINGS_LIMIT
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.contents import check_raw, check_strings, raw_from_typed, string_ends
from hermetic.server.reply import ReplyTemplate, length_prefix
from hermetic.server.scanner import cut

TEXT = st.text(max_size=12)
SHAPE = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
PARAMETER = st.one_of(
    st.builds(lambda value: pb.InferParameter(int64_param=value), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda value: pb.InferParameter(string_param=value), TEXT),
)
INPUT = st.builds(
    lambda name, kind, shape, words: pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=kind, shape=shape, contents=pb.InferTensorContents(bytes_contents=words) if words else None
    ),
    TEXT, TEXT, SHAPE, st.lists(st.binary(max_size=200), max_size=2),
)  # fmt: skip
REQUEST = st.builds(
    lambda name, version, identifier, parameters, inputs, outputs, raw: pb.ModelInferRequest(
        model_name=name,
        model_version=version,
        id=identifier,
        parameters=parameters,
        inputs=inputs,
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in outputs],
        raw_input_contents=raw,
    ),
    TEXT, TEXT, TEXT, st.dictionaries(TEXT, PARAMETER, max_size=2), st.lists(INPUT, max_size=3),
    st.lists(TEXT, max_size=2), st.lists(st.binary(max_size=300), max_size=3),
)  # fmt: skip


def put_together(message: bytes) -> pb.ModelInferRequest | None:
    """Return what the scanner's pieces say, None where they say that it is no valid message."""
    pieces = cut(message)
    if pieces is None:
        return None
    try:
        request = pb.ModelInferRequest.FromString(pieces.header)
        request.id = pieces.id.decode()
    except (DecodeError, UnicodeDecodeError):
        return None
    request.raw_input_contents.extend(bytes(raw) for raw in pieces.raw)
    return request


def parsed(message: bytes) -> pb.ModelInferRequest | None:
    try:
        return pb.ModelInferRequest.FromString(message)
    except DecodeError:
        return None


@given(REQUEST)
def test_the_scanner_reads_what_protobuf_wrote(request: pb.ModelInferRequest) -> None:
    message = request.SerializeToString()
    assert cut(message) is not None
    assert put_together(message) == request


@given(REQUEST, REQUEST)
def test_fields_in_any_order(one: pb.ModelInferRequest, other: pb.ModelInferRequest) -> None:
    """Two messages joined are one message whose fields interleave; a repeated id is left to protobuf."""
    message = one.SerializeToString() + other.SerializeToString()
    got = put_together(message)
    if got is not None:
        assert got == parsed(message)
    else:
        assert one.id
        assert other.id


@given(REQUEST, st.data())
def test_a_damaged_message_means_the_same_or_is_left_to_protobuf(
    request: pb.ModelInferRequest, data: st.DataObject
) -> None:
    message = bytearray(request.SerializeToString() or b"\0")
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(message[: data.draw(st.integers(0, len(message)))])
    pieces = cut(damaged)
    if pieces is not None:
        assert put_together(damaged) == parsed(damaged)


@given(st.binary(max_size=64))
def test_any_bytes(message: bytes) -> None:
    if cut(message) is not None:
        assert put_together(message) == parsed(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x3a\x80\x00",  # a length of two bytes that says zero
        b"\x0a\x81\x00x",  # a length that protobuf would have written in one byte
        b"\x0b\x0c",  # a group
        b"\x42\x00",  # field 8
        b"\x08\x01",  # field 1 as a number
        b"\x1a\x01a\x1a\x01b",  # two ids
        b"\xba\x02\x00",  # a tag of two bytes
        b"\x3a",
        b"\x3a\x05ab",
    ],
)
def test_the_unusual_is_left_to_protobuf(message: bytes) -> None:
    assert cut(message) is None


@given(st.binary(max_size=300), st.data())
def test_large_tensors(filler: bytes, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0x7F, 0x80, 0x3FFF, 0x4000, 0x1FFFFF, 0x200000]))
    request = pb.ModelInferRequest(id="x", raw_input_contents=[(filler or b"z") * (size // len(filler or b"z") + 1)])
    assert put_together(request.SerializeToString()) == request


NAMES = st.text(min_size=1, max_size=12)
OUTPUTS = st.lists(st.tuples(NAMES, st.lists(st.integers(0, 2**40), max_size=4), st.binary(max_size=300)), max_size=4)


@given(NAMES, st.integers(1, 10**9), TEXT, OUTPUTS)
def test_the_reply_template_writes_what_protobuf_writes(
    name: str, version: int, identifier: str, outputs: list[tuple[str, list[int], bytes]]
) -> None:
    response = pb.ModelInferResponse(model_name=name, model_version=str(version), id=identifier)
    pieces = []
    for output, shape, raw in outputs:
        response.outputs.add(name=output, datatype="FP32", shape=shape)
        response.raw_output_contents.append(raw)
        pieces.append((TensorSpec(name=output, datatype="FP32", shape=(-1,)), tuple(shape), memoryview(raw)))
    template = ReplyTemplate(name, str(version))
    for _ in range(2):  # the second comes from what was kept
        assert template.build(identifier.encode(), pieces) == response.SerializeToString()


@given(st.integers(0, 2**40))
def test_length_prefix_is_a_varint(length: int) -> None:
    prefix = length_prefix(length)
    assert sum((byte & 0x7F) << (7 * at) for at, byte in enumerate(prefix)) == length
    assert [byte >= 0x80 for byte in prefix] == [True] * (len(prefix) - 1) + [False]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_strings_typed_and_raw_are_the_same(words: list[bytes]) -> None:
    raw = raw_from_typed("x", "m", "BYTES", len(words), pb.InferTensorContents(bytes_contents=words))
    check_strings("x", "m", len(words), raw)
    assert len(string_ends(raw, len(words))) == len(words)


@given(st.binary(max_size=60), st.integers(0, 6))
def test_any_bytes_as_strings(raw: bytes, count: int) -> None:
    """What passes is exactly what a plain reader reads."""
    words, at = 0, 0
    while at + 4 <= len(raw) and words < count:
        at += 4 + struct.unpack_from("<I", raw, at)[0]
        words += 1
    valid = words == count and at == len(raw)
    try:
        check_strings("x", "m", count, raw)
    except InvalidRequestError:
        assert not valid
    else:
        assert valid


@pytest.mark.parametrize(
    ("datatype", "field", "values", "raw"),
    [
        ("BOOL", "bool_contents", [True, False], b"\1\0"),
        ("INT8", "int_contents", [-128, 127], b"\x80\x7f"),
        ("INT16", "int_contents", [-2, 1], b"\xfe\xff\1\0"),
        ("INT32", "int_contents", [-2], b"\xfe\xff\xff\xff"),
        ("INT64", "int64_contents", [-2], b"\xfe" + b"\xff" * 7),
        ("UINT8", "uint_contents", [255], b"\xff"),
        ("UINT16", "uint_contents", [65535], b"\xff\xff"),
        ("UINT32", "uint_contents", [2**32 - 1], b"\xff" * 4),
        ("UINT64", "uint64_contents", [2**64 - 1], b"\xff" * 8),
        ("FP32", "fp32_contents", [1.5], struct.pack("<f", 1.5)),
        ("FP64", "fp64_contents", [1e300], struct.pack("<d", 1e300)),
        ("BYTES", "bytes_contents", [b"ab", b""], b"\2\0\0\0ab\0\0\0\0"),
    ],
)
def test_typed_contents_of_every_datatype(datatype: str, field: str, values: list[Any], raw: bytes) -> None:
    contents = pb.InferTensorContents(**{field: values})
    assert raw_from_typed("x", "m", datatype, len(values), contents) == raw
    assert check_raw("x", "m", datatype, len(values), raw) == raw
    bytes_or_elements = 9 * (ELEMENT_BYTES[datatype] or 1)
    with pytest.raises(InvalidRequestError, match=f"[Ee]xpected {bytes_or_elements}"):
        raw_from_typed("x", "m", datatype, 9, contents)


@pytest.mark.parametrize(
    ("datatype", "field", "value"), [("INT8", "int_contents", 128), ("UINT16", "uint_contents", 65536)]
)
def test_typed_values_that_do_not_fit(datatype: str, field: str, value: int) -> None:
    contents: Any = {field: [value]}
    with pytest.raises(InvalidRequestError, match="expected values of"):
        raw_from_typed("x", "m", datatype, 1, pb.InferTensorContents(**contents))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_typed_contents(datatype: str) -> None:
    with pytest.raises(InvalidRequestError, match="raw_input_contents"):
        raw_from_typed("x", "m", datatype, 1, pb.InferTensorContents(fp32_contents=[1.0]))


def test_contents_in_the_wrong_field() -> None:
    with pytest.raises(InvalidRequestError, match="of type 'FP32', expected datatype 'INT32'"):
        raw_from_typed("x", "m", "INT32", 1, pb.InferTensorContents(fp32_contents=[1.0]))


def test_booleans_become_zero_or_one() -> None:
    assert check_raw("x", "m", "BOOL", 4, memoryview(b"\0\1\2\xff")) == b"\0\1\1\1"


def test_what_is_wrong_with_strings_is_said_without_walking_all_of_them() -> None:
    """A message may have room for sixteen million."""
    raw = bytes(4 * (STRINGS_LIMIT + 1000))
    with pytest.raises(InvalidRequestError, match=f"unexpected number of string elements {STRINGS_LIMIT} "):
        check_strings("words", "m", 1, raw)
