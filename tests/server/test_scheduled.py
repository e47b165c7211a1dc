"""What a model's configuration says of its queue and its batches, through the real front end."""

import struct
from itertools import count
from typing import Any

import grpc
import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import TIMEOUT_S, await_ready, floats, method
from tests.server.far_side import FarSide, Worker, description

NAMES = (f"scheduled-{at}" for at in count())


def serve(side: FarSide, configuration: dict[str, Any], *, instance: int = 0, name: str = "", **changes: Any) -> Worker:
    """A worker that holds what it gets; one batch at a time."""
    model = {key: changes.pop(key) for key in ("max_batch_size", "inputs", "outputs") if key in changes}
    described = description(name, configuration=ModelConfiguration.model_validate(configuration), **model)
    worker = side.serve(described, instance=instance, batches_in_flight=1, **changes)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, name)
    return worker


def request(model: str, *values: float, name: str = "", **parameters: int) -> pb.ModelInferRequest:
    """One row of FP32."""
    message = pb.ModelInferRequest(model_name=model, id=name, raw_input_contents=[floats(*values)])
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[1, len(values)])
    for key, value in parameters.items():
        message.parameters[key].int64_param = value
    return message


def send(channel: grpc.Channel, message: pb.ModelInferRequest) -> grpc.Future:
    """Send a request, and wait until a later call of the same connection is answered: so they arrive in order."""
    call = method(channel, "ModelInfer").future(message, timeout=TIMEOUT_S)
    method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
    return call


def answer(call: grpc.Future) -> bytes:
    response: pb.ModelInferResponse = call.result(timeout=TIMEOUT_S)
    return response.raw_output_contents[0]


def first_values(worker: Worker, batches: int) -> list[float]:
    """The first number of each batch that comes next."""
    return [struct.unpack("<f", bytes.fromhex(worker.batch()["inputs"][0])[:4])[0] for _ in range(batches)]


def test_without_dynamic_batching_each_request_is_a_batch_of_its_own(side: FarSide) -> None:
    name = next(NAMES)
    worker = serve(side, {}, name=name, max_batch_size=4)
    with side.channel_as(side.pki.infer) as channel:
        both = request(name, 7, 0, 0, 0)
        both.inputs[0].shape[:] = [2, 4]
        both.raw_input_contents[0] += floats(8, 0, 0, 0)
        calls = [send(channel, request(name, at, 0, 0, 0)) for at in range(4)] + [send(channel, both)]
        worker.order("go")
        for call in calls:
            answer(call)
    assert sorted(worker.batch()["rows"] for _ in range(5)) == [1, 1, 1, 1, 2]  # a client's own batch stays together


def test_urgent_requests_overtake(side: FarSide) -> None:
    name = next(NAMES)
    options = {"dynamic_batching": {"priority_levels": 3, "default_priority_level": 2}}
    worker = serve(side, options, name=name, max_batch_size=1, buffers=2)
    with side.channel_as(side.pki.infer) as channel:
        calls = [send(channel, request(name, 0, 0, 0, 0))]
        worker.batch()
        for at, priority in enumerate((3, 2, 1, 7, 0, 1), 1):
            wish: dict[str, Any] = {"priority": priority} if priority else {}
            calls.append(send(channel, request(name, at, 0, 0, 0, **wish)))
        worker.order("go")
        for call in calls:
            answer(call)
    assert first_values(worker, 6) == [3, 6, 2, 4, 5, 1]  # as real Triton answers it


def test_what_waits_too_long_is_refused_in_tritons_words_and_counted(side: FarSide) -> None:
    name = next(NAMES)
    policy = {"default_timeout_us": 60_000_000, "allow_timeout_override": True}
    worker = serve(side, {"dynamic_batching": {"default_queue_policy": policy}}, name=name, max_batch_size=1)
    with side.channel_as(side.pki.infer) as channel, side.channel_as(side.pki.observe) as observer:
        runs = send(channel, request(name, 1, 0, 0, 0))
        worker.batch()
        patient = send(channel, request(name, 3, 0, 0, 0))  # before the late ones, so that it waits longer than they do
        late = [send(channel, request(name, 2, 0, 0, 0, timeout=20_000)) for _ in range(3)]
        for call in late:
            error = call.exception(timeout=TIMEOUT_S)
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "Request timeout expired")
        worker.order("go")
        assert [answer(runs), answer(patient)] == [floats(1, 0, 0, 0), floats(3, 0, 0, 0)]
        statistics = method(observer, "ModelStatistics")(pb.ModelStatisticsRequest(name=name), timeout=TIMEOUT_S)
    one = statistics.model_stats[0]
    assert (one.inference_count, one.inference_stats.success.count, one.inference_stats.fail.count) == (2, 2, 3)
    assert one.inference_stats.queue.count == 2
    assert one.inference_stats.queue.ns > 20_000_000  # the patient one waited at least as long as the late ones


def test_a_full_queue_names_the_request(side: FarSide) -> None:
    name = next(NAMES)
    options = {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 2}}}
    worker = serve(side, options, name=name, max_batch_size=1)
    with side.channel_as(side.pki.infer) as channel:
        runs = send(channel, request(name, 1, 0, 0, 0))
        worker.batch()
        waiting = [send(channel, request(name, 2, 0, 0, 0)) for _ in range(2)]
        for identifier, words in (("mine", "mine"), ("", "<id_unknown>")):
            error = send(channel, request(name, 3, 0, 0, 0, name=identifier)).exception(timeout=TIMEOUT_S)
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert error.details() == f"[request id: {words}] Exceeds maximum queue size"
        worker.order("go")
        for call in (runs, *waiting):
            answer(call)


