"""`hermetic bench` as people call it."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from hermetic import cli
from hermetic.bench.quick import ECHO, LOOP, SERVER, mlp_questions
from hermetic.bench.target import Endpoint
from hermetic.bench.traffic import right_reply
from hermetic.cli.exit_codes import ExitCode

from .conftest import Serve

RUNNER = CliRunner()
REPLY_OF = {question.request: right_reply("mlp", question.answer) for question in mlp_questions("mlp")}
QUICK = ("bench", "quick", "--rounds", "1", "--seconds", "0.1", "--concurrency", "2")


def answer(request: bytes, _: Any) -> bytes:
    return REPLY_OF[request]


def of(target: Endpoint) -> list[str]:
    return [
        *("--server", target.address, "--ca", str(target.ca_file)),
        *("--certificate", str(target.certificate_file), "--key", str(target.key_file)),
    ]


def test_quick_measures_a_given_server(serve: Serve, tmp_path: Path) -> None:
    with serve(answer) as target:
        result = RUNNER.invoke(cli.build(), [*QUICK, *of(target), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert "client and server share the cores" in result.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert [row["server"] for row in document["results"]] == [SERVER, ECHO, LOOP]
    assert document["context"]["settings"]["rounds"] == 1
    assert document["context"]["protections"] == {}
    assert document["context"]["load_client"].startswith("python")


def test_a_wrong_answer_gives_no_file(serve: Serve, tmp_path: Path) -> None:
    with serve(lambda *_: right_reply("mlp", [0.0] * 10)) as target:
        result = RUNNER.invoke(cli.build(), [*QUICK, *of(target), "--json", str(tmp_path / "out.json")])
    assert result.exit_code not in {0, ExitCode.INTERNAL}
    assert "wrong answer" in result.output
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", "1,x"], "wanted numbers above 0"),
        (["--concurrency", "0"], "wanted numbers above 0"),
        (["--server", "localhost:1"], "wanted --ca, --certificate and --key"),
        (["--perf-analyzer", "/nowhere/perf_analyzer"], "wanted an executable file"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], said: str) -> None:
    result = RUNNER.invoke(cli.build(), ["bench", "quick", *arguments])
    assert result.exit_code == ExitCode.USAGE
    assert said in " ".join(result.output.split())


def test_unseal_writes_its_file(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = RUNNER.invoke(
        cli.build(), ["bench", "unseal", "--rounds", "1", "--mib", "16", "--threads", "1", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert [row["way"] for row in json.loads(out.read_text())["results"]] == ["sealed", "default", "read", "mapped"]


def test_the_model_is_written(tmp_path: Path) -> None:
    result = RUNNER.invoke(cli.build(), ["bench", "model", str(tmp_path / "mlp")])
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(onnx.load(tmp_path / "mlp" / "model.onnx"), full_check=True)
