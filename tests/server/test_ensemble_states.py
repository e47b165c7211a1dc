"""An ensemble in the supervisor: no worker; ready with its models; loaded and unloaded with them where asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.errors import BrokerRefusedError, HermeticError, InvalidRequestError
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import RepositorySettings
from hermetic.server.curator import Curator
from hermetic.server.messages import Command, ModelReady, ModelStop
from hermetic.server.status import status_of
from tests.enclave.sealed_by_hand import forge
from tests.server.keeping import Keeping, Told
from tests.server.test_curator import TRUSTED

VECTORS = Path(__file__).parents[1] / "vectors" / "triton"
NONE: dict[str, Any] = {"dynamic_batching": {}}


def steps(*names: str, version: int = 0) -> dict[str, Any]:
    """The configuration of a chain of models, each of which takes x and makes y."""
    tensors = ["x", *(f"t{at}" for at in range(1, len(names))), "y"]
    named = {"version": version} if version else {}
    return {
        "ensemble": {
            "steps": [
                {"model": name, **named, "inputs": [["x", tensors[at]]], "outputs": [["y", tensors[at + 1]]]}
                for at, name in enumerate(names)
            ]
        }
    }


class House:
    """A folder of sealed models and ensembles, and a curator of it among doubles."""

    def __init__(self, folder: Path, mode: str = "explicit", **settings: Any) -> None:
        self.folder = folder
        self.keeping = Keeping()
        values = {"mode": mode, "folder": folder, "load_at_start": mode != "explicit", **settings}
        wanted = RepositorySettings.model_validate(values)
        keeping = self.keeping
        catalogue = Catalogue((), wanted, TRUSTED)
        self.curator = Curator(wanted, catalogue, keeping.repository, keeping.keeper, keeping.cpu, keeping.around)
        self.front_end = self.keeping.front_end(1)

    def put(self, name: str, configuration: dict[str, Any] | None = None, version: int = 1, **changes: Any) -> None:
        own = configuration or NONE
        values = {"name": name, "version": version, "configuration": own, "key_id": f"kbs:///models/{name}/{version}"}
        if "ensemble" in own:
            values["format"] = "ensemble"
        file = "config.pbtxt" if "ensemble" in own else "model.onnx"
        shape: Any = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [4]}]}
        sealed = forge([(file, b"x")], **{**values, **shape, **changes}).pack()
        (self.folder / f"{name}-{version}.sealed").write_bytes(sealed)

    def start(self) -> None:
        self.curator.find()
        self.curator.start()
        self.keeping.settle()

    @property
    def states(self) -> dict[str, str]:
        return {entry.name: entry.state for entry in self.keeping.repository.index()}

    def reason(self, name: str) -> str:
        return next(entry.reason for entry in self.keeping.repository.index() if entry.name == name)

    def ask(self, action: str, model: str, *, dependents: bool = False) -> HermeticError | None:
        told = Told()
        values = {"id": 1, "action": action, "model": model, "identity": "x", "dependents": dependents}
        self.curator.command(Command.model_validate(values), told)
        while not told.outcomes:
            for frame in self.front_end.told(ModelStop):  # a front end that lets go at once
                self.keeping.keeper.stopped_at(1, frame.name, frame.version, frame.generation)
            self.keeping.loop.turn()
        self.keeping.settle()
        return told.outcomes[0]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.keeping.loop.close()


def test_loading_an_ensemble_loads_what_it_needs_and_no_worker_for_itself(house: House) -> None:
    house.put("first")
    house.put("second")
    house.put("chain", steps("first", "second"))
    house.start()
    assert set(house.states.values()) == {"UNAVAILABLE"}
    assert house.ask("load", "chain") is None
    assert house.states == {"first": "READY", "second": "READY", "chain": "READY"}
    assert len(house.keeping.loader.workers) == 2
    ready = {frame.description.name: frame for frame in house.front_end.told(ModelReady)}
    assert ready["chain"].description.configuration.ensemble is not None
    assert [fields["model"] for fields in house.keeping.recorded("ensemble.loaded")] == ["chain"]


def test_an_ensemble_of_what_is_not_there_is_refused_by_the_step(house: House) -> None:
    house.put("chain", steps("first"))
    house.start()
    error = house.ask("load", "chain")
    assert isinstance(error, InvalidRequestError)
    assert str(error) == "load failed for model 'chain': step 0: model 'first': no version is loaded"
    assert (house.states["chain"], house.reason("chain")) == (
        "UNAVAILABLE",
        "step 0: model 'first': no version is loaded",
    )


def test_a_model_that_is_refused_is_the_ensemble_s_reason(house: House) -> None:
    house.put("first")
    house.put("chain", steps("first"))
    house.keeping.loader.errors.append(BrokerRefusedError("no"))
    house.start()
    assert "model 'first': no version is loaded" in str(house.ask("load", "chain"))
    assert house.ask("load", "first") is None
    assert house.states == {"first": "READY", "chain": "READY"}


def test_a_step_that_goes_takes_the_ensemble_out_of_service_only(house: House) -> None:
    house.put("first")
    house.put("chain", steps("first"))
    house.start()
    house.ask("load", "chain")
    assert house.ask("unload", "first") is None
    assert house.states == {"first": "UNAVAILABLE", "chain": "UNAVAILABLE"}
    assert house.ask("load", "first") is None
    assert house.states == {"first": "READY", "chain": "READY"}


def test_an_unload_leaves_the_models_unless_it_says_otherwise(house: House) -> None:
    house.put("first")
    house.put("inner", steps("first"))
    house.put("outer", steps("inner"))
    house.start()
    assert house.ask("load", "outer") is None
    assert set(house.states.values()) == {"READY"}
    assert house.ask("unload", "outer") is None
    assert house.states == {"first": "READY", "inner": "READY", "outer": "UNAVAILABLE"}
    house.ask("load", "outer")
    assert house.ask("unload", "outer", dependents=True) is None
    assert set(house.states.values()) == {"UNAVAILABLE"}
    assert [worker.ended for worker in house.keeping.loader.workers] == ["unloaded"]


def test_a_worker_that_is_lost_takes_the_ensemble_along(house: House) -> None:
    house.put("first")
    house.put("chain", steps("first"))
    house.start()
    house.ask("load", "chain")
    house.keeping.loader.workers[0].crash()
    house.keeping.turn_until(lambda: house.states["first"] == "UNAVAILABLE")
    assert house.states["chain"] == "UNAVAILABLE"
    house.keeping.turn_until(lambda: house.states["first"] == "READY")
    assert house.states["chain"] == "READY"


def test_tensors_that_do_not_fit_are_the_reason(house: House) -> None:
    house.put("first", inputs=[{"name": "x", "datatype": "INT32", "shape": [4]}])
    house.put("chain", steps("first"))
    house.start()
    assert "inconsistent data type: FP32 is inferred from model chain" in str(house.ask("load", "chain"))


def test_circles_are_refused(house: House) -> None:
    house.put("one", steps("two"))
    house.put("two", steps("one"))
    house.start()
    assert "ensemble 'one' contains itself: one -> two -> one" in str(house.ask("load", "one"))
    assert set(house.states.values()) == {"UNAVAILABLE"}


def test_a_version_that_is_named_must_be_that_one(house: House) -> None:
    house.put("first", version=1)
    house.put("first", version=2)
    house.put("chain", steps("first", version=1))
    house.start()
    error = house.ask("load", "chain")  # the version policy serves the latest alone
    assert str(error) == "load failed for model 'chain': step 0: model 'first': version 1 is not loaded"


def test_a_front_end_that_comes_later_is_told(house: House) -> None:
    house.put("first")
    house.put("chain", steps("first"))
    house.start()
    house.ask("load", "chain")
    later = house.keeping.front_end(2)
    house.keeping.settle()
    assert sorted(frame.description.name for frame in later.told(ModelReady)) == ["chain", "first"]


def test_at_the_start_everything_comes(tmp_path: Path) -> None:
    house = House(tmp_path, "none")
    house.put("chain", steps("first"))
    house.put("first")
    house.start()
    assert house.states == {"first": "READY", "chain": "READY"}
    told = [state for states in house.keeping.published for name, _, state in states if name == "chain"]
    assert sorted(set(told), key=told.index) == ["UNAVAILABLE", "LOADING", "READY"]
    assert told == sorted(told, key=["UNAVAILABLE", "LOADING", "READY"].index), "never out of service once it is loaded"
    house.keeping.loop.close()


RECORDED = {
    "server: load in mode none": ("none", "load", "echo"),
    "server: unload in mode none": ("none", "unload", "echo"),
    "load: load what is not there": ("explicit", "load", "nope"),
    "load: unload again": ("explicit", "unload", "chain"),
    "load: unload what is not there": ("explicit", "unload", "nope"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_the_supervisor_says_is_what_triton_says(tmp_path: Path, name: str) -> None:
    mode, action, model = RECORDED[name]
    group, case = name.split(": ", 1)
    text = (VECTORS / f"{group}.json").read_text()
    wanted = next(each["answer"] for each in json.loads(text)["cases"] if each["name"] == case)
    house = House(tmp_path, mode)
    house.put("first")
    house.put("chain", steps("first"))
    house.start()
    error = house.ask(action, model)
    house.keeping.loop.close()
    if error is None:
        assert wanted["code"] == "OK"
    else:
        status = status_of(error)
        assert (status.code.name, status.details) == (wanted["code"], wanted["message"])
