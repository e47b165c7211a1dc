"""Sequences through the real front end, on both transports: Triton's rules and words, states, tenants, ends."""

import hashlib
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from hermetic.enclave.configuration import Control
from hermetic.enclave.model_description import FrontEndFile
from hermetic.server.config import Limits
from tests.server.calls import TIMEOUT_S, await_ready, infer, method
from tests.server.conversation import Conversation, is_final
from tests.server.far_side import FarSide, Worker
from tests.server.raw_http2 import RawConnection
from tests.server.sequence_models import CONTROLS, STATE, accumulator, ask, countdown, observed, refused, request

INVALID = grpc.StatusCode.INVALID_ARGUMENT
STRATEGIES = ("oldest", "direct")


@pytest.fixture(scope="module")
def workers(side: FarSide) -> dict[str, Worker]:
    workers = {strategy: side.serve(accumulator(strategy, strategy=strategy), "accumulate") for strategy in STRATEGIES}
    with side.channel_as(side.pki.infer) as channel:
        for strategy in STRATEGIES:
            await_ready(channel, strategy)
    return workers


@pytest.fixture
def channel(side: FarSide, workers: dict[str, Worker]) -> Iterator[grpc.Channel]:
    with side.channel_as(side.pki.infer) as channel:
        yield channel


def serve(side: FarSide, description: Any, function: str = "accumulate", **changes: Any) -> Worker:
    worker = side.serve(description, function, **changes)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, description.name)
    return worker


@pytest.mark.parametrize("model", STRATEGIES)
def test_a_sequence_keeps_its_state_and_the_model_is_told_where_it_is(channel: grpc.Channel, model: str) -> None:
    # What the model sees: input, start, end, ready, id, state.
    assert ask(channel, model, 1, 9, start=True) == (1, 1, 0, 1, 9, 0)
    assert ask(channel, model, 2, 9) == (2, 0, 0, 1, 9, 1)
    assert ask(channel, model, 4, 9, end=True) == (4, 0, 1, 1, 9, 3)
    assert ask(channel, model, 8, 9, start=True, end=True) == (8, 1, 1, 1, 9, 0)


@pytest.mark.parametrize("model", STRATEGIES)
def test_what_triton_refuses_in_its_words(channel: grpc.Channel, model: str) -> None:
    no_id = f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
    assert refused(channel, request(model, 1)) == (INVALID, no_id)
    assert refused(channel, request(model, 1, "", start=True)) == (INVALID, no_id)
    unknown = (
        f"inference request for sequence 77 to model '{model}' must specify the START flag on the first request "
        "of the sequence"
    )
    assert refused(channel, request(model, 1, 77)) == (INVALID, unknown)
    two = request(model, 1, 5, start=True)
    two.inputs[0].shape[0] = 2
    two.raw_input_contents[0] *= 2
    assert refused(channel, two) == (
        INVALID,
        f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher",
    )


def test_after_its_end_a_sequence_is_unknown(channel: grpc.Channel) -> None:
    ask(channel, "oldest", 1, 21, start=True, end=True)
    assert refused(channel, request("oldest", 1, 21))[0] == INVALID


def test_a_second_start_begins_anew(channel: grpc.Channel) -> None:
    ask(channel, "oldest", 5, 22, start=True)
    assert ask(channel, "oldest", 1, 22, start=True) == (1, 1, 0, 1, 22, 0)
    assert ask(channel, "oldest", 1, 22, end=True)[5] == 1


def test_ids_of_every_kind(channel: grpc.Channel) -> None:
    assert refused(channel, request("oldest", 1, "text", start=True))[0] == INVALID  # its CORRID is a number
    assert ask(channel, "oldest", 1, -3, start=True, end=True)[4] == pytest.approx(2.0**64)
    for kind, value in (("bool_param", True), ("uint64_param", 5), ("double_param", 5.0)):  # as Triton
        wrong = request("oldest", 1, start=True)
        setattr(wrong.parameters["sequence_id"], kind, value)
        code, text = refused(channel, wrong)
        assert (code, "expected int64_param or string_param" in text) == (INVALID, True)


