"""Requests that are wrong, through real gRPC on both transports: an error that says why, and the next one is answered.

Where Triton answers the same request, its status is the same: tests/vectors/triton/ has what it says.
"""

import struct
from collections.abc import Callable, Iterator

import grpc
import pytest

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request
from tests.server.far_side import FarSide, description
from tests.server.wire_data import GROUP, GROUP_END, field, tag, varint

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ROW = (1.0, 2.0, 3.0, 4.0)
LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def channel(side: FarSide) -> Iterator[grpc.Channel]:
    side.serve(description("echo"), report=False)
    side.serve(description("text", inputs=(("INPUT0", "BYTES", (2,)),)), report=False)
    side.serve(description("free", inputs=(("INPUT0", "FP32", (-1, -1)),), max_batch_size=0), report=False)
    with side.channel_as(side.pki.infer) as one:
        for name in ("echo", "text", "free"):
            await_ready(one, name)
        yield one


def refusal(channel: grpc.Channel, message: bytes) -> grpc.RpcError:
    call = channel.unary_unary(INFERENCE + "ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=TIMEOUT_S)
    assert infer(channel, infer_request("echo", ROW)).raw_output_contents[0] == floats(*ROW)
    return caught.value


def request(
    model: str = "echo", shape: tuple[int, ...] = (1, 4), raw: bytes | None = floats(*ROW), datatype: str = "FP32"
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def typed(change: Callable[[pb.ModelInferRequest], object], *, raw: bytes | None = None) -> bytes:
    message = request(raw=raw)
    change(message)
    return message.SerializeToString()


def in_two_fields(message: pb.ModelInferRequest) -> None:
    message.inputs[0].contents.fp32_contents.extend(ROW)
    message.inputs[0].contents.int_contents.append(1)


SHAPES = {
    "zero-rows": ((0, 4), b""),
    "negative-rows": ((-1, 4), floats(*ROW)),
    "two-negatives": ((-1, -4), floats(*ROW)),
    "least": ((-(2**63), 4), b""),
    "product-wraps-to-zero": ((2**32, 2**32), b""),
    "product-wraps-to-one-row": ((2**62 + 1, 4), floats(*ROW)),
    "largest-rows": ((LARGEST, 4), floats(*ROW)),
    "more-rows-than-bytes": ((2, 4), floats(*ROW)),
    "fewer-rows-than-bytes": ((1, 4), floats(*ROW, *ROW)),
    "no-dimensions": ((), floats(*ROW)),
    "no-batch-dimension": ((4,), floats(*ROW)),
    "too-many-dimensions": ((1, 4) + (1,) * 60, floats(*ROW)),
    "other-row": ((1, 5), floats(*ROW, 5)),
    "empty-row": ((1, 0), b""),
    "bytes-cut": ((1, 4), floats(*ROW)[:-1]),
    "no-bytes": ((1, 4), b""),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(channel: grpc.Channel, name: str) -> None:
    shape, raw = SHAPES[name]
    assert refusal(channel, request(shape=shape, raw=raw).SerializeToString()).code() == INVALID


@pytest.mark.parametrize(
    "shape", [(2**32, 2**32), (LARGEST, LARGEST), (-1, -1), (2**40, 1), (2**31, 2**31), (LARGEST, 0), (1, -4)]
)
def test_shapes_of_a_model_that_takes_any(channel: grpc.Channel, shape: tuple[int, ...]) -> None:
    error = refusal(channel, request("free", shape, raw=b"").SerializeToString())
    assert error.code() == INVALID, error


@pytest.mark.parametrize(("shape", "size"), [((-2, -2), 16), ((-1, -4), 16), ((-1, 0), 0), ((0, -1), 0)])
def test_negative_dimensions_whose_product_fits_the_bytes(
    channel: grpc.Channel, shape: tuple[int, ...], size: int
) -> None:
    error = refusal(channel, request("free", shape, raw=bytes(size)).SerializeToString())
    assert error.code() == INVALID, error
    assert "All input dimensions should be specified" in error.details()


def test_a_tensor_without_elements_is_one_where_the_model_takes_it(channel: grpc.Channel) -> None:
    response = infer(channel, request("free", (0, 3), raw=b""))
    assert (list(response.outputs[0].shape), list(response.raw_output_contents)) == ([0, 3], [b""])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        struct.pack("<I", 2**32 - 1) + b"x",
        struct.pack("<I", 1) + b"a" + struct.pack("<I", 2) + b"b",
        struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"b" + b"\0",
        struct.pack("<III", 0, 0, 0),
    ],
)
def test_strings(channel: grpc.Channel, raw: bytes) -> None:
    assert refusal(channel, request("text", (1, 2), raw, "BYTES").SerializeToString()).code() == INVALID


CONTENTS: dict[str, bytes] = {
    "raw-and-typed": typed(lambda m: m.inputs[0].contents.fp32_contents.extend(ROW), raw=floats(*ROW)),
    "empty-raw-and-typed": typed(lambda m: m.inputs[0].contents.fp32_contents.extend(ROW), raw=b""),
    "raw-and-empty-typed": typed(lambda m: m.inputs[0].contents.SetInParent(), raw=floats(*ROW)),
    "too-few-typed": typed(lambda m: m.inputs[0].contents.fp32_contents.extend(ROW[:3])),
    "too-many-typed": typed(lambda m: m.inputs[0].contents.fp32_contents.extend((*ROW, 5.0))),
    "typed-in-another-field": typed(lambda m: m.inputs[0].contents.int_contents.extend((1, 2, 3, 4))),
    "typed-in-two-fields": typed(in_two_fields),
    "two-raw": typed(lambda m: m.raw_input_contents.append(b""), raw=floats(*ROW)),
    "nothing": typed(lambda m: m.raw_input_contents),
    "no-input": typed(lambda m: m.ClearField("inputs"), raw=floats(*ROW)),
    "input-twice": typed(lambda m: m.inputs.append(m.inputs[0]), raw=floats(*ROW)),
    "other-input": typed(lambda m: setattr(m.inputs[0], "name", "INPUT9"), raw=floats(*ROW)),
    "other-datatype": typed(lambda m: setattr(m.inputs[0], "datatype", "INT32"), raw=floats(*ROW)),
    "no-datatype": typed(lambda m: m.inputs[0].ClearField("datatype"), raw=floats(*ROW)),
    "unheard-of-datatype": typed(lambda m: setattr(m.inputs[0], "datatype", "FP33"), raw=floats(*ROW)),
    "other-output": typed(lambda m: m.outputs.add(name="OUTPUT9"), raw=floats(*ROW)),
    "version-that-is-none": typed(lambda m: setattr(m, "model_version", "-1"), raw=floats(*ROW)),
    "version-too-long": typed(lambda m: setattr(m, "model_version", "9" * 100), raw=floats(*ROW)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(channel: grpc.Channel, name: str) -> None:
    assert refusal(channel, CONTENTS[name]).code() == INVALID


SOUND = request().SerializeToString()
BYTES_OF_A_MESSAGE = {
    "not-protobuf": b"\xff" * 40,
    "half": SOUND[: len(SOUND) // 2],
    "cut-by-one": SOUND[:-1],
    "group-without-end": SOUND + tag(9, GROUP),
    "end-without-group": SOUND + tag(9, GROUP_END),
    "groups-too-deep": SOUND + tag(9, GROUP) * 5000 + tag(9, GROUP_END) * 5000,
    "field-zero": SOUND + b"\0\0",
    "length-beyond-the-end": SOUND + tag(7, 2) + varint(2**31),
    "length-of-64-bits": SOUND + tag(7, 2) + varint(2**64 - 1),
    "varint-without-end": SOUND + b"\x80" * 20,
    "id-that-is-no-text": SOUND + field(3, b"\xff\xfe"),
    "name-that-is-no-text": field(1, b"\xff\xfe") + SOUND,
    "parameter-that-is-no-text": SOUND + field(4, field(1, b"\xff")),
}


@pytest.mark.parametrize("name", BYTES_OF_A_MESSAGE)
def test_messages(channel: grpc.Channel, name: str) -> None:
    assert refusal(channel, BYTES_OF_A_MESSAGE[name]).code() == INVALID


def test_a_message_cut_anywhere(channel: grpc.Channel) -> None:
    call = channel.unary_unary(INFERENCE + "ModelInfer")
    codes = {call.future(SOUND[:end], timeout=TIMEOUT_S).exception().code() for end in range(len(SOUND))}
    assert codes <= {INVALID, grpc.StatusCode.NOT_FOUND}  # cut between two fields it is sound, and names no model


@pytest.mark.parametrize("rpc", ["ServerLive", "ModelReady", "ModelConfig", "RepositoryIndex", "RepositoryModelLoad"])
def test_the_other_methods(channel: grpc.Channel, side: FarSide, rpc: str) -> None:
    with side.channel_as(side.pki.everything) as one:
        call = one.unary_unary(INFERENCE + rpc)
        for message in (b"\xff" * 40, tag(9, GROUP) * 5000, field(99, bytes(1 << 17))):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, timeout=TIMEOUT_S)
            assert caught.value.code() == INVALID
    assert infer(channel, infer_request("echo", ROW)).raw_output_contents[0] == floats(*ROW)


def test_an_oversize_message(channel: grpc.Channel) -> None:
    error = refusal(channel, bytes(66 << 20))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
