"""Requests of many callers in one batch, through the real front end and a worker that waits for orders."""

import random
import time

import grpc
import pytest

from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method
from tests.server.far_side import FarSide, Worker, description


def serve(side: FarSide, name: str, *, function: str = "echo", **changes: object) -> Worker:
    model = {key: changes.pop(key) for key in ("max_batch_size", "shared", "inputs") if key in changes}
    worker = side.serve(description(name, **model), function, **changes)  # type: ignore[arg-type]
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, name)
    return worker


def send(channel: grpc.Channel, model: str, *rows: tuple[float, ...], timeout: float = TIMEOUT_S) -> grpc.Future:
    return method(channel, "ModelInfer").future(infer_request(model, *rows), timeout=timeout)


def answer(future: grpc.Future) -> bytes:
    response: pb.ModelInferResponse = future.result(timeout=TIMEOUT_S)
    return response.raw_output_contents[0]


def test_more_waiting_requests_than_all_buffers_have_rows(side: FarSide) -> None:
    worker = serve(side, "small", max_batch_size=2, buffers=2, batches_in_flight=1)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        futures = [send(channel, "small", (at, at + 0.5, -at, 1)) for at in range(50)]
        worker.batch()  # the first is at the worker
        worker.order("go")
        assert [answer(future) for future in futures] == [floats(at, at + 0.5, -at, 1) for at in range(50)]


def test_requests_gather_while_the_worker_is_busy(side: FarSide) -> None:
    worker = serve(side, "gather", batches_in_flight=1)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        first = send(channel, "gather", (0, 0, 0, 0))
        assert worker.batch()["rows"] == 1
        rest = [send(channel, "gather", *[(at, 1, 2, 3)] * (1 + at % 3)) for at in range(8)]
        method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)  # later on the same connection
        worker.order("go")
        assert answer(first) == floats(0, 0, 0, 0)
        for at, future in enumerate(rest):
            assert answer(future) == floats(at, 1, 2, 3) * (1 + at % 3)
        rows: list[int] = []
        while sum(rows) < 15:
            rows.append(worker.batch()["rows"])
        assert max(rows) > 3
        assert max(rows) <= 8


def test_a_batched_answer_equals_the_answer_alone(side: FarSide) -> None:
    worker = serve(side, "double", function="double", batches_in_flight=1, max_batch_size=4)
    rows = [tuple(random.Random(at).uniform(-9, 9) for _ in range(4)) for at in range(24)]
    with side.channel_as(side.pki.infer) as channel:
        alone = [answer(send(channel, "double", row)) for row in rows]
        worker.order("hold")
        futures = [send(channel, "double", row) for row in rows]
        worker.order("go")
        assert [answer(future) for future in futures] == alone