def test_ids_that_are_text(side: FarSide, channel: grpc.Channel) -> None:
    corrid = Control(name="CORRID", kind="CORRID", datatype="BYTES")
    worker = serve(side, accumulator("texts", controls=(*CONTROLS[:3], corrid)))
    assert ask(channel, "texts", 3, "grün", start=True)[5] == 0
    name = "grün".encode()
    assert worker.batch()["inputs"][4] == (struct.pack("<I", len(name)) + name).hex()
    assert ask(channel, "texts", 1, "grün", end=True)[5] == 3
    assert "expected a string" in refused(channel, request("texts", 1, 5, start=True))[1]
    assert "at most 128 bytes" in refused(channel, request("texts", 1, "x" * 129, start=True))[1]


def test_an_id_that_the_control_cannot_hold_is_refused(side: FarSide, channel: grpc.Channel) -> None:
    corrid = Control(name="CORRID", kind="CORRID", datatype="UINT32")
    serve(side, accumulator("narrow", controls=(*CONTROLS[:3], corrid)), report=False)
    assert ask(channel, "narrow", 1, 2**32 - 1, start=True, end=True)[4] == pytest.approx(2.0**32)
    assert "UINT32" in refused(channel, request("narrow", 1, 2**32, start=True))[1]


@pytest.mark.parametrize("model", STRATEGIES)
def test_another_tenants_same_id_is_another_sequence(side: FarSide, channel: grpc.Channel, model: str) -> None:
    """The attack: guess a neighbour's id, and read or push on what is kept for it."""
    ask(channel, model, 1000, 31, start=True)
    with side.channel_as(side.pki.other) as stranger:
        assert refused(stranger, request(model, 1, 31))[0] == INVALID  # not even there
        assert refused(stranger, request(model, 1, 31, end=True))[0] == INVALID
        assert ask(stranger, model, 1, 31, start=True)[5] == 0
        assert ask(stranger, model, 1, 31)[5] == 1
        assert ask(channel, model, 1, 31)[5] == 1000
        ask(stranger, model, 1, 31, end=True)
    assert ask(channel, model, 1, 31, end=True)[5] == 1001


def test_tenants_share_no_batch(side: FarSide, channel: grpc.Channel) -> None:
    worker = serve(side, accumulator("apart", strategy="direct"))
    worker.order("hold")
    with side.channel_as(side.pki.other) as stranger:
        first = method(channel, "ModelInfer").future(request("apart", 1, 1, start=True), timeout=TIMEOUT_S)
        worker.batch()
        futures = [
            method(who, "ModelInfer").future(request("apart", value, 5, start=True), timeout=TIMEOUT_S)
            for who, value in ((channel, 2), (stranger, 3))
        ]
        for future in futures:
            assert not future.done()
        infer(channel, request("oldest", 1, 90, start=True, end=True))  # later on the same connections
        infer(stranger, request("oldest", 1, 90, start=True, end=True))
        worker.order("go")
        assert [observed(future.result(TIMEOUT_S))[0] for future in (first, *futures)] == [1, 2, 3]
    for _ in futures:
        raw = bytes.fromhex(worker.batch()["inputs"][0])
        assert not {2, 3} <= set(struct.unpack(f"<{len(raw) // 4}f", raw))


def test_direct_gives_each_sequence_a_row_and_empty_rows_are_not_ready(side: FarSide, channel: grpc.Channel) -> None:
    worker = serve(side, accumulator("rows", strategy="direct"))
    with Conversation(channel) as talk:
        for at in range(3):
            talk.ask(request("rows", 10 + at, 100 + at, start=True))
            talk.answer()
            worker.batch()
        talk.ask(request("rows", 20, 102))  # the third row alone
        talk.answer()
    batch = worker.batch()
    assert batch["rows"] == 3
    assert batch["inputs"][0] == struct.pack("<3f", 0, 0, 20).hex()
    assert batch["inputs"][3] == "000001"  # READY
    assert batch["inputs"][4] == struct.pack("<3Q", 0, 0, 102).hex()
    assert batch["inputs"][5] == struct.pack("<3f", 0, 0, 12).hex()  # the state of the other rows is not shown


def test_oldest_packs_whatever_sequences_have_requests(side: FarSide, channel: grpc.Channel) -> None:
    worker = serve(side, accumulator("packed"))
    worker.order("hold")
    call = method(channel, "ModelInfer")
    futures = [call.future(request("packed", 1, 1, start=True), timeout=TIMEOUT_S)]
    worker.batch()
    futures += [call.future(request("packed", at, at, start=True), timeout=TIMEOUT_S) for at in range(2, 6)]
    futures.append(call.future(request("packed", 1, 1), timeout=TIMEOUT_S))
    infer(channel, request("oldest", 1, 90, start=True, end=True))  # later on the same connection
    worker.order("go")
    assert [observed(future.result(TIMEOUT_S))[0] for future in futures] == [1, 2, 3, 4, 5, 1]
    rows: list[int] = []
    while sum(rows) < 5:
        rows.append(worker.batch()["rows"])
    assert max(rows) == 4


