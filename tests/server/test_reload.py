"""One epoch for all front ends or none: who says no, who stays silent, who ends and who comes meanwhile."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.control_frames import Frame
from hermetic.errors import ConfigurationError, HermeticError, OverloadedError
from hermetic.server import reload
from hermetic.server.config import IDENTITIES_LIMIT, AccessRule, Revoked, ServerConfig
from hermetic.server.epoch_changes import allotted, changed_file, first_epoch
from hermetic.server.event_loop import EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.identity import Identity
from hermetic.server.reload import Current, Reloader
from hermetic.server.settings import Epoch
from hermetic.server.shared_messages import (
    ApplyEpoch,
    DropEpoch,
    EpochApplied,
    EpochStaged,
    StageEpoch,
)
from tests.descriptors import are_given_back, settled_descriptors
from tests.server.certificates import Authority

SERVER = """
access = [{{ authority = "clients", name = "CN=a", tenant = "red", roles = ["infer"] }}{access}]
publishers = "publishers.toml"
{more}
[tls]
authorities = {{ clients = "clients.pem" }}
[broker]
url = "https://localhost:1"
authority = "ca.pem"
certificate = "host.pem"
key = "host.key"
[attestation]
tee = "tpm"
state_folder = "state"
[log]
folder = "log"
origin = "tests"
key = "log.key"
{tail}
"""


class Silent:
    """A front end that takes frames and says nothing by itself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.got: list[Frame] = []
        self.ended = False

    def send(self, frame: Frame, _descriptors: tuple[int, ...] = ()) -> None:
        self.got.append(frame)

    def end(self) -> None:
        self.ended = True


class World:
    """A reloader with front ends that answer when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "clients.pem").write_bytes(Authority("clients").pem)
        self.write()
        config = ServerConfig.load(folder / "server.toml")
        self.loop = EventLoop()
        self.front_ends: dict[int, FrontEnd] = {}
        self.records: list[tuple[str, Mapping[str, JsonValue]]] = []
        self.applied: list[int] = []
        self.errors: list[HermeticError | None] = []
        self.reloader = Reloader(
            Current(config),
            first_epoch(config),
            self.loop,
            self.front_ends,
            lambda kind, fields: self.records.append((kind, fields)),
            lambda _, epoch: self.applied.append(epoch.number),
        )

    def write(self, access: str = "", more: str = "", tail: str = "") -> None:
        (self.folder / "server.toml").write_text(SERVER.format(access=access, more=more, tail=tail))

    def front_end(self, pid: int) -> Silent:
        double = Silent(pid)
        self.front_ends[pid] = cast("FrontEnd", double)
        self.reloader.joined(self.front_ends[pid])
        return double

    def reload(self, *, first: bool = False) -> None:
        def change(now: ServerConfig, epoch: Epoch) -> tuple[ServerConfig, Epoch]:
            return changed_file(ServerConfig.load(self.folder / "server.toml"), now, epoch)

        self.reloader.change(change, {"by": "SIGHUP" if first else "caller"}, self.errors.append, first=first)

    def says_yes(self, pid: int, number: int) -> None:
        self.reloader.staged(self.front_ends[pid], EpochStaged(number=number))

    def has_applied(self, pid: int, number: int) -> None:
        self.reloader.applied(self.front_ends[pid], EpochApplied(number=number))

    @property
    def last(self) -> str:
        """The last record's reason."""
        return f"{self.records[-1][0]}: {self.records[-1][1].get('reason', '')}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.loop.close()


BOB = ', { authority = "clients", name = "CN=b", tenant = "red", roles = ["infer"] }'


def kinds(front_end: Silent) -> list[type[Frame]]:
    return [type(frame) for frame in front_end.got]


def test_all_apply_when_all_have_said_yes(world: World) -> None:
    one, other = world.front_end(1), world.front_end(2)
    world.write(access=BOB)
    world.reload()
    world.says_yes(1, 2)
    assert world.applied == []
    assert kinds(one) == kinds(other) == [StageEpoch]
    world.says_yes(2, 2)
    assert world.records[-1][0] == "epoch.applied"  # recorded before anyone is told
    assert kinds(one) == kinds(other) == [StageEpoch, ApplyEpoch]
    assert (world.applied, world.errors) == ([2], [])
    world.has_applied(1, 2)
    world.has_applied(2, 2)
    assert world.errors == [None]
    assert len(world.reloader.current.config.access) == 2


