"""A generation takes over from the one before, and a link that was given up is told and made anew."""

import os
import signal
from collections.abc import Iterator

import grpc
import pytest

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.messages import ModelStopped, Repository, RepositoryEntry, WorkerStopped
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method, until_refused
from tests.server.far_side import FarSide, Pki, description, settings


@pytest.fixture(scope="module")
def side(pki: Pki) -> Iterator[FarSide]:
    far_side = FarSide(pki, settings(pki))
    yield far_side
    far_side.close()


@pytest.fixture
def channel(side: FarSide) -> Iterator[grpc.Channel]:
    with side.channel_as(side.pki.everything) as channel:
        yield channel


def answer(channel: grpc.Channel, model: str) -> bytes:
    return infer(channel, infer_request(model, (1, 2, 3, 4))).raw_output_contents[0]


def test_a_generation_takes_over_without_a_refusal_and_the_old_one_finishes(
    side: FarSide, channel: grpc.Channel
) -> None:
    old, new = floats(1, 2, 3, 4), floats(2, 4, 6, 8)
    first = side.serve(description("swap"))
    await_ready(channel, "swap")
    first.order("hold")
    waiting = method(channel, "ModelInfer").future(infer_request("swap", (1, 2, 3, 4)), timeout=TIMEOUT_S)
    first.batch()
    side.serve(description("swap"), "double", report=False, generation=2)
    # Until the front end has read the frame a request goes to the old generation, which holds it for now.
    others: list[grpc.Future] = []
    while True:
        request = method(channel, "ModelInfer").future(infer_request("swap", (1, 2, 3, 4)), timeout=TIMEOUT_S)
        try:
            if request.result(0.2).raw_output_contents[0] == new:
                break
        except grpc.FutureTimeoutError:
            others.append(request)
    assert method(channel, "ServerReady")(pb.ServerReadyRequest(), timeout=TIMEOUT_S).ready
    side.stop_model(description("swap"))
    assert answer(channel, "swap") == new
    assert side.frames.empty(), "the old generation still has requests"
    first.order("go")
    assert waiting.result(TIMEOUT_S).raw_output_contents[0] == old
    assert {future.result(TIMEOUT_S).raw_output_contents[0] for future in others} <= {old, new}
    assert side.await_stopped() == ModelStopped(name="swap", version=1, generation=1)
    assert first.process.wait(TIMEOUT_S) == 0
    assert answer(channel, "swap") == new


def test_a_link_that_comes_after_its_successor_changes_nothing(side: FarSide, channel: grpc.Channel) -> None:
    side.serve(description("late"), "double", report=False, generation=2)
    await_ready(channel, "late")
    late = side.serve(description("late"), report=False, generation=1)
    assert late.process.wait(TIMEOUT_S) == 0  # its data channel was closed
    assert answer(channel, "late") == floats(2, 4, 6, 8)


def test_a_generation_that_has_taken_over_can_go_too(side: FarSide, channel: grpc.Channel) -> None:
    side.serve(description("goes"), report=False)
    side.serve(description("goes"), report=False, generation=2)
    await_ready(channel, "goes")
    side.stop_model(description("goes"), 2)
    assert side.await_stopped().generation == 2
    assert until_refused(channel, infer_request("goes", (1, 2, 3, 4))).code() == grpc.StatusCode.NOT_FOUND
    side.stop_model(description("goes"), 1)
    assert side.await_stopped().generation == 1


def test_a_link_that_is_given_up_is_told_and_its_successor_is_taken(side: FarSide, channel: grpc.Channel) -> None:
    worker = side.serve(description("liar"), report=False, instance=3, link=7)
    await_ready(channel, "liar")
    worker.order("garbage")
    lost = side.await_link_lost()
    assert (lost.name, lost.version, lost.generation, lost.instance, lost.link) == ("liar", 1, 1, 3, 7)
    assert "wanted" in lost.reason
    side.serve(description("liar"), report=False, instance=3, link=8)
    await_ready(channel, "liar")
    assert answer(channel, "liar") == floats(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("lease_over", "code"),
    [(True, grpc.StatusCode.UNAVAILABLE), (False, grpc.StatusCode.DEADLINE_EXCEEDED)],
)
def test_callers_of_a_worker_that_was_ended_hear_why_however_late_the_front_end_looks(
    side: FarSide, channel: grpc.Channel, lease_over: bool, code: grpc.StatusCode
) -> None:
    """It finds the worker's end and a heap of its supervisor's frames in the same turn; the word why is the last."""
    name = f"ended-{lease_over}"
    worker = side.serve(description(name), batches_in_flight=1, link=7)
    await_ready(channel, name)
    worker.order("hold")
    asked = [method(channel, "ModelInfer").future(infer_request(name, (1, 2, 3, 4)), timeout=TIMEOUT_S)]
    worker.batch()
    os.kill(side.process.pid, signal.SIGSTOP)
    try:
        asked += [method(channel, "ModelInfer").future(infer_request(name, (1, 2, 3, 4)), timeout=TIMEOUT_S)]
        for _ in range(20):
            side.publish(RepositoryEntry(name="listed", version=1, state="LOADING"))
        stopped = WorkerStopped(
            name=name, version=1, generation=1, instance=0, link=7, reason="because", lease_over=lease_over
        )
        side.channel.send(stopped.encode())
        worker.kill()
    finally:
        os.kill(side.process.pid, signal.SIGCONT)
    assert asked[0].exception(TIMEOUT_S).code() == code
    assert ("lease is over" in asked[0].details()) == lease_over
    assert asked[1].exception(TIMEOUT_S).code() in (code, grpc.StatusCode.UNAVAILABLE)
    assert side.await_link_lost().reason == "because"


def test_a_stopped_model_tells_of_no_lost_link(side: FarSide, channel: grpc.Channel) -> None:
    side.serve(description("leaves-in-peace"), report=False)
    await_ready(channel, "leaves-in-peace")
    side.stop_model(description("leaves-in-peace"))
    side.await_stopped()
    assert side.lost_links.empty()


def test_a_long_list_of_models_comes_in_parts(side: FarSide, channel: grpc.Channel) -> None:
    entries = [RepositoryEntry(name=f"listed-{n}", version=1, state="LOADING") for n in range(3)]
    side.channel.send(Repository(models=tuple(entries[:2]), more=True).encode())
    side.channel.send(Repository(models=tuple(entries[2:])).encode())
    index = method(channel, "RepositoryIndex")
    while True:
        listed = {m.name for m in index(pb.RepositoryIndexRequest(), timeout=TIMEOUT_S).models if "listed" in m.name}
        if listed:
            break
    assert listed == {"listed-0", "listed-1", "listed-2"}