def test_more_sequences_than_places_wait_their_turn(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, accumulator("few", strategy="direct", rows=2), report=False)
    for sequence in (1, 2):
        ask(channel, "few", 1, sequence, start=True)
    late = [
        method(channel, "ModelInfer").future(request("few", 7, 3, start=start), timeout=TIMEOUT_S)
        for start in (True, False)
    ]
    ask(channel, "oldest", 1, 90, start=True, end=True)
    assert not any(future.done() for future in late)
    ask(channel, "few", 1, 1, end=True)
    assert [observed(future.result(TIMEOUT_S))[5] for future in late] == [0, 7]


def test_a_sequence_that_waits_for_a_place_for_too_long_is_refused(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, accumulator("one", strategy="direct", rows=1), report=False)
    ask(channel, "one", 1, 1, start=True)
    waits = request("one", 1, 2, start=True)
    waits.parameters["timeout"].int64_param = 50_000
    assert refused(channel, waits) == (
        grpc.StatusCode.UNAVAILABLE,
        "timeout of the corresponding sequence has been expired",
    )
    assert ask(channel, "one", 1, 1, end=True)[5] == 1
    assert ask(channel, "one", 1, 2, start=True)[5] == 0


def test_an_idle_sequence_ends_and_gives_its_place_away(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, accumulator("idle", strategy="direct", rows=1, max_idle_us=100_000), report=False)
    ask(channel, "idle", 1, 1, start=True)
    assert ask(channel, "idle", 5, 2, start=True)[5] == 0  # waits for the place until then
    assert refused(channel, request("idle", 1, 1))[0] == INVALID


def test_a_failed_request_leaves_the_sequence_as_it_was(channel: grpc.Channel) -> None:
    """As in Triton."""
    ask(channel, "oldest", 3, 41, start=True)
    assert refused(channel, request("oldest", -1, 41))[0] == grpc.StatusCode.INTERNAL
    assert ask(channel, "oldest", 1, 41, end=True)[5] == 3


def test_a_cancelled_request_that_runs_does_not_end_its_sequence(
    side: FarSide, workers: dict[str, Worker], channel: grpc.Channel
) -> None:
    """As in Triton."""
    worker = serve(side, accumulator("running"))
    ask(channel, "running", 1, 1, start=True)
    worker.batch()
    worker.order("hold")
    future = method(channel, "ModelInfer").future(request("running", 2, 1), timeout=TIMEOUT_S)
    worker.batch()
    future.cancel()
    await_records(side, "running", "CANCELLED", 1)
    worker.order("go")
    assert ask(channel, "running", 4, 1)[5] == 3


