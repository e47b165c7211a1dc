"""Two of three people decide, with real processes: a key that waits for them, a policy that they tighten, a way back.

One installation, in the order in which it happens. Broker, server and the commands that are refused are processes; the
other commands run here, and the policies are signed here, to save their time.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hermetic.attestation.governance import Change, OperatorKey
from hermetic.attestation.log.record import Record
from hermetic.demo.processes import Command
from tests.flows.networks import Network, dense
from tests.flows.scene import Scene, best_tee, check_answers, scene

COMMAND_TIMEOUT_S = 60
LEASE_S, GRACE_S = 4.0, 4.0
PEOPLE = ("alice", "bob", "carol")
BROKER_REFUSED = 6


@dataclass(slots=True)
class Board:
    """The broker's people, and a model that is sealed."""

    scene: Scene
    network: Network
    sealed: Path
    changes: list[Path] = field(default_factory=list)

    @property
    def reach(self) -> tuple[str, str]:
        return "--operator", str(self.scene.folder / "authority" / "operator" / "operator.toml")

    @property
    def checkpoint(self) -> Path:
        return self.scene.folder / "kept-elsewhere"

    def propose(self, *arguments: str) -> Path:
        path = self.scene.folder / f"change-{len(self.changes)}.json"
        self.scene.run("broker", "propose", *arguments, "--reason", "a test", *self.reach, "--output", path)
        self.changes.append(path)
        return path

    def sign(self, change: Path, name: str) -> None:
        self.scene.run("broker", "sign", change, "--name", name, "--key", _key(self.scene.folder, name))

    def submit(self, change: Path) -> None:
        self.scene.run("broker", "submit", change, *self.reach, "--checkpoint", self.checkpoint)

    def refused(self, change: Path) -> str:
        with Command(["broker", "submit", str(change), *self.reach]) as command:
            assert command.end(COMMAND_TIMEOUT_S) == BROKER_REFUSED
            return command.output


def _key(folder: Path, name: str) -> Path:
    return folder / "authority" / f"{name}.key"


def _two_of_three(folder: Path) -> None:
    """What three people and the broker's administrator do before its first start."""
    signers = []
    for name in PEOPLE:
        key = OperatorKey.generate()
        key.save(_key(folder, name))
        signers += ["--signer", f"{name}={key.public}"]
    configuration = str(folder / "broker" / "broker.toml")
    with Command(["broker", "init", "--config", configuration, "--threshold", "2", *signers]) as command:
        command.succeed(COMMAND_TIMEOUT_S)


def _short_leases(folder: Path) -> None:
    path = folder / "broker" / "broker.toml"
    text = path.read_text().replace("lease_s = 3600", f"lease_s = {LEASE_S}")
    path.write_text(text.replace("lease_grace_s = 900", f"lease_grace_s = {GRACE_S}"))


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    with scene(best_tee(), _short_leases, govern=_two_of_three) as place:
        network = dense(place.workshop, "governed", seed=1)
        yield Board(place, network, place.seal(network))


def test_two_of_three_decide(board: Board) -> None:
    scene, folder = board.scene, board.scene.folder
    with scene.serve([], refused=[board.sealed]) as served:
        assert "release.signed" in served.wait_until_refused(board.sealed)

    change = board.propose("key", "kbs:///models/governed/1")
    board.sign(change, "alice")
    assert "governance.signatures" in board.refused(change)
    board.sign(change, "carol")
    board.submit(change)

    policy = (folder / "broker" / "policies" / "default.toml").read_text()
    lengths = ("--lease-s", str(LEASE_S), "--lease-grace-s", str(GRACE_S))
    with scene.serve([board.sealed]) as served:
        client = served.client()
        check_answers(client, board.network)
        client.close()
        moment = served.ear.now
        loose = _changed(board, policy, "loose", lengths)
        tight = _changed(board, _for_nobody(policy), "tight", lengths)
        served.wait_until_refused(board.sealed, moment)
    assert "governance.version" in board.refused(loose)

    log = folder / "broker"
    arguments = ("--key", log / "log.pub", "--against", board.checkpoint, "--json")
    shown = json.loads(scene.run("broker", "record", "verify", log / "log", *arguments))
    events = [(one["what"], one["version"], one["by"], one["outcome"]) for one in shown["events"]]
    assert shown["governed"]
    assert events == [
        ("first operators", 0, [], "in force"),
        ("key models/governed/1", None, ["alice"], "refused"),
        ("key models/governed/1", 1, ["alice", "carol"], "in force"),
        ("policy of models", 2, ["alice", "bob"], "in force"),
        ("policy of models", 3, ["alice", "bob"], "in force"),
        ("policy of models", None, ["alice", "bob"], "refused"),
    ]
    assert [r for r in _releases(scene) if "client_certificate" in str(r.fields["reasons"])]
    assert tight in board.changes


def _changed(board: Board, policy: str, name: str, lengths: tuple[str, ...]) -> Path:
    """A policy of all models that two people have put in force; returns the change."""
    form = board.scene.folder / f"{name}.toml"
    form.write_text(policy)
    change = board.propose("policy", "--form", str(form), *lengths)
    both = Change.loads(change.read_bytes())
    for who in ("bob", "alice"):
        both = OperatorKey.load(_key(board.scene.folder, who)).sign(both, who)
    change.write_bytes(both.dumps())
    board.submit(change)
    return change


def _for_nobody(policy: str) -> str:
    lines = policy.splitlines()
    found = [line for line in lines if line.startswith("client_certificate = ")]
    assert len(found) == 1
    return policy.replace(found[0], 'client_certificate = ["spiffe://nobody.example/host"]')


def _releases(scene: Scene) -> list[Record]:
    return [record for record in scene.records("broker") if record.kind == "broker.release"]
