"""The whole of `bench quick` on small numbers: real processes, real mutual TLS, no assertion on time."""

import json
from pathlib import Path

import pytest

from hermetic.bench import quick, report
from hermetic.bench.context import context
from hermetic.bench.echo_server import Canned, echo_server
from hermetic.bench.load import PythonLoad
from hermetic.bench.point import Point
from hermetic.bench.target import Endpoint
from hermetic.bench.traffic import METHOD, right_reply
from hermetic.errors import ConfigurationError, MeasurementError

SMALL = quick.Settings(concurrencies=(1, 4), rounds=2, seconds=0.05, calls=100)
QUESTIONS = quick.mlp_questions("mlp")
RIGHT = Canned({METHOD: right_reply("mlp", QUESTIONS[0].answer)})  # for the first question


def test_the_document_has_the_promised_shape(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []
    with echo_server(RIGHT) as target:
        series = quick.quick(
            target, QUESTIONS[:1], PythonLoad(), SMALL, on_point=lambda name, at, _: heard.append((name, at))
        )
    facts = context() | {
        "server": quick.SERVER,
        "load_client": PythonLoad.name,
        "shared_machine": report.SHARED_MACHINE,
        "settings": {"rounds": SMALL.rounds},
        "protections": {},
    }
    document = report.quick_document(series, quick.SERVER, facts)
    report.write_json(document, tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())

    assert read.keys() == {"results", "context"}
    assert [(r["server"], r["concurrency"]) for r in read["results"]] == [
        (name, at) for name in (quick.SERVER, quick.ECHO, quick.LOOP) for at in (1, 4)
    ]
    for result in read["results"]:
        assert result.keys() == {"model", "concurrency", "server", "throughput", "p50_ms", "p99_ms"}
        assert result["throughput"] > 0
        assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert {row["errors"] for row in read["context"]["rounds"]} == {0}
    assert [row["calls"] for row in read["context"]["rounds"][:4]] == [[100, 100]] * 4
    assert read["context"]["ratios"].keys() == {f"throughput / {quick.ECHO}", f"throughput / {quick.LOOP}"}
    # Turns: the second round begins with another subject.
    first, second = heard[: len(heard) // 2], heard[len(heard) // 2 :]
    assert (first[0][0], second[0][0]) == (quick.SERVER, quick.ECHO)
    assert sorted(first) == sorted(second)

    notes = "\n".join(report.quick_notes(document["context"]))
    assert PythonLoad.name in notes
    assert report.SHARED_MACHINE in notes
    assert "not known" in notes
    report.quick_table(document)


def test_a_wrong_answer_ends_the_run() -> None:
    wrong = Canned({METHOD: right_reply("mlp", [0.0] * 10)})
    with (
        echo_server(wrong) as target,
        pytest.raises(MeasurementError, match=r"hermetic at concurrency 1: .*wrong answer: \d+"),
    ):
        quick.quick(target, QUESTIONS[:1], PythonLoad(), SMALL)


def test_somebody_elses_answer_ends_the_run() -> None:
    settings = quick.Settings(concurrencies=(4,), rounds=1, seconds=0.05, calls=100)
    with echo_server(RIGHT) as target, pytest.raises(MeasurementError, match=r"wrong answer: \d+"):
        quick.quick(target, QUESTIONS, PythonLoad(), settings)


def test_missing_files_are_named(tmp_path: Path) -> None:
    target = Endpoint("localhost:1", tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")
    with pytest.raises(ConfigurationError, match=r"ca\.pem: wanted a readable PEM file"):
        quick.quick(target, QUESTIONS, PythonLoad(), SMALL)


def test_medians_and_ratios_are_over_rounds() -> None:
    def series(server: str, *throughputs: float) -> quick.Series:
        return quick.Series(server, "mlp", 8, tuple(Point(10, value, value, value) for value in throughputs))

    ours, echo = series("hermetic", 100, 900, 200), series(quick.ECHO, 50, 100, 400)
    assert ours.median("throughput") == 200
    assert ours.median_or_none("server_cpu_us") is None
    # 2, 9 and 0.5: the median of the ratios, which is not the ratio of the medians.
    assert quick.ratios([ours, echo], "hermetic", quick.ECHO) == {8: 2.0}
    assert quick.ratios([ours], "hermetic", quick.ECHO) == {}
