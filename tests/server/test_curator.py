"""What is served follows from files, policies and operators; what changes does so without a gap, or not at all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermetic.enclave.publishers import TrustedPublishers
from hermetic.errors import (
    BrokerRefusedError,
    BrokerUnreachableError,
    InvalidRequestError,
    NotReadyError,
    RepositoryError,
)
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import RepositorySettings
from hermetic.server.curator import Curator
from hermetic.server.messages import Command
from hermetic.server.overrides import NO_OVERRIDE
from tests.enclave import sealed_by_hand
from tests.enclave.sealed_by_hand import forge
from tests.server.keeping import Keeping, Told

TRUSTED = TrustedPublishers.loads(sealed_by_hand.publishers())
SOON_S = 0.05


class House:
    """A folder of sealed files, and a curator of it among doubles."""

    def __init__(self, folder: Path, mode: str, **settings: object) -> None:
        self.folder = folder
        self.keeping = Keeping()
        self.settings = RepositorySettings.model_validate(
            {"mode": mode, "folder": folder, "poll_interval_s": SOON_S, **settings}
        )
        catalogue = Catalogue((), self.settings, TRUSTED)
        keeping = self.keeping
        self.curator = Curator(
            self.settings, catalogue, keeping.repository, keeping.keeper, keeping.cpu, keeping.around
        )

    def put(self, version: int, payload: bytes = b"graph", **configuration: object) -> None:
        """Put a sealed file there, at once and whole."""
        sealed = forge([("model.onnx", payload)], version=version, configuration=configuration).pack()
        aside = self.folder / f"iris-{version}.part"
        aside.write_bytes(sealed)
        aside.rename(self.file(version))

    def file(self, version: int) -> Path:
        return self.folder / f"iris-{version}.sealed"

    def start(self) -> None:
        self.curator.find()
        self.curator.start()
        self.keeping.settle()

    @property
    def states(self) -> dict[int, str]:
        return {entry.version: entry.state for entry in self.keeping.repository.index()}

    def reason(self, version: int) -> str:
        return next(e.reason for e in self.keeping.repository.index() if e.version == version)

    def ask(self, action: str, configuration: str = "", model: str = "iris") -> Told:
        told = Told()
        values = {"id": 1, "action": action, "model": model, "identity": "x", "configuration": configuration}
        self.curator.command(Command.model_validate(values), told)
        return told

    def answered(self, told: Told) -> Exception | None:
        self.keeping.turn_until(lambda: bool(told.outcomes))
        return told.outcomes[0]

    def until(self, states: dict[int, str]) -> None:
        self.keeping.turn_until(lambda: self.states == states)


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[list[House]]:
    made: list[House] = []
    yield made
    for house in made:
        house.curator.stop()
        house.keeping.settle()
        house.keeping.loop.close()


@pytest.fixture
def poll(tmp_path: Path, houses: list[House]) -> House:
    houses.append(House(tmp_path, "poll"))
    return houses[0]


@pytest.fixture
def explicit(tmp_path: Path, houses: list[House]) -> House:
    houses.append(House(tmp_path, "explicit", load_at_start=False))
    return houses[0]


# Whatever stands in the folder


@pytest.mark.parametrize("name", [b"\xff\xfe.sealed", b"\x01" * 240 + b".sealed", b'a\nb"} 1\n.sealed'])
def test_a_file_of_any_name_is_refused_and_stops_nothing(poll: House, name: bytes) -> None:
    """Names are bytes; whoever may write to the folder chooses them."""
    Path(os.fsdecode(bytes(poll.folder) + b"/" + name)).write_bytes(b"junk")
    poll.put(1)
    poll.start()
    ready, refused = sorted(poll.keeping.repository.index(), key=lambda entry: entry.state != "READY")
    assert (ready.name, ready.state, refused.state) == ("iris", "READY", "UNAVAILABLE")
    assert refused.name.isprintable()
    json.dumps(poll.keeping.recorded("model.refused"), ensure_ascii=False).encode()


# Poll


def test_a_file_that_changes_is_served_by_a_new_generation(poll: House) -> None:
    poll.put(1)
    poll.start()
    first = poll.keeping.loader.workers[0]
    poll.put(1, b"another graph")
    poll.keeping.turn_until(lambda: len(poll.keeping.loader.workers) == 2)
    poll.keeping.turn_until(lambda: first.ended == "unloaded")
    assert poll.states == {1: "READY"}
    slot = poll.keeping.repository.slot("iris", 1)
    assert slot is not None
    assert slot.current is not None
    assert slot.current.number == 2
    assert all(states == (("iris", 1, "READY"),) for states in poll.keeping.published[-3:])


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(poll: House) -> None:
    poll.put(1)
    poll.start()
    poll.keeping.loader.errors.append(BrokerRefusedError("no"))
    poll.put(2)
    poll.until({1: "READY", 2: "UNAVAILABLE"})
    assert poll.reason(2) == "BrokerRefusedError: no"
    assert poll.keeping.loader.workers[0].ended == ""


def test_a_load_that_may_pass_is_tried_again(poll: House) -> None:
    poll.keeping.loader.errors.append(BrokerUnreachableError("away"))
    poll.put(1)
    poll.start()
    assert poll.states == {1: "UNAVAILABLE"}
    poll.until({1: "READY"})


def test_an_open_file_and_a_repeated_look_change_nothing(poll: House) -> None:
    poll.put(1)
    poll.start()
    poll.file(1).touch()
    poll.put(2, version_policy={"kind": "all"})
    poll.until({1: "READY", 2: "READY"})
    assert len(poll.keeping.loader.workers) == 2


def test_a_policy_of_a_higher_version_counts_as_soon_as_it_is_there(poll: House) -> None:
    poll.put(1)
    poll.put(2)
    poll.start()
    assert poll.states == {1: "UNAVAILABLE", 2: "READY"}
    poll.put(3, version_policy={"kind": "specific", "versions": [1, 3]})
    poll.until({1: "READY", 2: "UNAVAILABLE", 3: "READY"})
    assert poll.reason(2) == "unloaded: not in the version policy (specific 1, 3)"


def test_a_policy_that_names_no_version_there_is_leaves_what_serves(poll: House) -> None:
    poll.put(1)
    poll.start()
    poll.put(2, version_policy={"kind": "specific", "versions": [9]})
    poll.keeping.turn_until(lambda: bool(poll.keeping.recorded("model.refused")))
    assert poll.states == {1: "READY", 2: "UNAVAILABLE"}
    assert "at least one version must be available" in poll.reason(2)


def test_too_many_instances_are_refused(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, "poll", instances_limit=2)
    houses.append(house)
    house.put(1, instances=3)
    house.start()
    assert house.states == {1: "UNAVAILABLE"}
    assert "repository.instances_limit" in house.reason(1)


# Operators


@pytest.mark.parametrize("mode", ["poll", "none"])
def test_only_the_mode_explicit_takes_commands(tmp_path: Path, houses: list[House], mode: str) -> None:
    house = House(tmp_path, mode)
    houses.append(house)
    house.put(1)
    house.start()
    assert house.states == {1: "READY"}
    for action in ("load", "unload"):
        error = house.answered(house.ask(action))
        assert isinstance(error, NotReadyError)
        assert str(error) == "explicit model load / unload is not allowed if polling is enabled"


def test_operators_load_and_unload(explicit: House) -> None:
    explicit.put(1)
    explicit.start()
    assert explicit.states == {1: "UNAVAILABLE"}
    explicit.put(2)
    assert explicit.answered(explicit.ask("load")) is None
    assert explicit.states == {1: "UNAVAILABLE", 2: "READY"}
    assert explicit.answered(explicit.ask("load")) is None
    assert len(explicit.keeping.loader.workers) == 1, "it is served just so already"
    assert explicit.answered(explicit.ask("unload")) is None
    assert (explicit.states[2], explicit.reason(2)) == ("UNAVAILABLE", "unloaded")


def test_commands_on_one_model_come_one_after_the_other(explicit: House) -> None:
    explicit.put(1)
    explicit.start()
    explicit.keeping.loader.may_load.clear()
    tolds = [explicit.ask("load"), explicit.ask("unload"), explicit.ask("load")]
    explicit.keeping.turn_until(lambda: explicit.states == {1: "LOADING"})
    explicit.keeping.loader.may_load.set()
    assert [explicit.answered(told) for told in tolds] == [None, None, None]
    assert explicit.states == {1: "READY"}
    assert [worker.ended for worker in explicit.keeping.loader.workers] == ["unloaded", ""]


def test_what_nobody_knows_cannot_be_loaded_and_is_not_served_anyway(explicit: House) -> None:
    explicit.start()
    error = explicit.answered(explicit.ask("load", model="nobody"))
    assert isinstance(error, RepositoryError)
    assert str(error) == "failed to load 'nobody', failed to poll from model repository"
    assert explicit.answered(explicit.ask("unload", model="nobody")) is None


def test_a_loads_own_configuration_lasts_until_the_next_load(explicit: House) -> None:
    explicit.put(1)
    explicit.put(2)
    explicit.start()
    assert explicit.answered(explicit.ask("load", '{"version_policy": {"all": {}}}')) is None
    assert explicit.states == {1: "READY", 2: "READY"}
    assert explicit.answered(explicit.ask("load")) is None
    explicit.until({1: "UNAVAILABLE", 2: "READY"})


@pytest.mark.parametrize("text", ['{"max_batch_size": 3}', '{"name": "rose"}', "{", '{"parameters": {"a": {}}}'])
def test_a_configuration_that_is_refused_changes_nothing(explicit: House, text: str) -> None:
    explicit.put(1)
    explicit.start()
    assert explicit.answered(explicit.ask("load")) is None
    assert isinstance(explicit.answered(explicit.ask("load", text)), InvalidRequestError)
    shelf = explicit.keeping.repository.shelf("iris")
    assert shelf is not None
    assert shelf.override == NO_OVERRIDE
    assert explicit.states == {1: "READY"}
    assert explicit.answered(explicit.ask("load")) is None
    assert len(explicit.keeping.loader.workers) == 1


def test_a_model_that_was_unloaded_does_not_come_back_by_itself(explicit: House) -> None:
    explicit.put(1)
    explicit.start()
    explicit.keeping.loader.errors.append(BrokerUnreachableError("away"))
    assert isinstance(explicit.answered(explicit.ask("load")), BrokerUnreachableError)
    assert explicit.answered(explicit.ask("unload")) is None
    slot = explicit.keeping.repository.slot("iris", 1)
    assert slot is not None
    assert slot.retry_at is None
