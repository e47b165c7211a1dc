"""Traces of a real front end: which requests are sampled, what is noted of them, and that nothing else is."""

from typing import Any, cast

import pytest

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.asking import NewWork
from hermetic.server.batcher import Batcher
from hermetic.server.dispatch import Dispatcher
from hermetic.server.infer import Inference
from hermetic.server.messages import ModelReady
from hermetic.server.models import Models, ServedModel
from hermetic.server.sequence_inference import DecoupledInference, IterativeInference, SequenceInference
from hermetic.server.shaping import Shaping
from hermetic.server.shared_messages import TraceOfRequest
from hermetic.server.statistics import ModelStatistics
from hermetic.server.trace_rules import TraceChange, TraceRules, TraceSetting
from hermetic.server.tracing import TRACES_WAITING, Tracer, note_times, traced
from hermetic.server.work import Work
from tests.server.calls import TIMEOUT_S, await_ready, infer, infer_request, method
from tests.server.conversation import Conversation
from tests.server.far_side import FarSide, description

ALL = ("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END",
       "REQUEST_END")  # fmt: skip


OFF = TraceChange(level="OFF")


def rules(**setting: Any) -> TraceRules:
    return TraceRules(file="t", default=TraceSetting(**{"level": "TIMESTAMPS", "rate": 1, **setting}))


def await_traces(side: FarSide, count: int) -> list[TraceOfRequest]:
    """The front end hands them over every quarter of a second."""
    with side.channel_as(side.pki.infer) as channel:
        while len(side.traces) < count:
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
    return list(side.traces)


def moments(trace: TraceOfRequest) -> list[int]:
    return [ns for _, ns in trace.moments]


def test_every_moment_is_there_and_in_its_order(start: object) -> None:
    side: FarSide = start(trace=rules())  # type: ignore[operator]
    side.serve(description("echo"))
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        for _ in range(3):
            infer(channel, infer_request("echo", (1, 2, 3, 4), request_id="canary"))
    traces = await_traces(side, 3)
    for trace in traces:
        assert tuple(name for name, _ in trace.moments) == ALL
        assert moments(trace) == sorted(moments(trace))
        assert (trace.model, trace.version, trace.scope) == ("echo", 1, "")
    assert "canary" not in repr(traces)


def test_one_in_every_rate_and_count_in_all(start: object) -> None:
    models = {"echo": TraceChange(rate=2, count=3), "other": TraceChange(level="OFF")}
    side: FarSide = start(trace=rules().model_copy(update={"models": models}))  # type: ignore[operator]
    for name in ("echo", "other", "third"):
        side.serve(description(name))
    with side.channel_as(side.pki.infer) as channel:
        for name in ("echo", "other", "third"):
            await_ready(channel, name)
            for _ in range(10):
                infer(channel, infer_request(name, (1, 2, 3, 4)))
    traces = await_traces(side, 13)
    assert [trace.scope for trace in traces] == ["echo"] * 3 + [""] * 10
    assert {trace.model for trace in traces[3:]} == {"third"}


def test_streams_are_traced_and_requests_that_fail(start: object) -> None:
    side: FarSide = start(trace=rules())  # type: ignore[operator]
    worker = side.serve(description("echo"))
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
        with Conversation(channel) as stream:
            stream.ask(infer_request("echo", (1, 2, 3, 4)))
            stream.raw()
        worker.order("hold")
        cancelled = method(channel, "ModelInfer").future(infer_request("echo", (1, 2, 3, 4)), timeout=TIMEOUT_S)
        worker.batch()
        worker.batch()
        cancelled.cancel()
        lost = method(channel, "ModelInfer").future(infer_request("echo", (1, 2, 3, 4)), timeout=TIMEOUT_S)
        await_traces(side, 2)
        worker.kill()
        assert lost.exception(TIMEOUT_S) is not None
    streamed, *failed = await_traces(side, 3)
    assert tuple(name for name, _ in streamed.moments) == ALL
    for trace in failed:
        assert tuple(name for name, _ in trace.moments) == ("REQUEST_START", "QUEUE_START", "REQUEST_END")


def test_traces_that_nobody_takes_are_dropped_and_counted() -> None:
    frames: list[bytes] = []

    def busy(frame: bytes) -> bool:
        frames.append(frame)
        return False

    tracer = Tracer(Models(), busy)
    tracer.follow(rules())
    for at in range(TRACES_WAITING + 7):
        tracer._keep(TraceOfRequest(model="m", version=1, scope="", moments=(("REQUEST_START", at),)))
    tracer.flush()
    assert len(frames) == 1  # not taken: tried again later
    assert (len(tracer._waiting), tracer._dropped) == (TRACES_WAITING, 7)


class OneModel(Models):
    """The models of a front end that holds one."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self._model = model

    def held(self) -> list[ServedModel]:
        return [self._model]


@pytest.mark.parametrize("plain", [Inference, SequenceInference, DecoupledInference, IterativeInference])
def test_nothing_is_in_the_way_of_a_request_while_its_model_is_not_traced(plain: NewWork) -> None:
    """What runs a request is the class that the model was made with, and no dispatcher tells of batches."""
    description_ = description("echo")
    ready = ModelReady(
        description=description_, instance=0, buffers=2, batches_in_flight=1, variable_tensor_bytes=1,
        max_queue_delay_us=0, requests_waiting=1,
    )  # fmt: skip
    statistics = ModelStatistics()
    batcher: Batcher[Work] = Batcher(1, (1,), 0.0, 1)
    dispatcher = Dispatcher(batcher, statistics, lambda _: None, lambda *_: None, shaping=Shaping(batched=True))
    model = ServedModel(ready, dispatcher, statistics, plain)
    tracer = Tracer(OneModel(model), lambda _: True)
    seen = []
    for now in (TraceRules(), rules(), TraceRules(file="t"), rules().changed("echo", OFF, frozenset())):
        tracer.follow(now)
        seen.append((model.new_work is plain, dispatcher.on_executed))
    assert seen == [(True, None), (False, note_times), (True, None), (True, None)]
    assert issubclass(cast("type", traced(plain)), cast("type", plain))
