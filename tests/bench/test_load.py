"""The load client against servers that answer rightly, wrongly, sometimes, with an error, and not at all."""

import itertools
import threading
from typing import Any

import grpc
import pytest

from hermetic.bench.echo_server import Canned, echo_server
from hermetic.bench.load import ERRORS_LIMIT, Job, PythonLoad
from hermetic.bench.quick import mlp_questions
from hermetic.bench.target import Endpoint
from hermetic.bench.throwaway_tls import TlsFiles
from hermetic.bench.traffic import METHOD, question, right_reply
from hermetic.errors import MeasurementError
from hermetic.protos.inference import grpc_service_pb2

from .conftest import Serve

QUESTIONS = mlp_questions("mlp")
REPLY_OF = {q.request: right_reply("mlp", q.answer) for q in QUESTIONS}
HUNDRED = Job(concurrency=8, seconds=1, calls=100)


def answer(request: bytes, _: Any) -> bytes:
    return REPLY_OF[request]


def test_a_hundred_right_answers(serve: Serve) -> None:
    asked = []

    def count(request: bytes, context: Any) -> bytes:
        asked.append(request)
        return answer(request, context)

    with serve(count) as target:
        point = PythonLoad().measure(target, QUESTIONS, HUNDRED)
    assert (point.calls, point.errors, len(asked)) == (100, {}, 100)
    assert len(set(asked)) == 8  # each slot asks its own question
    assert 0 < point.p50_ms <= point.p99_ms
    assert point.client_cpu_us is not None
    assert point.server_cpu_us is None  # nobody told which processes


def test_a_window_of_time(serve: Serve) -> None:
    with serve(answer) as target:
        point = PythonLoad().measure(target, QUESTIONS, Job(concurrency=2, seconds=0.2, warm_up_s=0.05))
    assert point.calls > 0
    assert point.errors == {}


def test_one_wrong_answer_in_a_hundred_is_counted(serve: Serve) -> None:
    number = itertools.count()
    lock = threading.Lock()

    def sometimes(request: bytes, context: Any) -> bytes:
        with lock:
            last = next(number) == 99
        return right_reply("mlp", [9.0] * 10) if last else answer(request, context)

    with serve(sometimes) as target:
        point = PythonLoad().measure(target, QUESTIONS, HUNDRED)
    assert (point.calls, point.errors) == (99, {"wrong answer": 1})


def test_error_statuses_are_counted_by_name_and_text(serve: Serve) -> None:
    def refuse(_: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        return b""

    with serve(refuse) as target:
        point = PythonLoad().measure(target, QUESTIONS, HUNDRED)
    assert point.calls == 0
    assert point.errors.keys() == {"RESOURCE_EXHAUSTED queue full"}
    # It does not go on for ever: no request is sent after the limit, those under way are awaited.
    assert ERRORS_LIMIT <= point.errors["RESOURCE_EXHAUSTED queue full"] <= ERRORS_LIMIT + HUNDRED.concurrency


def test_no_server_is_an_error(tls: TlsFiles) -> None:
    nobody = Endpoint("localhost:1", tls.ca, tls.client_certificate, tls.client_key)
    point = PythonLoad().measure(nobody, QUESTIONS, Job(concurrency=1, seconds=0.1, warm_up_s=0))
    assert point.calls == 0
    assert all(error.startswith("UNAVAILABLE") for error in point.errors)
    assert point.errors


def test_the_echo_refuses_a_client_without_the_right_certificate(tls: TlsFiles) -> None:
    # Mutual TLS at the baseline too: without it the comparison would not be fair.
    with echo_server(Canned({METHOD: REPLY_OF[QUESTIONS[0].request]})) as target:
        # Another authority's client.
        stranger = Endpoint(target.address, target.ca_file, tls.client_certificate, tls.client_key)
        point = PythonLoad().measure(stranger, QUESTIONS, Job(concurrency=1, seconds=0.1, calls=1))
    assert point.calls == 0
    assert point.errors


def test_a_measured_process_that_is_gone(serve: Serve, tls: TlsFiles) -> None:
    with serve(answer) as target:
        lost = Endpoint(target.address, tls.ca, tls.client_certificate, tls.client_key, (2**22 + 1,))
        with pytest.raises(MeasurementError, match="process 4194305 of the measured server has ended"):
            PythonLoad().measure(lost, QUESTIONS, HUNDRED)


def test_the_request_is_what_a_v2_server_reads() -> None:
    request = grpc_service_pb2.ModelInferRequest.FromString(question("mlp", [0.5] * 512, [0.0] * 10).request)
    assert (request.model_name, list(request.inputs[0].shape)) == ("mlp", [1, 512])
    assert len(request.raw_input_contents[0]) == 4 * 512
