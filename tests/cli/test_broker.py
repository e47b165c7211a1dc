"""`hermetic broker`: the operator's commands against a real broker, and configurations that are refused."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hermetic.cli import build
from tests.attestation.broker.world import InThread, World

OPERATOR = """
url = "https://localhost:{port}"
authority = "services-ca.pem"
certificate = "operator.pem"
key = "operator.key"
token_key = "token.key"
issuer = "operator"
role = "operator"
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.clock.now = datetime.now(UTC)  # the commands sign with the machine's time
    return world


@pytest.fixture
def broker(world: World) -> Iterator[InThread]:
    with world.start() as running:
        port = running.running.listeners.ports[1]
        (world.folder / "operator.toml").write_text(OPERATOR.format(port=port))
        yield running


def run(world: World, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(build(), ["broker", *arguments, "--operator", str(world.folder / "operator.toml")])
    assert result.exit_code == code, result.output
    return result.stdout


def test_upload_and_list(world: World, broker: InThread) -> None:
    (world.folder / "secret").write_bytes(os.urandom(32))
    facts = ["--name", "cli", "--version", "2", "--manifest-digest", "ab" * 32, "--publisher", "P"]
    upload = ["upload", "kbs:///models/key/cli", "--secret", str(world.folder / "secret"), *facts]
    run(world, *upload)
    run(world, *upload, code=6)  # create-only
    run(world, "upload", "kbs:///plain/secret/x", "--secret", str(world.folder / "secret"))
    entries = json.loads(run(world, "keys", "--json"))
    assert [entry["resource"] for entry in entries] == ["models/key/cli", "plain/secret/x"]
    assert entries[0]["model"]["name"] == "cli"
    assert "(no model)" in run(world, "keys")


def test_retire_and_lower(world: World, broker: InThread) -> None:
    run(world, "retire", "cli", "--below", "3")
    assert json.loads(run(world, "floors", "--json")) == {"cli": 3}
    lower = ["lower-floor", "cli", "--to", "1", "--reason", "a test"]
    run(world, *lower, code=6)  # this role may not
    run(world, *lower, "--role", "rollback")
    assert json.loads(run(world, "floors", "--json")) == {"cli": 1}


def test_a_digest_that_is_no_hex_is_a_usage_error(world: World, broker: InThread) -> None:
    (world.folder / "secret").write_bytes(bytes(32))
    arguments = ["upload", "kbs:///a/b/c", "--secret", str(world.folder / "secret"), "--name", "n"]
    run(world, *arguments, "--manifest-digest", "zz", code=2)


def test_an_operators_file_with_an_unknown_key_is_a_usage_error(world: World, broker: InThread) -> None:
    path = world.folder / "operator.toml"
    path.write_text(path.read_text() + "\nmore = 1\n")
    run(world, "keys", code=2)


def test_no_broker_is_said_by_its_exit_code(world: World, broker: InThread) -> None:
    path = world.folder / "operator.toml"
    path.write_text(OPERATOR.format(port=1))
    run(world, "keys", code=6)
