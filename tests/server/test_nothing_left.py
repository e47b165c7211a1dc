"""What a front end's memory holds of a request when the request is over, however it ended: nothing.

Every case has a canary of its own. The scanner is proved in test_frontend.py, and by the first case here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.memory_scan import scan
from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import infer, infer_request
from tests.server.conversation import Conversation
from tests.server.far_side import FarSide, Pki, description, settings

LOOKS = 50  # until gRPC's own threads have freed what they had
FILLER = b"." * 40_000  # overwrites what gRPC's buffers of a connection still hold of earlier messages
TEXT = (("INPUT0", "BYTES", (1,)),)
QUEUED = ModelConfiguration.model_validate(
    {"dynamic_batching": {"default_queue_policy": {"default_timeout_us": 50_000, "allow_timeout_override": True}}}
)


def canary_of(case: str) -> bytes:
    return (f"CANARY<{case}>".encode() * 40)[:600]


def raw(model: str, canary: bytes, rows: int = 1, **fields: Any) -> pb.ModelInferRequest:
    """A request whose content lies behind its header."""
    message = pb.ModelInferRequest(model_name=model, **fields)
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[rows, 1])
    message.raw_input_contents.append(len(canary).to_bytes(4, "little") + canary)
    return message


def typed(model: str, canary: bytes, rows: int = 1) -> pb.ModelInferRequest:
    """A request whose content lies in its header."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[rows, 1]).contents.bytes_contents.append(canary)
    return message


class Stage:
    """A front end, its models, and a caller."""

    def __init__(self, side: FarSide, channel: grpc.Channel) -> None:
        self.side = side
        self.channel = channel
        self.side.serve(description("plain", inputs=TEXT), report=False)
        self.side.serve(description("numbers"), report=False)
        self.queued = self.side.serve(description("queued", inputs=TEXT, configuration=QUEUED), batches_in_flight=1)
        self.pair = [self.side.serve(description("pair", inputs=TEXT), batches_in_flight=1, instance=n) for n in (0, 1)]

    def turn(self) -> None:
        """Have the front end do something else, on the same connection."""
        infer(self.channel, raw("plain", FILLER))

    def left(self, canary: bytes) -> int:
        """How often the canary is still there, once it is as little as it will be."""
        found = 1
        for _ in range(LOOKS):
            self.turn()
            found = scan(self.side.process.pid, {"c": canary}).count("c")
            if not found:
                break
        return found


@pytest.fixture(scope="module")
def stage(pki: Pki) -> Iterator[Stage]:
    side = FarSide(pki, settings(pki))
    with side.channel_as(pki.infer) as channel:
        yield Stage(side, channel)
    side.close()


def fails(code: grpc.StatusCode, call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code, caught.value.details()


def infer_future(channel: grpc.Channel, request: pb.ModelInferRequest, **options: Any) -> Any:
    method = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return method.future(request, timeout=60, **options)


def test_the_scanner_sees_what_a_worker_has(stage: Stage) -> None:
    canary = canary_of("seen")
    stage.queued.order("hold")
    future = infer_future(stage.channel, raw("queued", canary))
    stage.queued.batch()
    assert scan(stage.side.process.pid, {"c": canary}).count("c") > 0
    stage.queued.order("go")
    future.result()
    del future
    assert stage.left(canary) == 0


@pytest.mark.parametrize("make", [raw, typed])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["plain", "none"])
@pytest.mark.parametrize("rows", [1, 2])
def test_answered_and_refused(stage: Stage, make: Any, model: str, rows: int, stream: bool) -> None:
    canary = canary_of(f"{make.__name__} {model} {rows} {stream}")
    request = make(model, canary, rows)
    good = model == "plain" and rows == 1
    if stream:
        with Conversation(stage.channel) as talk:
            talk.ask(request, request)
            assert [not talk.answer().error_message for _ in range(2)] == [good, good]
            assert stage.left(canary) == 0, "the stream goes on"
    elif good:
        infer(stage.channel, request)
    else:
        code = grpc.StatusCode.NOT_FOUND if model == "none" else grpc.StatusCode.INVALID_ARGUMENT
        fails(code, lambda: infer(stage.channel, request))
    assert stage.left(canary) == 0


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed(stage: Stage, compression: grpc.Compression) -> None:
    canary = canary_of(f"compressed {compression}")
    infer_future(stage.channel, raw("plain", canary), compression=compression).result()
    assert stage.left(canary) == 0


def test_text_of_parameters(stage: Stage) -> None:
    """Clients may say anything there, and a plan that is kept must not keep it."""
    canary = canary_of("parameter")[:300]
    request = raw("plain", b"text")
    request.parameters["note"].string_param = canary.decode()
    request.inputs[0].parameters["note"].string_param = canary.decode()
    for _ in range(3):
        infer(stage.channel, request)
    assert stage.left(canary) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_expired_in_the_queue(stage: Stage, stream: bool) -> None:
    canary = canary_of(f"expired {stream}")
    stage.queued.order("hold")
    first = infer_future(stage.channel, raw("queued", b"first"))
    stage.queued.batch()
    with Conversation(stage.channel) as talk:
        if stream:
            talk.ask(*[raw("queued", canary) for _ in range(3)])
            assert all("timeout" in talk.answer().error_message for _ in range(3))
        else:
            futures = [infer_future(stage.channel, raw("queued", canary)) for _ in range(12)]
            for future in futures:
                fails(grpc.StatusCode.UNAVAILABLE, future.result)
            del futures, future
        assert stage.left(canary) == 0
    stage.queued.order("go")
    first.result()


@pytest.mark.parametrize("stream", [False, True])
def test_cancelled_while_it_waits_forms_or_runs(stage: Stage, stream: bool) -> None:
    canary = canary_of(f"cancelled {stream}")
    worker = stage.queued
    worker.order("hold")
    if stream:
        with Conversation(stage.channel) as talk:
            talk.ask(*[raw("queued", canary, id=str(n)) for n in range(4)])
            worker.batch()
            talk.cancel()
    else:
        futures = [infer_future(stage.channel, raw("queued", canary)) for _ in range(4)]
        worker.batch()
        for future in futures:
            future.cancel()
        del futures, future
    worker.order("go")
    assert stage.left(canary) == 0


def test_moved_to_another_worker(stage: Stage) -> None:
    """What formed at a worker that died runs at another one, and neither keeps it."""
    canary = canary_of("moved")
    one, other = stage.pair
    for worker in stage.pair:
        worker.order("hold")
    running = [infer_future(stage.channel, raw("pair", canary)) for _ in range(2)]
    for worker in stage.pair:
        worker.batch()
    formed = [infer_future(stage.channel, raw("pair", canary)) for _ in range(24)]
    stage.turn()
    one.kill()
    stage.side.await_link_lost()
    other.order("go")
    answered = sum(future.exception() is None for future in [*running, *formed])
    assert answered >= 1
    del running, formed
    assert stage.left(canary) == 0


def test_classes(stage: Stage) -> None:
    request = infer_request("numbers", (1.5, 271828.0, 3.25, 4.125))
    request.outputs.add(name="OUTPUT0").parameters["classification"].int64_param = 4
    response = infer(stage.channel, request)
    assert b"271828.000000:1" in response.raw_output_contents[0]
    assert stage.left(b"271828.000000:1") == 0