def test_answers_leave_in_the_order_of_arrival_over_two_workers(side: FarSide) -> None:
    name = next(NAMES)
    options = {"dynamic_batching": {"preserve_ordering": True}}
    one = serve(side, options, name=name, max_batch_size=1)
    with side.channel_as(side.pki.infer) as channel:
        slow = send(channel, request(name, 1, 0, 0, 0))
        one.batch()
        two = serve(side, options, name=name, max_batch_size=1, instance=1)
        two.order("go")
        left: list[int] = []
        quick = [send(channel, request(name, at, 0, 0, 0)) for at in range(2, 6)]
        for at, call in enumerate([slow, *quick]):
            call.add_done_callback(lambda _, at=at: left.append(at))
        two.batch()
        assert not left
        one.order("go")
        assert [answer(call) for call in (slow, *quick)] == [floats(at, 0, 0, 0) for at in range(1, 6)]
    assert left == sorted(left)


TWO = (("INPUT0", "FP32", (2,)), ("INPUT1", "FP32", (2,)))


def test_requests_with_and_without_an_optional_input_are_not_mixed(side: FarSide) -> None:
    name = next(NAMES)
    options = {"inputs": [{"name": "INPUT1", "optional": True}], "dynamic_batching": {}}
    worker = serve(side, options, name=name, inputs=TWO)
    with side.channel_as(side.pki.infer) as channel:
        first = send(channel, request(name, 0, 0))
        worker.batch()
        calls = []
        for at in range(1, 7):
            message = request(name, at, 0)
            if at % 2:
                message.inputs.add(name="INPUT1", datatype="FP32", shape=[1, 2])
                message.raw_input_contents.append(floats(-at, 0))
            calls.append(send(channel, message))
        worker.order("go")
        answer(first)
        for at, call in enumerate(calls, 1):
            outputs = call.result(timeout=TIMEOUT_S).raw_output_contents
            assert outputs == [floats(at, 0), floats(-at, 0) if at % 2 else floats(0, 0)]
    for _ in range(2):
        rows, inputs = (batch := worker.batch())["rows"], batch["inputs"]
        assert rows == 3
        assert len(bytes.fromhex(inputs[1])) in (0, 3 * 8)


def test_ragged_requests_share_a_batch_and_get_their_own_shapes_back(side: FarSide) -> None:
    name = next(NAMES)
    options = {
        "inputs": [{"name": "INPUT0", "ragged": True}],
        "dynamic_batching": {},
        "batch_inputs": [
            {
                "kind": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
                "names": ["ENDS"],
                "datatype": "INT32",
                "sources": ["INPUT0"],
            },
            {"kind": "BATCH_ITEM_SHAPE", "names": ["SHAPES"], "datatype": "FP32", "sources": ["INPUT0"]},
        ],
        "batch_outputs": [{"names": ["OUTPUT0"], "sources": ["INPUT0"]}],
    }
    worker = serve(side, options, name=name, inputs=(("INPUT0", "FP32", (-1,)),))
    with side.channel_as(side.pki.infer) as channel:
        first = send(channel, request(name, 9, 9, 9))
        worker.batch()
        calls = [send(channel, request(name, *range(at, at + length))) for at, length in enumerate((2, 1, 3))]
        worker.order("go")
        assert answer(first) == floats(9, 9, 9)
        for at, (call, length) in enumerate(zip(calls, (2, 1, 3), strict=True)):
            response = call.result(timeout=TIMEOUT_S)
            assert list(response.outputs[0].shape) == [1, length]
            assert response.raw_output_contents[0] == floats(*range(at, at + length))
    elements, ends, shapes = map(bytes.fromhex, worker.batch()["inputs"])
    assert elements == floats(0, 1, 1, 2, 3, 4)
    assert struct.unpack("<4i", ends) == (0, 2, 3, 6)
    assert shapes == floats(2, 1, 3)


def test_a_lie_about_a_scattered_output_ends_the_worker(side: FarSide) -> None:
    name = next(NAMES)
    options = {
        "inputs": [{"name": "INPUT0", "ragged": True}],
        "batch_outputs": [{"names": ["OUTPUT0"], "sources": ["INPUT0"]}],
    }
    worker = serve(side, options, name=name, inputs=(("INPUT0", "FP32", (-1,)),))
    worker.order("go")
    with side.channel_as(side.pki.infer) as channel:
        assert answer(send(channel, request(name, 1, 2))) == floats(1, 2)
        worker.batch()
        worker.order("more-rows")
        error = send(channel, request(name, 1, 2)).exception(timeout=TIMEOUT_S)
    assert error.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("operator_us", [None, 0])
def test_the_operators_delay_goes_before_the_models(side: FarSide, operator_us: int | None) -> None:
    name = next(NAMES)
    options = {"dynamic_batching": {"max_queue_delay_us": 60_000_000}}
    worker = serve(side, options, name=name, max_batch_size=2, max_queue_delay_us=operator_us)
    worker.order("go")
    with side.channel_as(side.pki.infer) as channel:
        calls = [send(channel, request(name, at, 0, 0, 0)) for at in range(1 if operator_us == 0 else 2)]
        for at, call in enumerate(calls):
            assert answer(call) == floats(at, 0, 0, 0)
    assert worker.batch()["rows"] == len(calls)
