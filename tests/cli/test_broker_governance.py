"""`hermetic broker init|operator-key|propose|sign|submit|governance|record`, and what doctor says of it."""

import functools
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from hermetic.attestation.governance import Change, OperatorKey
from hermetic.attestation.log import NoteSigner
from hermetic.cli import build
from hermetic.provision.brokers import examine_broker
from tests.attestation.broker.stores.softhsm import SoftHsm
from tests.attestation.broker.test_governed import DIGEST, denied, form, released
from tests.attestation.broker.world import Clock, InThread, World

OPERATOR = """
url = "{url}"
authority = "services-ca.pem"
certificate = "operator.pem"
key = "operator.key"
token_key = "token.key"
issuer = "operator"
role = "operator"
"""
RESOURCE = "models/cli/1"


@functools.cache
def commands() -> typer.Typer:
    """Made once: that takes longer than most commands."""
    return build()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(commands(), ["broker", *map(str, arguments)])


def run(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(said: str, *arguments: object) -> None:
    result = invoke(*arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())


class MachineClock(Clock):
    """A clock that goes on."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.clock = MachineClock()  # the commands sign with the machine's time, however long they take
    return world


@pytest.fixture
def people(tmp_path: Path) -> dict[str, Path]:
    return {name: tmp_path / f"{name}.sign" for name in ("alice", "bob", "carol")}


def governance_of(config: Path) -> list[str]:
    """What doctor finds of governance."""
    return [finding.state for finding in examine_broker(config) if finding.name == "governance"]


@pytest.fixture
def broker(world: World, people: dict[str, Path]) -> Iterator[InThread]:
    config = world.write_config(governance="operators")
    assert governance_of(config) == ["missing"]
    signers = []
    for name, path in people.items():
        public = json.loads(run("operator-key", path, "--no-passphrase", "--json"))["public"]
        signers += ["--signer", f"{name}={public}"]
    shown = json.loads(run("init", "--config", config, "--threshold", 2, *signers, "--scope", "carol=march-", "--json"))
    assert shown["operators"] == ["alice", "bob", "carol"]
    assert "models 'latest-'" in shown["policies"]
    assert governance_of(config) == ["good"]
    with world.start() as running:
        (world.folder / "operator.toml").write_text(OPERATOR.format(url=running.admin_url))
        yield running


def test_a_key_from_its_proposal_to_its_release(broker: InThread, people: dict[str, Path], tmp_path: Path) -> None:
    world, key, secret = broker.world, os.urandom(32), tmp_path / "secret"
    reach = ("--operator", world.folder / "operator.toml")
    secret.write_bytes(key)
    facts = ("--name", "cli", "--publisher", "P", "--manifest-digest", DIGEST.hex())
    upload = ("upload", f"kbs:///{RESOURCE}", "--secret", secret, *facts, *reach)
    refuse("one that needs 2", *upload, "--sign-as", f"alice={people['alice']}")
    run(*upload)
    assert RESOURCE in denied_or_pending(broker, reach)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    propose = ("propose", "key", f"kbs:///{RESOURCE}", "--reason", "a test", *reach)
    run(*propose, "--output", one)
    refuse("expected a new file", *propose, "--output", one)
    two.write_bytes(one.read_bytes())
    shown = json.loads(run("sign", one, "--name", "alice", "--key", people["alice"], "--json"))
    assert shown["content"]["model"]["manifest_digest"] == DIGEST.hex()
    run("sign", two, "--name", "bob", "--key", people["bob"])
    refuse("governance.signatures", "submit", one, *reach)
    run("submit", one, two, *reach, "--checkpoint", tmp_path / "kept")
    assert released(broker, RESOURCE) == key
    assert "alice, bob" in run("governance", *reach)
    (world.folder / "log.pub").write_text(NoteSigner.parse((world.folder / "log.key").read_text()).verifier().encode())
    record = ("record", "verify", world.folder / "log", "--key", world.folder / "log.pub")
    events = json.loads(run(*record, "--against", tmp_path / "kept", "--json"))["events"]
    assert [(event["outcome"], event["by"]) for event in events] == [
        ("in force", []), ("refused", ["alice"]), ("in force", ["alice", "bob"])
    ]  # fmt: skip
    own = ("record", "verify", "--config", world.folder / "broker.toml", "--json")
    assert json.loads(run(*own))["events"] == events
    assert "broker init" not in run(*record)
    refuse("expected --config, or a log's folder and --key", *own, "--key", world.folder / "log.pub")


def test_one_operators_closed_key_signs_at_an_upload(world: World, tmp_path: Path, hsm: SoftHsm) -> None:
    """`--sign-as` takes what `sign` takes: a file under a passphrase, or a key in a token."""
    config, phrase, closed = world.write_config(governance="operators"), tmp_path / "phrase", tmp_path / "alice.sign"
    phrase.write_text("correct horse")
    phrase.chmod(0o600)
    asked = ("--passphrase-from", f"file:{phrase}")
    hsm.make_signing_key("hermetic", "bob")
    keys = {"alice": str(closed), "bob": hsm.uri("hermetic", "bob")}
    try:
        made = run("operator-key", closed, *asked, "--json"), run("operator-key", keys["bob"], "--json")
        signers = [("--signer", f"{name}={json.loads(one)['public']}") for name, one in zip(keys, made, strict=True)]
        run("init", "--config", config, "--threshold", 1, *signers[0], *signers[1])
        with world.start() as broker:
            (world.folder / "operator.toml").write_text(OPERATOR.format(url=broker.admin_url))
            for number, (name, where) in enumerate(keys.items(), 1):
                (tmp_path / "secret").write_bytes(os.urandom(32))
                facts = ("--name", "cli", "--version", number, "--publisher", "P", "--manifest-digest", DIGEST.hex())
                reach = ("--secret", tmp_path / "secret", "--operator", world.folder / "operator.toml")
                one = ("upload", f"kbs:///models/cli/{number}", *facts, *reach, "--sign-as", f"{name}={where}")
                run(*one, *(asked if name == "alice" else ()))
            with broker.operator() as admin:
                assert [key["state"] for key in admin.stored_keys()] == ["signed", "signed"]
    finally:
        hsm.destroy_all("hermetic", "bob")


def denied_or_pending(broker: InThread, reach: tuple[object, ...]) -> str:
    assert "release.signed" in denied(broker, RESOURCE)
    pending = json.loads(run("governance", *reach, "--json"))["pending"]
    assert [one["resource"] for one in pending] == [RESOURCE]
    return run("governance", *reach, "--json")


def test_policies_operators_and_floors_are_proposed(broker: InThread, people: dict[str, Path], tmp_path: Path) -> None:
    reach = ("--operator", broker.world.folder / "operator.toml", "--reason", "a test")
    text = tmp_path / "form.toml"
    text.write_text(form("cli", models='["cli-*"]'))
    policy = tmp_path / "policy.json"
    run("propose", "policy", "--form", text, "--prefix", "cli-", "--lease-s", 60, *reach, "--output", policy)
    change = Change.loads(policy.read_bytes())
    assert (change.statement.version, change.content.to_json()["lease_ms"]) == (1, 60_000)
    mallory = tmp_path / "mallory.sign"
    OperatorKey.generate().save(mallory)
    run("sign", policy, "--name", "alice", "--key", mallory)  # who signs is found out when it is handed in
    run("sign", policy, "--name", "bob", "--key", people["bob"])
    refuse("signature of alice does not verify", "submit", policy, *reach[:2])
    run("sign", policy, "--name", "alice", "--key", people["alice"])
    run("submit", policy, *reach[:2])
    other = tmp_path / "operators.json"
    signers = ("--signer", f"alice={'ab' * 32}", "--threshold", 1)
    run("propose", "operators", *signers, *reach, "--output", other)
    refuse("expected copies of one change", "submit", policy, other, *reach[:2])
    floor = ("propose", "floor", "cli", "--to", 3, *reach, "--output", tmp_path / "floor.json")
    refuse("expected below the floor", *floor)
    run("retire", "cli", "--below", 5, *reach[:2])
    run(*floor)
    assert Change.loads((tmp_path / "floor.json").read_bytes()).content.to_json() == {"from": 5, "to": 3}


def test_a_revocation_is_taken_back_by_a_proposal(broker: InThread, people: dict[str, Path], tmp_path: Path) -> None:
    reach, why = ("--operator", broker.world.folder / "operator.toml"), ("--reason", "a test")
    revoked, change = ("--model", "cli", "--version", 2), tmp_path / "restore.json"
    propose = ("propose", "restore", *revoked, *reach, *why, "--output", change)
    refuse("expected something that is revoked", *propose)
    run("lease", "revoke", *revoked, *reach, *why)
    one = ("lease", "restore", *revoked, *reach, *why)
    refuse("one that needs 2", *one, "--sign-as", f"alice={people['alice']}")
    refuse("operators signed", *one, "--role", "rollback")
    run(*propose)
    for name in ("alice", "bob"):
        run("sign", change, "--name", name, "--key", people[name])
    run("submit", change, *reach)
    assert json.loads(run("lease", "list", *reach, "--json"))["revoked"] == []
    assert "revocation of model cli version 2" in " ".join(run("governance", *reach).split())


def test_a_change_whose_content_was_exchanged_is_not_signed(
    broker: InThread, people: dict[str, Path], tmp_path: Path
) -> None:
    reach = ("--operator", broker.world.folder / "operator.toml", "--reason", "a test")
    text, policy = tmp_path / "form.toml", tmp_path / "policy.json"
    text.write_text(form("cli"))
    run("propose", "policy", "--form", text, *reach, "--output", policy)
    policy.write_bytes(policy.read_bytes().replace(b'"lease_ms":3600000', b'"lease_ms":3600001'))
    refuse(
        "expected the content that its statement is about", "sign", policy, "--name", "alice", "--key", people["alice"]
    )


def test_a_part_of_the_configuration_is_proposed_before_its_file_is_used(
    broker: InThread, people: dict[str, Path], tmp_path: Path
) -> None:
    reach, change = ("--operator", broker.world.folder / "operator.toml"), tmp_path / "trust.json"
    propose = ("propose", "configuration", "trust", "--reason", "a test", *reach, "--output", change)
    refuse("expected one that is not what is in force", *propose)
    file = broker.world.write_config(
        governance="operators", change={'client_certificates = "required"': 'client_certificates = "optional"'}
    )
    assert [one.state for one in examine_broker(file)] == ["good", "missing"]
    run(*propose, "--config", file)
    for name in ("alice", "bob"):
        run("sign", change, "--name", name, "--key", people[name])
    run("submit", change, *reach)
    assert [one.state for one in examine_broker(file)] == ["good"]
    assert "not what operators signed for: configuration trust" in " ".join(invoke("governance", *reach).output.split())


def test_a_key_is_under_a_passphrase_unless_its_owner_says_otherwise(tmp_path: Path) -> None:
    path, words = tmp_path / "dave.sign", tmp_path / "words"
    refuse("expected a terminal", "operator-key", path)
    words.write_text("correct horse\n")
    source = ("--passphrase-from", f"file:{words}")
    refuse("owner's alone", "operator-key", path, *source)
    words.chmod(0o600)
    made = json.loads(run("operator-key", path, *source, "--json"))["public"]
    refuse("expected a new file", "operator-key", path, *source)
    refuse("expected a terminal", "operator-key", path, "--show")
    reader, writer = os.pipe()
    os.write(writer, b"correct horse\n")
    os.close(writer)
    shown = json.loads(run("operator-key", path, "--show", "--passphrase-from", f"fd:{reader}", "--json"))
    assert shown["public"] == made
    words.write_text("short\n")
    refuse("at least 8 characters", "operator-key", tmp_path / "other", *source)
    refuse("fd:N with a number", "operator-key", path, "--show", "--passphrase-from", "fd:x")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--signer", "alice", "--threshold", "1"), "NAME=PUBLIC KEY"),
        (("--signer", f"alice={'ab' * 32}", "--threshold", "2"), "expected at most 1"),
        (("--signer", f"alice={'ab' * 32}", "--signer", f"bob={'ab' * 32}", "--threshold", "1"), "a key of their own"),
        (("--signer", f"alice={'ab' * 32}", "--signer", f"alice={'cd' * 32}", "--threshold", "1"), "each name once"),
        (("--signer", f"alice={'ab' * 32}", "--scope", "bob=x", "--threshold", "1"), "scopes of those who sign"),
        (("--signer", f"Alice Smith={'ab' * 32}", "--threshold", "1"), "pattern"),
    ],
)
def test_a_set_that_is_none_is_not_fixed(world: World, arguments: tuple[str, ...], said: str) -> None:
    config = world.write_config(governance="operators")
    refuse(said, "init", "--config", config, *arguments)
    assert not (world.folder / "log").exists()


def test_doctor_says_which_files_count_no_more(broker: InThread) -> None:
    broker.world.write_policy("any", clients='"any"', any_machine="true")
    governance, other = examine_broker(broker.world.folder / "broker.toml")
    assert (governance.state, other.state, other.name) == ("good", "weak", "policies")
    assert "policy of models: in force is version 1" in other.detail


def test_doctor_says_ungoverned(world: World) -> None:
    finding, *_ = examine_broker(world.write_config())
    assert (finding.state, finding.detail) == ("weak", "ungoverned")
