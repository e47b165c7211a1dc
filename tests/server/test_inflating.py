"""Compressed messages: inflated as far as they may be, and never a plain one taken for one."""

import gzip
import zlib
from typing import Any

import grpc
import pytest

from hermetic.errors import InvalidRequestError, OverloadedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from hermetic.server.config import Limits
from hermetic.server.inflating import ALWAYS_ALLOWED, inflated
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer_request, method
from tests.server.far_side import FarSide, description

ROW = (1.0, 2.0, 3.0, 4.0)
PACKERS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
BOTH = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


@BOTH
@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_what_was_packed_comes_back(pack: Any, size: int) -> None:
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    packed = pack(plain)
    assert inflated(packed, 1 << 26, 300) == plain


@BOTH
def test_the_bounds(pack: Any) -> None:
    assert len(inflated(pack(bytes(ALWAYS_ALLOWED)), 1 << 26, 100)) == ALWAYS_ALLOWED
    with pytest.raises(OverloadedError, match="inflate to at most 1048576, got more"):
        inflated(pack(bytes(ALWAYS_ALLOWED + 1)), 1 << 26, 100)
    bomb = pack(bytes(40 << 20))
    with pytest.raises(OverloadedError, match=f"at most {100 * len(bomb)}"):
        inflated(bomb, 1 << 26, 100)
    with pytest.raises(OverloadedError, match="at most 1000"):
        inflated(pack(bytes(1001)), 1000, 100)


@BOTH
def test_what_is_broken_is_refused(pack: Any) -> None:
    packed = pack(b"hello" * 100)
    for broken in (packed[:-1], packed + b"x", packed[:12] + b"\xff" * 8, packed[:1], packed * 2, b""):
        with pytest.raises(InvalidRequestError):
            inflated(bytes(bytearray(broken)), 1 << 20, 100)


@pytest.fixture(scope="module")
def served(side: FarSide) -> FarSide:
    side.serve(description("echo"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
    return side


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_answered(served: FarSide, compression: Any) -> None:
    with served.channel_as(served.pki.infer) as channel:
        rows = [ROW] * 8
        call = method(channel, "ModelInfer")
        for _ in range(3):  # one as it is, one looked up, one compared
            response = call(infer_request("echo", *rows), timeout=TIMEOUT_S, compression=compression)
            assert response.raw_output_contents[0] == floats(*ROW) * 8
        live = method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S, compression=compression)
        assert live.live


def test_a_stream_with_compressed_requests(served: FarSide) -> None:
    with served.channel_as(served.pki.infer) as channel:
        call = channel.stream_stream(
            INFERENCE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        requests = [infer_request("echo", *[ROW] * 8) for _ in range(3)]
        answers = list(call(iter(requests), timeout=TIMEOUT_S, compression=grpc.Compression.Gzip))
        assert [a.infer_response.raw_output_contents[0] for a in answers] == [floats(*ROW) * 8] * 3
        bomb = call(iter([pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(8 << 20)])]),
                    timeout=TIMEOUT_S, compression=grpc.Compression.Gzip)  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            list(bomb)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_sends_bombs_is_soon_refused_before_they_are_read(start: Any) -> None:
    side: FarSide = start(limits=Limits(cancels_per_client=100, cancels_window_s=60))
    side.serve(description("echo"), report=False)
    bomb = pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(8 << 20)])
    with side.channel_as(side.pki.infer) as channel, side.channel_as(side.pki.other) as other:
        await_ready(channel, "echo")
        call = method(channel, "ModelInfer")
        texts = []
        for _ in range(4):
            with pytest.raises(grpc.RpcError) as caught:
                call(bomb, timeout=TIMEOUT_S, compression=grpc.Compression.Gzip)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            texts.append(caught.value.details())
        assert "inflate" in texts[0]
        assert "cancelled calls" in texts[3]
        response = method(other, "ModelInfer")(infer_request("echo", ROW), timeout=TIMEOUT_S)
        assert response.raw_output_contents[0] == floats(*ROW)
