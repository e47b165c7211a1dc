"""`hermetic init` and `hermetic doctor` as commands: what they print, and how they end."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hermetic import cli
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.cli.exit_codes import ExitCode
from hermetic.provision import host
from hermetic.server.config import ServerConfig

RUNNER = CliRunner()


def _run(*arguments: str | Path) -> Result:
    return RUNNER.invoke(cli.build(), [str(argument) for argument in arguments])


def _first_line(result: Result) -> str:
    return " ".join(result.stderr.split())


def test_a_demo_can_be_started_from(tmp_path: Path) -> None:
    result = _run("init", tmp_path / "demo", "--demo", "--tee", "sample", "--server-port", "0", "--json")
    assert result.exit_code == ExitCode.OK, result.stderr
    document = json.loads(result.stdout)
    assert document["demo"] is True
    assert len(document["signed"]) == 4
    assert "NOT SECRET" in result.stderr
    server = ServerConfig.load(tmp_path / "demo/server/server.toml")
    assert (server.profile, server.listen.port, server.attestation.tee) == ("demo", 0, "sample")
    assert BrokerConfig.load(tmp_path / "demo/broker/broker.toml").profile == "demo"


def test_a_demo_waives_what_this_host_lacks_and_nothing_else(tmp_path: Path) -> None:
    _run("init", tmp_path / "demo", "--demo")
    waived = ServerConfig.load(tmp_path / "demo/server/server.toml").isolation.waived
    assert list(waived) == host.lacking_properties()


def test_an_installation_of_ones_own_is_signed_in_a_second_step(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    names = ("--trust-domain", "hospital.example", "--server-name", "inference.hospital.example")
    result = _run("init", folder, *names, "--organisation", "Example Hospital")
    assert result.exit_code == ExitCode.OK, result.stderr
    assert "--sign" in result.stderr
    assert not list(folder.rglob("host.pem"))
    signed = _run("init", folder, "--sign", "--json")
    assert len(json.loads(signed.stdout)["signed"]) == 4
    assert ServerConfig.load(folder / "server/server.toml").profile == "production"


def test_a_second_time_nothing_is_overwritten(tmp_path: Path) -> None:
    assert _run("init", tmp_path / "own").exit_code == ExitCode.OK
    again = _run("init", tmp_path / "own")
    assert again.exit_code == ExitCode.USAGE
    assert "nothing is overwritten" in _first_line(again)


def test_doctor_speaks_json() -> None:
    result = _run("doctor", "--json")
    findings = json.loads(result.stdout)["findings"]
    assert {"machine", "kernel", "worker", "front end", "memory"} <= {finding["area"] for finding in findings}
    lacking = [f for f in findings if f["area"] in ("worker", "front end") and f["state"] == "missing"]
    assert result.exit_code == (ExitCode.ISOLATION_MISSING if lacking else ExitCode.OK)


def test_doctor_refuses_the_drawer_on_a_serving_host(tmp_path: Path) -> None:
    _run("init", tmp_path / "own")
    _run("init", tmp_path / "own", "--sign")
    refused = _run("doctor", "--config", tmp_path / "own/server/server.toml")
    assert refused.exit_code == ExitCode.USAGE
    assert "on a serving host" in _first_line(refused)
    shutil.rmtree(tmp_path / "own/authority")
    accepted = _run("doctor", "--config", tmp_path / "own/server/server.toml")
    assert accepted.exit_code in (ExitCode.OK, ExitCode.ISOLATION_MISSING)


@pytest.mark.parametrize("bad", [("--server-port", "70000"), ("--tee", "crystal-ball"), ("--trust-domain", "A B")])
def test_wrong_arguments_are_usage_errors(tmp_path: Path, bad: tuple[str, str]) -> None:
    assert _run("init", tmp_path / "own", *bad).exit_code == ExitCode.USAGE