def test_one_no_is_a_no_for_all(world: World) -> None:
    one, other = world.front_end(1), world.front_end(2)
    world.write(access=BOB)
    world.reload()
    world.says_yes(1, 2)
    world.reloader.staged(world.front_ends[2], EpochStaged(number=2, error="cannot"))
    assert kinds(one) == kinds(other) == [StageEpoch, DropEpoch]
    assert world.applied == []
    assert world.records[-2][1]["reason"] == "ConfigurationError: front end 2 refused the epoch: cannot"
    assert world.last == "front-end.replaced: it refused a good epoch"
    assert (one.ended, other.ended) == (False, True), "it could have put off every revocation"
    assert (world.reloader.epoch.number, len(world.reloader.current.config.access)) == (1, 1)
    world.says_yes(2, 2)  # too late
    assert world.applied == []


def test_one_that_stays_silent_is_a_no_for_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "STAGE_TIMEOUT_S", 0.01)
    one, silent = world.front_end(1), world.front_end(2)
    world.write(access=BOB)
    world.reload()
    world.says_yes(1, 2)
    while not world.errors:
        world.loop.turn()
    assert "wanted every front end's answer within 0.01 s, none of [2]" in str(world.records[-2][1]["reason"])
    assert world.records[-1][0] == "front-end.stuck"
    assert (one.ended, silent.ended) == (False, True)
    assert kinds(one) == [StageEpoch, DropEpoch]


def test_one_that_ends_while_it_checks_is_a_no_for_all(world: World) -> None:
    """It may have ended of this very epoch, and its successor would again."""
    world.front_end(1)
    world.front_end(2)
    world.write(access=BOB)
    world.reload()
    world.says_yes(1, 2)
    world.reloader.gone(world.front_ends.pop(2))
    assert "front end 2 ended while it checked the epoch" in world.last
    world.front_end(3)
    world.reload()  # the next try has a number of its own
    world.says_yes(3, 2)
    world.says_yes(1, 3)
    assert world.applied == []
    world.says_yes(3, 3)
    assert world.applied == [3]


def test_one_that_ends_after_its_yes_is_missed_by_nobody(world: World) -> None:
    world.front_end(1)
    world.front_end(2)
    world.write(access=BOB)
    world.reload()
    world.says_yes(2, 2)
    world.reloader.gone(world.front_ends.pop(2))
    world.says_yes(1, 2)
    world.has_applied(1, 2)
    assert world.errors == [None]


def test_one_that_starts_meanwhile_is_asked_too(world: World) -> None:
    """It was started with the old epoch, before the decision or after."""
    world.front_end(1)
    world.write(access=BOB)
    world.reload()
    second = world.front_end(2)
    world.says_yes(1, 2)
    assert world.applied == []
    world.says_yes(2, 2)
    assert kinds(second) == [StageEpoch, ApplyEpoch]
    world.has_applied(1, 2)
    world.has_applied(2, 2)
    assert kinds(world.front_end(3)) == []


