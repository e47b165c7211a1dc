"""ModelStreamInfer on both transports: order, errors, half-close, cancel, limits, records; stock clients."""

import asyncio
import queue
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from hermetic.server.config import Limits
from hermetic.server.status import Code
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method
from tests.server.certificates import subject
from tests.server.conversation import Conversation, is_final
from tests.server.far_side import FarSide, Worker, description
from tests.server.raw_http2 import RawConnection

STREAM = INFERENCE + "ModelStreamInfer"
GRPC_ERRORS = (("triton_grpc_error", "true"),)


@pytest.fixture(scope="module")
def worker(side: FarSide) -> Worker:
    worker = side.serve(description("echo"), batches_in_flight=1)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
    return worker


@pytest.fixture
def channel(side: FarSide, worker: Worker) -> Iterator[grpc.Channel]:
    with side.channel_as(side.pki.infer) as channel:
        yield channel


def echo(at: float, request_id: str = "", model: str = "echo") -> pb.ModelInferRequest:
    return infer_request(model, (at, at, at, at), request_id=request_id)


def until(look: Callable[[], Any]) -> Any:
    """Return what `look` returns as soon as it is something."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def records(side: FarSide, event: str, count: int = 1, *, whose: str | None = None) -> list[dict[str, Any]]:
    """Return the records of one event on streams, of one caller or of all, when there are `count` or more."""

    def look() -> list[dict[str, Any]]:
        streams = [r for r in side.records if r["event"] == event and "stream" in r]
        found = [r for r in streams if whose in (None, r["name"])]
        return found if len(found) >= count else []

    return list(until(look))


def test_answers_come_in_the_order_of_the_requests(channel: grpc.Channel) -> None:
    with Conversation(channel) as talk:
        talk.ask(*(echo(at, str(at)) for at in range(50)))
        answers = talk.rest()
    assert [answer.infer_response.id for answer in answers] == [str(at) for at in range(50)]
    assert [answer.infer_response.raw_output_contents[0] for answer in answers] == [
        floats(*[at] * 4) for at in range(50)
    ]
    assert all(is_final(answer) for answer in answers)
    assert answers[0].infer_response.model_version == "1"


def test_order_holds_where_a_later_request_is_done_first(side: FarSide, channel: grpc.Channel) -> None:
    side.serve(description("quick"), report=False)
    slow = side.serve(description("slow"))
    await_ready(channel, "quick")
    await_ready(channel, "slow")
    slow.order("hold")
    with Conversation(channel) as talk:
        talk.ask(echo(1, "slow", "slow"), echo(2, "quick", "quick"))
        slow.batch()
        with side.channel_as(side.pki.infer) as other:
            infer(other, echo(3, model="quick"))  # the quick one of the stream is answered by now
        slow.order("go")
        assert [answer.infer_response.id for answer in talk.rest()] == ["slow", "quick"]


def test_requests_of_one_stream_share_batches(worker: Worker, channel: grpc.Channel) -> None:
    largest = 1
    with Conversation(channel) as talk:
        while largest == 1:  # requests that the client sends one by one, however slowly, have nothing to share
            worker.order("hold")
            talk.ask(*(echo(at) for at in range(5)))
            rows = worker.batch()["rows"]
            worker.order("go")
            assert [talk.raw() for _ in range(5)] == [floats(*[at] * 4) for at in range(5)]
            while rows < 5:
                rows += (more := worker.batch()["rows"])
                largest = max(largest, more)


def test_an_error_travels_in_the_stream_and_the_call_lives_on(channel: grpc.Channel) -> None:
    wrong = echo(1, "wrong shape")
    wrong.inputs[0].shape[1] = 5
    with Conversation(channel) as talk:
        talk.ask(echo(0, "a", "nope"), echo(1, "b"), wrong, echo(2, "c"))
        unknown, good, shape, last = talk.rest()
    assert unknown.error_message == "Request for unknown model: 'nope' is not found"
    assert unknown.infer_response == pb.ModelInferResponse(id="a")  # as Triton: no more than the id
    assert good.infer_response.id == "b"
    assert "unexpected shape" in shape.error_message
    assert shape.infer_response.id == "wrong shape"
    assert (last.error_message, last.infer_response.id) == ("", "c")


def test_a_failed_batch_is_an_error_with_the_models_name(worker: Worker, channel: grpc.Channel) -> None:
    worker.order("refused")
    with Conversation(channel) as talk:
        talk.ask(echo(1, "a"))
        error = talk.answer()
        talk.ask(echo(2, "b"))
        assert talk.raw() == floats(2, 2, 2, 2)
    worker.batch()
    worker.batch()
    assert "no such token" in error.error_message
    assert (error.infer_response.id, error.infer_response.model_name) == ("a", "echo")
    assert is_final(error)


def test_garbage_in_a_stream_is_an_error_in_it(channel: grpc.Channel) -> None:
    call = channel.stream_stream(STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString)
    garbage, good = call(iter([b"\xff\xff", echo(1, "x").SerializeToString()]), timeout=TIMEOUT_S)
    assert "message: expected" in garbage.error_message
    assert good.infer_response.id == "x"


def test_with_triton_grpc_error_the_first_error_ends_the_call(worker: Worker, channel: grpc.Channel) -> None:
    with Conversation(channel, GRPC_ERRORS) as talk:
        talk.ask(echo(1, "a"))
        assert talk.answer().infer_response.id == "a"
        worker.order("refused")
        talk.ask(echo(2, "b"))
        error = talk.failure()
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "no such token" in error.details()
    worker.batch()
    worker.batch()


def test_with_triton_grpc_error_earlier_answers_still_come(worker: Worker, channel: grpc.Channel) -> None:
    worker.order("hold")
    with Conversation(channel, GRPC_ERRORS) as talk:
        talk.ask(echo(1, "a"), echo(2, "b", "nope"), echo(3, "c"))
        worker.batch()
        worker.order("go")
        assert talk.answer().infer_response.id == "a"
        assert talk.failure().code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("value", ["True", "1", "false"])
def test_other_values_of_triton_grpc_error_are_none(channel: grpc.Channel, value: str) -> None:
    with Conversation(channel, (("triton_grpc_error", value),)) as talk:
        talk.ask(echo(1, "a", "nope"), echo(2, "b"))
        assert [bool(answer.error_message) for answer in talk.rest()] == [True, False]


def test_a_stream_without_requests_is_ok(channel: grpc.Channel) -> None:
    with Conversation(channel) as talk:
        assert talk.rest() == []


def test_after_the_half_close_what_was_asked_is_answered(worker: Worker, channel: grpc.Channel) -> None:
    worker.order("hold")
    with Conversation(channel) as talk:
        talk.ask(echo(1), echo(2))
        worker.batch()
        talk.end()
        worker.order("go")
        assert len(talk.rest()) == 2


def test_cancel_frees_and_wipes_what_waits(side: FarSide, channel: grpc.Channel) -> None:
    worker = side.serve(description("freed"), batches_in_flight=1, buffers=2)
    await_ready(channel, "freed")
    worker.order("hold")
    talk = Conversation(channel)
    talk.ask(*(echo(7, model="freed") for _ in range(20)))
    assert worker.batch()["rows"] >= 1
    talk.cancel()
    cancelled = until(
        lambda: [r for r in side.records if r.get("model") == "freed" and r["status"] == "CANCELLED"][:20]
    )
    assert all(record["stream"] == cancelled[0]["stream"] for record in cancelled)
    worker.order("go")
    assert infer(channel, echo(1, model="freed")).raw_output_contents[0] == floats(1, 1, 1, 1)
    while (rows := worker.batch())["inputs"][0] == floats(*[7] * 4).hex():
        pass
    assert rows["inputs"][0][:32] == floats(1, 1, 1, 1).hex()


def test_each_request_and_the_call_have_a_record(side: FarSide, worker: Worker) -> None:
    """Of a caller who asks nothing else here: records of other tests may come late."""
    with side.channel_as(side.pki.everything) as channel, Conversation(channel) as talk:
        talk.ask(echo(1, "canary"), echo(2, "canary", "nope"))
        talk.rest()
    first, second = records(side, "request", 2, whose=subject("everything"))
    (stream,) = records(side, "stream", whose=subject("everything"))
    assert first["stream"] == second["stream"] == stream["stream"]
    assert (first["model"], first["status"], first["responses"]) == ("echo", "OK", 1)
    assert (second["model"], second["status"], second["responses"]) == ("", "NOT_FOUND", 1)
    assert first["method"] == STREAM
    assert (stream["requests"], stream["responses"], stream["status"]) == (2, 2, "OK")
    assert stream["request_bytes"] == first["request_bytes"] + second["request_bytes"]
    assert stream["reply_bytes"] == first["reply_bytes"] + second["reply_bytes"]
    assert stream["tenant"] == "red"
    assert "canary" not in repr(side.records)


def test_an_identity_without_the_role_gets_no_stream(side: FarSide, worker: Worker) -> None:
    with side.channel_as(side.pki.observe) as channel, Conversation(channel) as talk:
        talk.ask(echo(1))
        assert talk.failure().code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_deadline_ends_the_stream(worker: Worker, channel: grpc.Channel) -> None:
    worker.order("hold")
    with Conversation(channel, timeout=0.2) as talk:
        talk.ask(echo(1))
        assert talk.failure().code() == grpc.StatusCode.DEADLINE_EXCEEDED
    worker.order("go")


def test_tritonclient_streams(side: FarSide, worker: Worker) -> None:
    client = triton.InferenceServerClient(f"localhost:{side.port}", ssl=True, creds=side.credentials(side.pki.infer))
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=TIMEOUT_S)
    tensor = triton.InferInput("INPUT0", [1, 4], "FP32")
    for at in range(10):
        tensor.set_data_from_numpy(np.full((1, 4), at, np.float32))
        client.async_stream_infer("nope" if at == 5 else "echo", [tensor], request_id=str(at))
    client.stop_stream()
    client.close()
    for at in range(10):
        result, error = answers.get(timeout=TIMEOUT_S)
        if at == 5:
            assert "unknown model" in str(error)
        else:
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), np.full((1, 4), at, np.float32))
            assert result.get_response().id == str(at)


def test_tritonclients_asyncio_streams(side: FarSide, worker: Worker) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for at in range(10):
            tensor = triton_aio.InferInput("INPUT0", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.full((1, 4), at, np.float32))
            yield {"model_name": "echo", "inputs": [tensor], "request_id": str(at)}

    async def run() -> list[str]:
        credentials = side.credentials(side.pki.infer)
        async with triton_aio.InferenceServerClient(f"localhost:{side.port}", ssl=True, creds=credentials) as client:
            return [result.get_response().id async for result, _ in client.stream_infer(requests())]

    assert asyncio.run(run()) == [str(at) for at in range(10)]


def test_a_model_is_unloaded_while_a_stream_is_open(side: FarSide, channel: grpc.Channel) -> None:
    leaving = description("leaving")
    worker = side.serve(leaving)
    await_ready(channel, "leaving")
    worker.order("hold")
    with Conversation(channel) as talk:
        talk.ask(echo(1, "last", "leaving"))
        worker.batch()
        side.stop_model(leaving)
        worker.order("go")
        assert talk.answer().infer_response.id == "last"
        side.await_stopped()
        talk.ask(echo(2, "late", "leaving"), echo(3, "other"))
        late, other = talk.answer(), talk.answer()
    assert late.error_message
    assert late.infer_response.id == "late"
    assert other.infer_response.id == "other"


def test_a_drain_answers_what_was_asked_and_ends_the_stream(start: Any) -> None:
    side: FarSide = start()
    worker = side.serve(description("echo"))
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        idle = Conversation(channel)
        worker.order("hold")
        with Conversation(channel) as talk:
            talk.ask(echo(1, "a"))
            worker.batch()
            side.drain()
            assert idle.failure().code() == grpc.StatusCode.UNAVAILABLE
            worker.order("go")
            assert talk.answer().infer_response.id == "a"
            error = talk.failure()
        idle.end()
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in error.details()
    drained, status = side.await_drained()
    assert (drained.failed, status) == (0, 0)


def test_a_stream_is_not_read_while_too_many_of_its_requests_wait(start: Any) -> None:
    side: FarSide = start(limits=Limits(requests_per_stream=3))
    worker = side.serve(description("echo", max_batch_size=64), batches_in_flight=1)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        worker.order("hold")
        with Conversation(channel) as talk:
            talk.ask(*(echo(at) for at in range(20)))
            rows = worker.batch()["rows"]
            worker.order("go")
            assert [talk.raw() for _ in range(20)] == [floats(*[at] * 4) for at in range(20)]
            while rows < 20:
                rows += (more := worker.batch()["rows"])
                assert more <= 3


def test_a_stream_is_not_read_while_the_clients_bytes_are_used_up(start: Any) -> None:
    request = echo(1)
    room = 5 * request.ByteSize() // 2
    side: FarSide = start(limits=Limits(message_bytes=room, bytes_in_flight_per_client=room))
    worker = side.serve(description("echo", max_batch_size=64), batches_in_flight=1)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        worker.order("hold")
        with Conversation(channel) as talk:
            talk.ask(*[request] * 20)
            rows = worker.batch()["rows"]
            worker.order("go")
            assert [talk.raw() for _ in range(20)] == [floats(1, 1, 1, 1)] * 20  # and none was refused
            while rows < 20:
                rows += (more := worker.batch()["rows"])
                assert more <= 2


def test_a_client_opens_only_so_many_streams(start: Any) -> None:
    side: FarSide = start(limits=Limits(inference_streams_per_client=2))
    side.serve(description("echo"), report=False)
    with side.channel_as(side.pki.infer) as channel, side.channel_as(side.pki.other) as other:
        await_ready(channel, "echo")
        with Conversation(channel) as first, Conversation(channel) as second:
            for talk in (first, second):
                talk.ask(echo(1))
                talk.answer()
            with Conversation(channel) as third:
                error = third.failure()
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "at most 2" in error.details()
            with Conversation(other) as elsewhere:
                elsewhere.ask(echo(1))
                elsewhere.answer()
            first.rest()
        with Conversation(channel) as again:
            again.ask(echo(1))
            again.answer()


def test_a_client_that_takes_no_answers_is_cut_off_by_name(start: Any) -> None:
    side: FarSide = start(limits=Limits(reply_timeout_s=1))
    side.serve(description("echo"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
    with RawConnection(side.port, side.pki.server_authority.pem, side.pki.infer, window=0) as raw:
        stream = raw.headers(STREAM)
        for at in range(10):
            raw.data(stream, echo(at).SerializeToString(), end=False)
        (record,) = records(side, "stream")
    assert record["status"] == Code.RESOURCE_EXHAUSTED.name
    assert "take one within 1 s" in record["story"]
    waiting = records(side, "request", 10)
    assert {r["status"] for r in waiting} == {"OK", "RESOURCE_EXHAUSTED"}


def test_a_request_too_large_for_what_is_left_is_refused_by_name(start: Any) -> None:
    side: FarSide = start(limits=Limits(message_bytes=5000, bytes_in_flight_per_client=5000))
    worker = side.serve(description("wide", inputs=(("INPUT0", "FP32", (-1,)),)), batches_in_flight=1)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "wide")
        worker.order("hold")
        held = method(channel, "ModelInfer").future(infer_request("wide", [1.0] * 500), timeout=TIMEOUT_S)
        worker.batch()
        with Conversation(channel) as talk:
            talk.ask(
                infer_request("wide", [1.0] * 1000, request_id="large"), infer_request("wide", [1.0], request_id="b")
            )
            large = talk.answer()
            worker.order("go")
            good = talk.answer()
        held.result()
    assert "bytes in flight of this client" in large.error_message
    assert large.infer_response.id == "large"
    assert struct.unpack("<f", good.infer_response.raw_output_contents[0]) == (1.0,)
