"""Back-ups: what is in one, where it may be put, and that an old one is noticed; by the commands, on a whole broker."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.state.backup import Backup, back_up
from hermetic.attestation.broker.state.record import read_record
from hermetic.attestation.log import NoteSigner
from hermetic.attestation.log.record import parse_record
from hermetic.cli import build
from hermetic.cli.exit_codes import ExitCode
from hermetic.errors import ConfigurationError, HermeticError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.state.conftest import Settings
from tests.attestation.broker.state.test_brokers import share
from tests.attestation.broker.world import ORIGIN, World

DIGEST = b"\5" * 32


@pytest.fixture(params=["folder", "sqlite", "postgres"])
def kept(request: pytest.FixtureRequest, world: World) -> World:
    """A world whose broker keeps its state in one of the ways, with a key, a floor and a release in it."""
    if request.param != "folder":
        share(world, made_settings(request, request.param))
    return world


def made_settings(request: pytest.FixtureRequest, kind: str) -> Settings:
    from hermetic.attestation.broker.config import SqliteState
    from tests.attestation.broker.state.conftest import of_postgres

    if kind == "sqlite":
        return SqliteState(kind="sqlite", file=request.getfixturevalue("tmp_path") / "state.sqlite")
    return of_postgres(request.getfixturevalue("postgres"))


def fill(world: World) -> bytes:
    key = os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/m/2", key, "m", 2, DIGEST)
        with broker.operator() as operator:
            operator.retire("m", 2)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        assert guest.open(guest.resource("models/m/2")) == key
    return key


def config(world: World) -> BrokerConfig:
    return BrokerConfig.load(world.folder / "broker.toml")


def signer(world: World) -> NoteSigner:
    return NoteSigner.parse((world.folder / "log.key").read_text())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["broker", *map(str, arguments)])


def said(result: Result) -> str:
    """What the command refused with."""
    assert result.exit_code in (ExitCode.NOT_GENUINE, ExitCode.USAGE), result.output
    return " ".join(result.output.split())


def emptied(world: World, tmp_path: Path) -> Path:
    """The same configuration on a machine that has nothing yet."""
    for name in ("log", "store", "log-2"):
        shutil.rmtree(world.folder / name, ignore_errors=True)
    share_anew = config(world)
    if share_anew.state is not None:
        text = (world.folder / "broker.toml").read_text()
        start, end = text.index("[state]"), text.index("[log]\n")
        text = text[:start] + f"[state]\nkind = 'sqlite'\nfile = {str(tmp_path / 'other.sqlite')!r}\n" + text[end:]
        (world.folder / "broker.toml").write_text(text)
    return world.folder / "broker.toml"


def test_a_broker_is_restored_whole(kept: World, tmp_path: Path) -> None:
    key = fill(kept)
    toml, file = kept.folder / "broker.toml", tmp_path / "backup"
    assert run("backup", file, "--config", toml).exit_code == 0
    head = tmp_path / "head"
    head.write_bytes(read_record(config(kept), signer(kept).verifier()).note)
    verified = run("record", "verify", "--config", toml, "--against", head)
    assert verified.exit_code == 0, verified.output
    content = file.read_bytes()
    assert key not in content
    assert b"models/m/2" not in content  # not even names
    toml = emptied(kept, tmp_path)
    restored = run("restore", file, "--config", toml, "--not-behind", head)
    assert restored.exit_code == 0, restored.output
    assert run("record", "verify", "--config", toml, "--against", head).exit_code == 0
    with kept.start() as broker, broker.http() as http:
        with broker.operator() as operator:
            assert operator.floors() == {"m": 2}
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        assert guest.open(guest.resource("models/m/2")) == key


def test_an_old_back_up_is_refused_unless_the_loss_is_accepted(world: World, tmp_path: Path) -> None:
    fill(world)
    toml, file, head = world.folder / "broker.toml", tmp_path / "backup", tmp_path / "head"
    assert run("backup", file, "--config", toml).exit_code == 0
    with world.start() as broker, broker.operator() as operator:
        operator.revoke_leases({"model": "m"}, "stolen")
    head.write_bytes(read_record(config(world), signer(world).verifier()).note)
    emptied(world, tmp_path)
    refused = run("restore", file, "--config", toml, "--not-behind", head)
    assert "behind a checkpoint" in said(refused)
    assert not (world.folder / "log").exists()
    accepted = run("restore", file, "--config", toml, "--not-behind", head, "--accept-loss", "the disk is gone")
    assert accepted.exit_code == 0, accepted.output
    last = world.records()[-1]
    assert (last.kind, last.fields["reason"]) == ("broker.restored", "the disk is gone")
    assert int(last.fields["lost"]) >= 3
    # And whoever kept the checkpoint sees it, for ever.
    behind = run("record", "verify", "--config", toml, "--against", head)
    assert "have not the root of the checkpoint given" in said(behind) or "is missing" in said(behind)


def test_nothing_is_restored_over_something(world: World, tmp_path: Path) -> None:
    fill(world)
    toml, file = world.folder / "broker.toml", tmp_path / "backup"
    assert run("backup", file, "--config", toml).exit_code == 0
    again = run("backup", file, "--config", toml)
    assert "File exists" in said(again)
    refused = run("restore", file, "--config", toml)
    assert "empty key store" in said(refused)
    shutil.rmtree(world.folder / "store")
    refused = run("restore", file, "--config", toml)
    assert "empty log" in said(refused)


@pytest.mark.parametrize("damage", ["bit", "cut", "another key", "no back-up"])
def test_a_back_up_that_is_not_ours_is_refused(world: World, damage: str) -> None:
    fill(world)
    data = bytearray(back_up(config(world), signer(world)).seal(signer(world)))
    key = signer(world)
    match damage:
        case "bit":
            data[len(data) // 2] ^= 1
        case "cut":
            del data[-1]
        case "another key":
            key = NoteSigner.generate(ORIGIN)
        case _:
            data = bytearray(b"something else")
    with pytest.raises(ConfigurationError, match="back-up: expected"):
        Backup.open(bytes(data), key, ORIGIN)


def test_a_back_up_names_no_file_outside_the_key_store(world: World) -> None:
    from hermetic.attestation.broker.state.backup import Demand, restore

    fill(world)
    taken = back_up(config(world), signer(world))
    emptied(world, world.folder)
    hostile: dict[str, Any] = {"../outside.key": b"x"}
    with pytest.raises(HermeticError, match="expected a file of a key store"):
        restore(config(world), Backup(taken.origin, taken.record, hostile), signer(world), Demand(), world.clock)
    assert parse_record(taken.record.entries[0]).kind == "broker.started"


def test_an_older_database_put_back_is_noticed_by_checkpoints(world: World, tmp_path: Path) -> None:
    from hermetic.attestation.broker.config import SqliteState

    share(world, SqliteState(kind="sqlite", file=tmp_path / "state.sqlite"))
    fill(world)
    shutil.copytree(tmp_path, older := world.folder / "older", ignore=shutil.ignore_patterns("older", "*.pem", "*.key"))
    with world.start() as broker, broker.operator() as operator:
        operator.revoke_leases({"model": "m"}, "stolen")
    head = tmp_path / "head"
    head.write_bytes(read_record(config(world), signer(world).verifier()).note)
    for file in older.glob("state.sqlite*"):
        shutil.copy(file, tmp_path / file.name)
    toml = world.folder / "broker.toml"
    assert run("record", "verify", "--config", toml).exit_code == 0  # by itself it is a whole log
    behind = run("record", "verify", "--config", toml, "--against", head)
    assert "is missing: the checkpoint given counts" in said(behind)