def test_one_that_does_not_apply_in_time_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All said yes, so all apply: its successor starts with the new epoch."""
    monkeypatch.setattr(reload, "APPLY_TIMEOUT_S", 0.01)
    one, other = world.front_end(1), world.front_end(2)
    world.write(access=BOB)
    world.reload()
    world.says_yes(1, 2)
    world.says_yes(2, 2)
    world.has_applied(1, 2)
    while not world.errors:
        world.loop.turn()
    assert (one.ended, other.ended) == (False, True)
    assert world.errors == [None]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"more": "front_ends = 2"}, "front_ends"),
        ({"more": "[listen]\nport = 99"}, "listen.port"),
        ({"tail": "[limits]\nmessage_bytes = 1\nbytes_in_flight = 600_000_000"}, "limits.message_bytes"),
        ({"tail": "[limits]\nconnections = 1\n[[models]]\npath = 'x'"}, "limits.connections, models"),
    ],
)
def test_what_cannot_change_is_refused_by_its_key(world: World, change: dict[str, str], named: str) -> None:
    one = world.front_end(1)
    world.write(**change)
    world.reload()
    assert world.last.endswith(f"wanted only what can change without a restart, got {named}")
    assert isinstance(world.errors[0], ConfigurationError)
    assert kinds(one) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"more": "colour = 1"}, "colour"),
        ({"more": "revoked = [{ authority = 'clients' }]"}, "wanted exactly one of name, serial and spki_sha256"),
        ({"more": "revoked = [{ name = 'CN=b' }]"}, "wanted an authority with name or serial"),
        ({"more": "revoked = [{ authority = 'other', name = 'CN=b' }]"}, "wanted one of the authorities"),
        ({"more": "revoked = [{ spki_sha256 = 'ab' }]"}, "should match pattern"),
        ({"more": "revoked_file = 'missing.toml'"}, "No such file"),
        ({"access": BOB + BOB}, "wanted one row for 'CN=b'"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing(world: World, change: dict[str, str], reason: str) -> None:
    one = world.front_end(1)
    world.write(**change)
    world.reload()
    assert reason in world.last
    assert kinds(one) == []
    world.write()
    world.reload()
    world.says_yes(1, 3)
    assert world.applied == [3]


def test_the_rest_of_the_server_may_refuse(world: World) -> None:
    """When it is staged, and again when it is decided: a model may have been loaded meanwhile."""
    one = world.front_end(1)

    def check(_: ServerConfig) -> None:
        if kinds(one):
            raise ConfigurationError("a program serves one tenant")

    world.reloader.check = check
    world.write(access=BOB)
    world.reload()
    world.says_yes(1, 2)
    assert kinds(one) == [StageEpoch, DropEpoch]
    assert "one tenant" in world.last


def test_revoked_in_a_file_of_their_own(world: World) -> None:
    (world.folder / "revoked.toml").write_text("[[revoked]]\nauthority = 'clients'\nserial = '00:0A:bc'\n")
    world.write(more="revoked_file = 'revoked.toml'\nrevoked = [{ authority = 'clients', name = 'CN=z' }]")
    world.reload()
    by_name, by_serial = Revoked(authority="clients", name="CN=z"), Revoked(authority="clients", serial="abc")
    assert list(world.reloader.epoch.revoked) == [by_name, by_serial]
    (world.folder / "revoked.toml").write_text("")  # only the file has changed
    world.reload()
    assert list(world.reloader.epoch.revoked) == [by_name]


def test_changes_wait_for_each_other_and_not_without_end(world: World) -> None:
    one = world.front_end(1)
    for _ in range(reload.CHANGES_WAITING + 2):
        world.reload()
    assert kinds(one) == [StageEpoch]
    assert isinstance(world.errors[0], OverloadedError)
    world.says_yes(1, 2)
    world.has_applied(1, 2)
    assert kinds(one) == [StageEpoch, ApplyEpoch, StageEpoch]


def test_the_operators_own_change_goes_first_and_is_never_too_many(world: World) -> None:
    """Whoever is to be revoked may ask for settings again and again, and a front end in anyone's name."""
    world.front_end(1)
    for _ in range(reload.CHANGES_WAITING + 1):
        world.reload()
    world.reload(first=True)
    assert not world.errors
    for number in (2, 3):
        world.says_yes(1, number)
        world.has_applied(1, number)
    by = [fields["by"] for kind, fields in world.records if kind == "epoch.applied"]
    assert by == ["caller", "SIGHUP"]


def test_places_are_kept_and_those_given_up_are_taken_last() -> None:
    def rules(*names: str) -> tuple[AccessRule, ...]:
        return tuple(AccessRule(authority="ca", name=name, tenant="t", roles=("infer",)) for name in names)

    def identities(places: tuple[int, ...], *names: str) -> dict[Identity, int]:
        return {Identity("ca", name): place for name, place in zip(names, places, strict=True)}

    first = allotted({}, rules("a", "b", "c"))
    assert first == (1, 2, 3)
    assert allotted(identities(first, "a", "b", "c"), rules("c", "d", "a")) == (3, 4, 1)
    everyone = [str(at) for at in range(IDENTITIES_LIMIT)]
    full: Any = identities(allotted({}, rules(*everyone)), *everyone)
    assert allotted(full, rules("new", *everyone[1:]))[0] == 1


def test_no_descriptor_is_left(world: World) -> None:
    world.front_end(1)
    before = settled_descriptors()
    for number in range(2, 6):
        world.reload()
        world.says_yes(1, number)
        world.has_applied(1, number)
    assert are_given_back(before)