def test_a_cancelled_request_that_waits_ends_its_sequence(side: FarSide, channel: grpc.Channel) -> None:
    """As in Triton: what waits behind it was asked on the assumption that it would run."""
    worker = serve(side, accumulator("queued"))
    ask(channel, "queued", 1, 1, start=True)
    worker.batch()
    worker.order("hold")
    call = method(channel, "ModelInfer")
    first = call.future(request("queued", 2, 1), timeout=TIMEOUT_S)
    worker.batch()
    second = call.future(request("queued", 3, 1, request_id="second"), timeout=TIMEOUT_S)
    third = call.future(request("queued", 4, 1), timeout=TIMEOUT_S)
    infer(channel, request("oldest", 1, 90, start=True, end=True))
    second.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        third.result(TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    worker.order("go")
    assert observed(first.result(TIMEOUT_S))[5] == 1
    assert refused(channel, request("queued", 1, 1))[0] == INVALID


def test_a_lost_worker_ends_its_sequences(side: FarSide, channel: grpc.Channel) -> None:
    model = accumulator("dies")
    worker = serve(side, model)
    ask(channel, "dies", 1, 1, start=True)
    worker.batch()
    worker.order("die")
    assert refused(channel, request("dies", 2, 1))[0] == grpc.StatusCode.UNAVAILABLE
    serve(side, model, report=False)
    assert refused(channel, request("dies", 2, 1))[0] == INVALID
    assert ask(channel, "dies", 2, 1, start=True)[5] == 0


def test_states_begin_with_a_file_of_the_payload(side: FarSide, channel: grpc.Channel) -> None:
    content = struct.pack("<f", 42)
    file = FrontEndFile(name="initial_state/first", size=4, sha256=hashlib.sha256(content).hexdigest())
    state = STATE.model_copy(update={"initial_file": file.name})
    model = accumulator("filed", states=(state,), files=(file,))
    serve(side, model, report=False, files={file.name: content})
    assert ask(channel, "filed", 1, 1, start=True)[5] == 42
    assert ask(channel, "filed", 1, 1)[5] == 43
    assert ask(channel, "filed", 1, 1, start=True)[5] == 42


def test_a_worker_that_writes_another_file_is_not_served(side: FarSide, channel: grpc.Channel) -> None:
    """A hostile worker could plant what sequences begin with."""
    file = FrontEndFile(name="first", size=4, sha256=hashlib.sha256(struct.pack("<f", 42)).hexdigest())
    state = STATE.model_copy(update={"initial_file": file.name})
    side.serve(accumulator("planted", states=(state,), files=(file,)), "accumulate", files={"first": b"evil"})
    while side.await_link_lost().name != "planted":  # the first may be from a test before
        pass
    assert refused(channel, request("planted", 1, 1, start=True))[0] == grpc.StatusCode.NOT_FOUND


def test_sequences_in_a_stream(channel: grpc.Channel) -> None:
    with Conversation(channel) as talk:
        for value in (1, 2, 3):
            talk.ask(
                *(
                    request("oldest", value, 200 + at, start=value == 1, end=value == 3, request_id=f"{at}-{value}")
                    for at in range(10)
                )
            )
        answers = [answer.infer_response for answer in talk.rest()]
    assert [answer.id for answer in answers] == [f"{at}-{value}" for value in (1, 2, 3) for at in range(10)]
    assert [observed(answer)[5] for answer in answers] == [0] * 10 + [1] * 10 + [3] * 10


@pytest.mark.parametrize("model", STRATEGIES)
def test_a_model_goes_with_its_sequences(side: FarSide, channel: grpc.Channel, model: str) -> None:
    leaving = accumulator(f"leaving-{model}", strategy=model)
    serve(side, leaving, report=False)
    ask(channel, leaving.name, 1, 1, start=True)
    side.stop_model(leaving)
    side.await_stopped()
    serve(side, leaving, report=False)
    assert refused(channel, request(leaving.name, 1, 1))[0] == INVALID


def test_limits_of_sequences(start: Any) -> None:
    side: FarSide = start(limits=Limits(sequences_per_model=3, sequences_per_client=2))
    serve(side, accumulator("few"), report=False)
    with side.channel_as(side.pki.infer) as channel, side.channel_as(side.pki.other) as other:
        for sequence in (1, 2):
            ask(channel, "few", 1, sequence, start=True)
        code, text = refused(channel, request("few", 1, 3, start=True))
        assert (code, "of this client" in text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        ask(other, "few", 1, 1, start=True)
        code, text = refused(other, request("few", 1, 2, start=True))
        assert (code, "at most 3" in text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        ask(channel, "few", 1, 1, end=True)
        ask(channel, "few", 1, 3, start=True)


def test_with_several_front_ends_a_sequence_that_is_not_here_may_be_elsewhere(start: Any) -> None:
    side: FarSide = start(reuse_port=True)
    serve(side, accumulator("elsewhere"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        code, text = refused(channel, request("elsewhere", 1, 5))
    assert code == INVALID
    assert "must specify the START flag on the first request of the sequence; this server has several" in text


def await_records(side: FarSide, model: str, status: str, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while sum(r.get("model") == model and r["status"] == status for r in side.records) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(answers: list[Any]) -> list[float]:
    return [observed(answer.infer_response)[0] for answer in answers]


def test_an_iterative_request_runs_until_the_model_is_done(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, countdown("count"), "countdown", report=False)
    with Conversation(channel) as talk:
        talk.ask(request("count", 5, request_id="five"))
        answers = talk.rest()
    assert steps(answers) == [0, 1, 2, 3, 4]
    assert [is_final(answer) for answer in answers] == [False] * 4 + [True]
    assert {answer.infer_response.id for answer in answers} == {"five"}
    (record,) = [r for r in side.records if r.get("model") == "count"] or await_and_get(side, "count")
    assert (record["responses"], record["status"]) == (5, "OK")


def await_and_get(side: FarSide, model: str) -> list[dict[str, Any]]:
    await_records(side, model, "OK", 1)
    return [r for r in side.records if r.get("model") == model]


def test_requests_at_different_steps_share_batches(side: FarSide, channel: grpc.Channel) -> None:
    worker = serve(side, countdown("together"), "countdown")
    worker.order("hold")
    with Conversation(channel) as talk:
        talk.ask(request("together", 6, request_id="a"))
        worker.batch()
        talk.ask(request("together", 4, request_id="b"), request("together", 2, request_id="c"), request("nope", 1))
        assert talk.answer().error_message  # so the others have been read
        worker.order("go")
        answers = talk.rest()
    by_id = {name: steps([a for a in answers if a.infer_response.id == name]) for name in "abc"}
    assert by_id == {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3], "c": [0, 1]}
    rows: list[int] = []
    while sum(rows) < 11:
        rows.append(worker.batch()["rows"])
    assert len(rows) == 5  # and the first: six steps of the longest, the others' steps among them
    assert max(rows) == 3


def test_an_iterative_request_ends_at_its_bound(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, countdown("bounded", most=3), "countdown", report=False)
    with Conversation(channel) as talk:
        talk.ask(request("bounded", 100), request("bounded", 3))
        answers = talk.rest()
    errors = [answer.error_message for answer in answers if answer.error_message]
    assert len(answers) == 7
    assert len(errors) == 1
    assert "after 3" in errors[0]


def test_an_iterative_request_that_is_cancelled_stops(side: FarSide, channel: grpc.Channel) -> None:
    endless = countdown("stopped", most=1_000_000)
    worker = serve(side, endless, "countdown", report=False)
    talk = Conversation(channel)
    talk.ask(request("stopped", 1e9))
    talk.answer()
    talk.cancel()
    await_records(side, "stopped", "CANCELLED", 1)
    with Conversation(channel) as again:
        again.ask(request("stopped", 1))
        assert steps(again.rest()) == [0]
    side.stop_model(endless)
    side.await_stopped()
    worker.kill()


def test_a_client_that_reads_slowly_slows_the_model_down(start: Any) -> None:
    """Else a request of few bytes could fill the memory with answers."""
    side: FarSide = start(limits=Limits(reply_timeout_s=1))
    worker = serve(side, countdown("eager"), "countdown", report=False)
    with RawConnection(side.port, side.pki.server_authority.pem, side.pki.infer, window=0) as raw:
        stream = raw.headers("/inference.GRPCInferenceService/ModelStreamInfer")
        raw.data(stream, request("eager", 1e9).SerializeToString(), end=False)
        await_records(side, "eager", "RESOURCE_EXHAUSTED", 1)
    (record,) = [r for r in side.records if r.get("model") == "eager"]
    assert record["responses"] < 100
    worker.kill()


def test_each_iterative_request_is_a_sequence_of_its_own(side: FarSide, channel: grpc.Channel) -> None:
    """Also where a client names one, as perf_analyzer does."""
    serve(side, countdown("own"), "countdown", report=False)
    with Conversation(channel) as talk:
        talk.ask(request("own", 2, 5, start=True), request("own", 2, 5), request("own", 2, 5, end=True))
        assert sorted(steps(talk.rest())) == [0, 0, 0, 1, 1, 1]


def test_modelinfer_on_a_decoupled_model_is_refused_in_tritons_words(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, countdown("decoupled"), "countdown", report=False)
    serve(side, accumulator("decoupled-sequence", decoupled=True), report=False)
    for model in ("decoupled", "decoupled-sequence"):
        assert refused(channel, request(model, 1, 5 if "sequence" in model else 0, start=True)) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "ModelInfer RPC doesn't support models with decoupled transaction policy",
        )


def test_a_decoupled_model_that_is_not_iterative_answers_once(side: FarSide, channel: grpc.Channel) -> None:
    serve(side, accumulator("once", decoupled=True), report=False)
    with Conversation(channel) as talk:
        asked = request("once", 1, 5, start=True)
        asked.parameters["triton_enable_empty_final_response"].bool_param = True
        talk.ask(asked, request("once", 2, 5, end=True))
        answers = talk.rest()
    assert [observed(answer.infer_response)[5] for answer in answers] == [0, 1]
    assert all(is_final(answer) for answer in answers)
