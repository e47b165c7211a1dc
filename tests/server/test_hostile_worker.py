"""A worker that lies, repeats itself or dies: its requests fail, the front end lives, others are served."""

from collections.abc import Iterator
from itertools import count

import grpc
import pytest

from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method, until_refused
from tests.server.far_side import FarSide, Worker, description

NAMES = (f"model-{at}" for at in count())
LIES = (
    "wrong-sequence", "wrong-buffer", "buffer-out-of-range", "no-outputs", "too-many-outputs", "more-rows",
    "negative-rows", "other-rank", "huge-dimensions", "more-bytes", "all-bytes", "fewer-bytes", "cut-frame",
    "long-frame", "die",
)  # fmt: skip


@pytest.fixture(scope="module")
def neighbour(side: FarSide) -> str:
    side.serve(description("neighbour"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "neighbour")
    return "neighbour"


@pytest.fixture(autouse=True)
def the_neighbour_is_served(side: FarSide, neighbour: str) -> Iterator[None]:
    yield
    with side.channel_as(side.pki.infer) as channel:
        assert infer(channel, infer_request(neighbour, (1, 2, 3, 4))).raw_output_contents[0] == floats(1, 2, 3, 4)


@pytest.fixture
def channel(side: FarSide) -> Iterator[grpc.Channel]:
    with side.channel_as(side.pki.infer) as channel:
        yield channel


def serve(side: FarSide, channel: grpc.Channel, **changes: object) -> tuple[str, Worker]:
    name = next(NAMES)
    worker = side.serve(description(name, **changes), report=False)  # type: ignore[arg-type]
    await_ready(channel, name)
    return name, worker


def failure(channel: grpc.Channel, model: str) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, infer_request(model, (1, 2, 3, 4)))
    return caught.value


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_worker_and_its_requests(side: FarSide, channel: grpc.Channel, lie: str) -> None:
    name, worker = serve(side, channel)
    worker.order(lie)
    error = failure(channel, name)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "wanted" not in error.details()  # what was wrong is the operator's business
    assert failure(channel, name).code() == grpc.StatusCode.UNAVAILABLE  # no worker, not ready


@pytest.mark.parametrize("order", ["unasked", "garbage", "empty", "flood"])
def test_frames_that_answer_nothing_end_the_worker(side: FarSide, channel: grpc.Channel, order: str) -> None:
    name, worker = serve(side, channel)
    worker.order(order)
    assert until_refused(channel, infer_request(name, (1, 2, 3, 4))).code() == grpc.StatusCode.UNAVAILABLE


def test_a_repeated_answer_is_a_lie_about_the_second(side: FarSide, channel: grpc.Channel) -> None:
    name, worker = serve(side, channel)
    worker.order("repeated")
    assert infer(channel, infer_request(name, (1, 2, 3, 4))).raw_output_contents[0] == floats(1, 2, 3, 4)
    assert until_refused(channel, infer_request(name, (1, 2, 3, 4))).code() == grpc.StatusCode.UNAVAILABLE


def test_strings_that_point_outside_are_a_lie(side: FarSide, channel: grpc.Channel) -> None:
    name, worker = serve(side, channel, inputs=(("INPUT0", "BYTES", (1,)),))
    worker.order("bad-strings")
    request = pb.ModelInferRequest(model_name=name)
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"word")
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_answers_in_another_order_find_their_requests(side: FarSide, channel: grpc.Channel) -> None:
    name, worker = serve(side, channel, max_batch_size=1)
    worker.order("hold")
    futures = [
        method(channel, "ModelInfer").future(infer_request(name, (at, 0, 0, 0)), timeout=TIMEOUT_S) for at in range(2)
    ]
    method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
    worker.order("go backwards")
    assert [f.result(TIMEOUT_S).raw_output_contents[0] for f in futures] == [floats(0, 0, 0, 0), floats(1, 0, 0, 0)]


def test_times_are_cut_to_what_can_be(side: FarSide, channel: grpc.Channel) -> None:
    name, worker = serve(side, channel)
    worker.order("huge-times")
    infer(channel, infer_request(name, (1, 2, 3, 4)))
    with side.channel_as(side.pki.observe) as observer:
        statistics = method(observer, "ModelStatistics")(pb.ModelStatisticsRequest(name=name), timeout=TIMEOUT_S)
    assert statistics.model_stats[0].inference_stats.compute_infer.ns < TIMEOUT_S * 1e9


def test_a_refused_input_is_the_callers_and_a_failed_run_is_not(side: FarSide, channel: grpc.Channel) -> None:
    name, worker = serve(side, channel)
    worker.order("refused")
    error = failure(channel, name)
    assert (error.code(), "no such token" in error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    worker.order("failed")
    error = failure(channel, name)
    assert (error.code(), "/secret/path" in error.details()) == (grpc.StatusCode.INTERNAL, False)
    assert infer(channel, infer_request(name, (1, 2, 3, 4))).raw_output_contents[0] == floats(1, 2, 3, 4)


def test_a_killed_worker_fails_what_it_had_and_what_waited(side: FarSide, channel: grpc.Channel) -> None:
    name = next(NAMES)
    worker = side.serve(description(name, max_batch_size=1), buffers=2, batches_in_flight=1)
    await_ready(channel, name)
    worker.order("hold")
    futures = [
        method(channel, "ModelInfer").future(infer_request(name, (at, 0, 0, 0)), timeout=TIMEOUT_S) for at in range(6)
    ]
    worker.batch()
    worker.process.kill()
    assert {future.exception(TIMEOUT_S).code() for future in futures} == {grpc.StatusCode.UNAVAILABLE}


def test_a_successor_is_taken_in_service(side: FarSide, channel: grpc.Channel) -> None:
    name, worker = serve(side, channel)
    worker.kill()
    assert until_refused(channel, infer_request(name, (1, 2, 3, 4))).code() == grpc.StatusCode.UNAVAILABLE
    side.serve(description(name), report=False)
    await_ready(channel, name)
    assert infer(channel, infer_request(name, (5, 6, 7, 8))).raw_output_contents[0] == floats(5, 6, 7, 8)
