"""A front end's life: drain, models that come and go, records, and what is left in its memory."""

from typing import Any

import grpc
import pytest

from hermetic.enclave.memory_scan import scan
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.config import Limits
from hermetic.server.messages import Drain
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method, until_refused
from tests.server.far_side import FarSide, description
from tests.server.sequence_models import accumulator


def test_drain_under_load_loses_nothing(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    worker = side.serve(description("echo", max_batch_size=2), batches_in_flight=1, buffers=2)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        worker.order("hold")
        call = method(channel, "ModelInfer")
        futures = [call.future(infer_request("echo", (at, 0, 0, 0)), timeout=TIMEOUT_S) for at in range(20)]
        waiting = len(futures) - worker.batch()["rows"]  # the worker has one batch at a time, and holds it
        while sum(model.pending for model in side.counted().models) != waiting:
            pass  # all are to be accepted
        side.drain()
        while method(channel, "ServerReady")(pb.ServerReadyRequest(), timeout=TIMEOUT_S).ready:
            pass
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, infer_request("echo", (9, 9, 9, 9)))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        worker.order("go")
        assert [f.result(TIMEOUT_S).raw_output_contents[0] for f in futures] == [
            floats(at, 0, 0, 0) for at in range(20)
        ]
    drained, status = side.await_drained()
    assert (drained.failed, status) == (0, 0)
    inferred = [r for r in side.records if r["method"].endswith("ModelInfer") and r["status"] == "OK"]
    assert len(inferred) == 20  # and each is in the log


def test_drain_ends_at_its_grace(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    worker = side.serve(description("echo"))
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        worker.order("hold")
        future = method(channel, "ModelInfer").future(infer_request("echo", (1, 2, 3, 4)), timeout=TIMEOUT_S)
        worker.batch()
        side.drain(grace_s=0.2)
        assert future.exception(TIMEOUT_S) is not None
    drained, status = side.await_drained()
    assert (drained.failed, status) == (1, 0)


def test_the_front_end_ends_with_its_supervisor(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    side.channel._socket.shutdown(2)
    assert side.process.wait(TIMEOUT_S) == 1


def test_a_second_start_on_the_same_port_is_refused(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    with pytest.raises(Exception, match="the end"):
        start(port=side.port)  # type: ignore[operator]


def test_a_stopped_model_finishes_and_is_gone(side: FarSide) -> None:
    model = description("leaves")
    worker = side.serve(model)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "leaves")
        worker.order("hold")
        future = method(channel, "ModelInfer").future(infer_request("leaves", (1, 2, 3, 4)), timeout=TIMEOUT_S)
        worker.batch()
        side.stop_model(model)
        ready = method(channel, "ModelReady")
        while ready(pb.ModelReadyRequest(name="leaves"), timeout=TIMEOUT_S).ready:
            pass
        assert until_refused(channel, infer_request("leaves", (1, 2, 3, 4))).code() == grpc.StatusCode.UNAVAILABLE
        worker.order("go")
        assert future.result(TIMEOUT_S).raw_output_contents[0] == floats(1, 2, 3, 4)
        assert side.await_stopped().name == "leaves"
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, infer_request("leaves", (1, 2, 3, 4)))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert worker.process.wait(TIMEOUT_S) == 0  # its data channel was closed


def test_stopping_a_model_nobody_knows_is_done_at_once(side: FarSide) -> None:
    side.stop_model(description("never-seen"))
    assert side.await_stopped().name == "never-seen"


def test_one_record_per_request_without_payload(start: object) -> None:
    side: FarSide = start()  # type: ignore[operator]
    side.serve(description("echo"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        before = sum(r["method"].endswith("ModelInfer") for r in side.records)
        assert before == 0
        request = infer_request("echo", (1, 2, 3, 4), request_id="canary-id")
        response = infer(channel, request)
        with pytest.raises(grpc.RpcError):
            infer(channel, infer_request("nope", (1, 2, 3, 4)))
    with side.channel_as(side.pki.unlisted) as channel, pytest.raises(grpc.RpcError):
        infer(channel, infer_request("echo", (1, 2, 3, 4)))
    side.drain()
    side.await_drained()
    records = [r for r in side.records if r["method"].endswith("ModelInfer")]
    good, unknown, denied = records
    assert good["status"] == "OK"
    assert (good["model"], good["version"], good["digest"]) == ("echo", 1, "ab" * 32)
    assert (good["authority"], good["name"], good["tenant"]) == ("clients", "CN=alice,O=tests", "red")
    assert (good["request_bytes"], good["reply_bytes"]) == (request.ByteSize(), response.ByteSize())
    assert 0 < good["latency_us"] < TIMEOUT_S * 1e6
    assert unknown["status"] == "NOT_FOUND"
    assert (denied["status"], denied["tenant"]) == ("PERMISSION_DENIED", "")
    assert "canary" not in repr(side.records)


def test_nothing_is_served_unrecorded(start: object) -> None:
    side: FarSide = start(write=False, limits=Limits(records_waiting=80))  # type: ignore[operator]
    with side.channel_as(side.pki.infer) as channel:
        live = method(channel, "ServerLive")
        for _ in range(80):
            live(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            live(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_inputs_and_outputs_are_gone_from_memory_when_they_are_answered(start: object) -> None:
    canary = b"CANARY-0123456789-IN-A-REQUEST-" * 8
    side: FarSide = start()  # type: ignore[operator]
    worker = side.serve(description("words", inputs=(("INPUT0", "BYTES", (1,)),)), batches_in_flight=1)

    def request() -> pb.ModelInferRequest:
        message = pb.ModelInferRequest(model_name="words")
        message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1])
        message.raw_input_contents.append(len(canary).to_bytes(4, "little") + canary)
        return message

    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "words")
        worker.order("hold")
        call, live = method(channel, "ModelInfer"), method(channel, "ServerLive")
        futures = [call.future(request(), timeout=TIMEOUT_S)]
        worker.batch()
        futures += [call.future(request(), timeout=TIMEOUT_S) for _ in range(3)]
        live(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        assert scan(side.process.pid, {"request": canary}).count("request") > 0  # the scanner sees it while it is there
        futures.pop().cancel()  # its rows leave a batch that is being formed
        live(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        worker.order("go")
        for future in futures:
            assert canary in future.result(TIMEOUT_S).raw_output_contents[0]
        for _ in range(3):  # and what gRPC itself still held is overwritten by what comes next
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
    found = scan(side.process.pid, {"request": canary})
    assert found.count("request") == 0, found.hits


def test_a_drain_frame_is_what_the_supervisor_says(side: FarSide) -> None:
    """A frame that no supervisor may send is logged and dropped; the front end lives."""
    side.channel.send(Drain(grace_s=1).encode()[:-1] + b"?")
    with side.channel_as(side.pki.infer) as channel:
        assert method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S).live


def test_a_model_that_cannot_be_held_is_told_and_others_are_served(start: Any) -> None:
    """Its manifest would be refused; should one get through, it costs its own model."""
    side = start()
    names = {"input_name": "STATE_IN", "output_name": "STATE_OUT"}
    state = {**names, "datatype": "FP32", "shape": (-1,), "initial_shape": (2**45,)}
    side.serve(accumulator("large", states=(state,)))
    assert "MemoryError" in side.await_link_lost().reason
    side.serve(description("echo"))
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        with pytest.raises(grpc.RpcError):
            method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="large"), timeout=TIMEOUT_S)