@pytest.mark.parametrize("shared", [False, True])
def test_tenants_share_a_batch_only_of_a_shared_model(side: FarSide, shared: bool) -> None:
    name = f"tenants-{shared}"
    worker = serve(side, name, shared=shared, batches_in_flight=1)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as red, side.channel_as(side.pki.other) as blue:
        first = send(red, name, (0, 0, 0, 0))
        worker.batch()
        # What is asked before there is a connection leaves in any order, when there is one.
        method(blue, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        futures = [
            send(channel, name, (tenant, at, 0, 0)) for at in range(4) for tenant, channel in ((1, red), (2, blue))
        ]
        for channel in (red, blue):
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        worker.order("go")
        answer(first)
        for at, future in enumerate(futures):
            assert answer(future) == floats(1 + at % 2, at // 2, 0, 0)
        seen: list[tuple[int, set[bytes]]] = []
        while sum(rows for rows, _ in seen) < len(futures):
            report = worker.batch()
            content = bytes.fromhex(report["inputs"][0])
            seen.append((report["rows"], {content[row * 16 : row * 16 + 4] for row in range(report["rows"])}))
    mixed = any(len(tenants) > 1 for _, tenants in seen)
    assert mixed == shared


def test_shapes_are_never_mixed(side: FarSide) -> None:
    worker = serve(side, "shapes", inputs=(("INPUT0", "FP32", (-1,)),), batches_in_flight=1)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        futures = [send(channel, "shapes", tuple(range(1 + at % 3))) for at in range(12)]
        worker.batch()
        worker.order("go")
        assert [answer(future) for future in futures] == [floats(*range(1 + at % 3)) for at in range(12)]


def test_two_workers_serve_one_model(side: FarSide) -> None:
    one = serve(side, "pair", batches_in_flight=1, max_batch_size=1)
    one.order("hold")
    two = side.serve(description("pair", max_batch_size=1), instance=1, batches_in_flight=1)
    with side.channel_as(side.pki.infer) as channel:
        futures = [send(channel, "pair", (at, 0, 0, 0)) for at in range(6)]
        one.batch()
        two.batch()
        one.order("go")
        assert [answer(future) for future in futures] == [floats(at, 0, 0, 0) for at in range(6)]


def test_what_a_lost_worker_was_not_running_yet_is_answered_by_another(side: FarSide) -> None:
    one = serve(side, "survivor", function="double", batches_in_flight=1, buffers=2, max_batch_size=1)
    one.order("hold")
    two = side.serve(description("survivor", max_batch_size=1), "double", instance=1, batches_in_flight=1, buffers=2)
    two.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        futures = [send(channel, "survivor", (at, 0.5, 0, 0)) for at in range(10)]
        one.batch()
        two.batch()
        method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        one.kill()
        two.order("go")
        lost = [at for at, future in enumerate(futures) if future.exception(TIMEOUT_S)]
        assert len(lost) == 1  # the one that was running there
        assert futures[lost[0]].code() == grpc.StatusCode.UNAVAILABLE
        for at, future in enumerate(futures):
            assert at in lost or answer(future) == floats(2 * at, 1, 0, 0)


def test_a_full_queue_is_refused_at_once_and_the_rest_answered(side: FarSide) -> None:
    worker = serve(side, "bounded", max_batch_size=1, buffers=2, batches_in_flight=1, requests_waiting=3)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        futures = [send(channel, "bounded", (at, 0, 0, 0)) for at in range(20)]
        refused = refusals(futures, 15)  # one runs, one forms, three wait
        worker.order("go")
        for at, future in enumerate(futures):
            assert future in refused or answer(future) == floats(at, 0, 0, 0)


def refusals(futures: list[grpc.Future], count: int) -> list[grpc.Future]:
    """Wait until `count` of them have ended, and return those: all were refused. The others are held."""
    deadline = time.monotonic() + TIMEOUT_S
    while len(ended := [future for future in futures if future.done()]) < count:
        assert time.monotonic() < deadline, f"wanted {count} refused, got {len(ended)}"
        time.sleep(0.01)
    assert {future.code() for future in ended} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(ended) == count
    return ended


def test_a_queue_delay_waits_for_company(side: FarSide) -> None:
    worker = serve(side, "delayed", max_queue_delay_us=60_000_000, max_batch_size=3)
    with side.channel_as(side.pki.infer) as channel:
        futures = [send(channel, "delayed", (at, 0, 0, 0)) for at in range(3)]
        assert worker.batch()["rows"] == 3  # full before the delay was over
        assert [answer(future) for future in futures] == [floats(at, 0, 0, 0) for at in range(3)]


def test_a_queue_delay_ends(side: FarSide) -> None:
    worker = serve(side, "delayed-briefly", max_queue_delay_us=20_000)
    with side.channel_as(side.pki.infer) as channel:
        assert answer(send(channel, "delayed-briefly", (7, 0, 0, 0))) == floats(7, 0, 0, 0)
        assert worker.batch()["rows"] == 1


def test_cancelled_requests_leave_the_others_right(side: FarSide) -> None:
    worker = serve(side, "cancels", batches_in_flight=1, max_batch_size=16)
    chance = random.Random(7)
    with side.channel_as(side.pki.infer) as channel:
        for _ in range(4):
            worker.order("hold")
            first = send(channel, "cancels", (0, 0, 0, 0))
            worker.batch()
            futures = [send(channel, "cancels", *[(at, row, 0, 0) for row in range(1 + at % 3)]) for at in range(12)]
            kept = {at for at in range(12) if chance.random() < 0.5}
            for at, future in enumerate(futures):
                if at not in kept:
                    future.cancel()
            method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
            worker.order("go")
            answer(first)
            for at in sorted(kept):
                assert answer(futures[at]) == b"".join(floats(at, row, 0, 0) for row in range(1 + at % 3))
            while worker.batch()["rows"] == 0:
                pass


def test_a_deadline_ends_a_waiting_request_and_frees_its_place(side: FarSide) -> None:
    worker = serve(side, "deadlines", max_batch_size=1, buffers=2, batches_in_flight=1, requests_waiting=1)
    worker.order("hold")
    with side.channel_as(side.pki.infer) as channel:
        first = send(channel, "deadlines", (1, 0, 0, 0))
        worker.batch()
        late = [send(channel, "deadlines", (2, 0, 0, 0), timeout=0.3) for _ in range(2)]
        for future in late:
            error = future.exception(timeout=TIMEOUT_S)
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        again = [send(channel, "deadlines", (3 + at, 0, 0, 0)) for at in range(2)]
        worker.order("go")
        assert answer(first) == floats(1, 0, 0, 0)
        assert [answer(future) for future in again] == [floats(3, 0, 0, 0), floats(4, 0, 0, 0)]


def test_bytes_in_flight_are_bounded(start: object) -> None:
    from hermetic.server.config import Limits

    limits = Limits(message_bytes=1300, bytes_in_flight_per_client=2000, bytes_in_flight=4000, message_wait_s=1)
    side: FarSide = start(limits=limits)  # type: ignore[operator]
    worker = serve(side, "heavy", inputs=(("INPUT0", "FP32", (300,)),), batches_in_flight=1)
    worker.order("hold")
    row = tuple([1.0] * 300)
    with side.channel_as(side.pki.infer) as red, side.channel_as(side.pki.other) as blue:
        held = send(red, "heavy", row)
        worker.batch()
        with pytest.raises(grpc.RpcError, match="room for a message") as caught:
            infer(red, infer_request("heavy", row))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        other = send(blue, "heavy", row)
        with side.channel_as(side.pki.everything) as third:
            method(third, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
        worker.order("go")
        assert answer(held) == answer(other) == floats(*row)
        assert answer(send(red, "heavy", row)) == floats(*row)  # what was taken was given back
