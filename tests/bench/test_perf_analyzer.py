"""The driver of perf_analyzer, against a stand-in for the binary; the binary itself where it has been fetched."""

import re
from pathlib import Path

import pytest

from hermetic.bench import fetch_perf_analyzer
from hermetic.bench.echo_server import Canned, echo_server, id_field
from hermetic.bench.load import Job
from hermetic.bench.models import MAX_BATCH_SIZE, MLP_WIDTHS
from hermetic.bench.perf_analyzer import PerfAnalyzer, read_csv
from hermetic.bench.quick import mlp_questions
from hermetic.bench.traffic import METHOD, describing_replies, right_reply
from hermetic.errors import ConfigurationError, MeasurementError
from hermetic.protos.inference import grpc_service_pb2

# As perf_analyzer 2.48.0 wrote and printed them.
CSV = """\
Concurrency,Inferences/Second,Client Send,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
8,3393.3,3,1,2226,3067,3360,4323
"""
PRINTED = "Request concurrency: 8\n  Client: \n    Request count: 24759\n    Throughput: 3393.3 infer/sec\n"

QUESTIONS = mlp_questions("mlp")[:1]
ECHO = Canned(
    describing_replies("mlp", MLP_WIDTHS[0], MLP_WIDTHS[-1], MAX_BATCH_SIZE)
    | {METHOD: right_reply("mlp", QUESTIONS[0].answer)}
)
SHORT = Job(concurrency=2, seconds=0.3)


def stand_in(folder: Path, script: str) -> PerfAnalyzer:
    binary = folder / "perf_analyzer"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return PerfAnalyzer(binary)


def test_its_csv_is_read() -> None:
    point = read_csv(CSV, PRINTED)
    assert (point.calls, point.throughput, point.p50_ms, point.p99_ms) == (24759, 3393.3, 2.226, 4.323)


@pytest.mark.parametrize(
    ("table", "printed"),
    [("", PRINTED), (CSV + "16,1,1,1,1,1,1,1\n", PRINTED), (CSV.replace("2226", ""), PRINTED), (CSV, "no count")],
)
def test_what_is_no_result_is_refused(table: str, printed: str) -> None:
    with pytest.raises(MeasurementError, match="perf_analyzer's"):
        read_csv(table, printed)


def test_its_failure_is_told(tmp_path: Path) -> None:
    tool = stand_in(tmp_path, "echo 'failed to get model config: Method not found!' >&2; exit 99")
    with (
        echo_server(ECHO) as target,
        pytest.raises(MeasurementError, match="ended with status 99: failed to get model config"),
    ):
        tool.measure(target, QUESTIONS, SHORT)


def test_answers_are_checked_though_it_does_not_look_at_them(tmp_path: Path) -> None:
    tool = stand_in(tmp_path, "exit 0")
    wrong = Canned({METHOD: right_reply("mlp", [0.0] * 10)})
    with echo_server(wrong) as target:
        assert tool.measure(target, QUESTIONS, SHORT).errors.keys() == {"wrong answer"}


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="wanted an executable file, got"):
        PerfAnalyzer(tmp_path / "perf_analyzer")


def test_the_wheels_are_pinned_by_hash() -> None:
    lines = fetch_perf_analyzer.REQUIREMENTS.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


def test_what_has_been_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for name in ("perf_analyzer", "lib/libcudart.so.12"):
        (tmp_path / name).touch()
    assert fetch_perf_analyzer.fetch(tmp_path) == tmp_path / "perf_analyzer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lib", "perf_analyzer"]


@pytest.mark.skipif(fetch_perf_analyzer.find() is None, reason="perf_analyzer has not been fetched")
def test_the_binary_itself() -> None:
    binary = fetch_perf_analyzer.find()
    assert binary is not None
    with echo_server(ECHO) as target:
        point = PerfAnalyzer(binary).measure(target, QUESTIONS, SHORT)
    assert point.calls > 0
    assert 0 < point.p50_ms <= point.p99_ms
    assert point.errors == {}


@pytest.mark.parametrize("request_id", ["", "7", "x" * 100])
@pytest.mark.parametrize("version", ["", "1"])
def test_the_echo_repeats_a_requests_id(request_id: str, version: str) -> None:
    request = grpc_service_pb2.ModelInferRequest.FromString(QUESTIONS[0].request)
    request.id, request.model_version = request_id, version
    reply = ECHO.replies[METHOD] + id_field(request.SerializeToString())
    assert grpc_service_pb2.ModelInferResponse.FromString(reply).id == request_id
