"""Several instances of a model, and loads that change what serves while requests come: none of them is refused."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tritonclient.utils import InferenceServerException

from hermetic.attestation.log.record import Record
from tests.flows.networks import Network, dense, slow
from tests.flows.scene import Client, Running, Scene, check_answers, is_gone, scene
from tests.flows.test_unload_and_stop import Questions, wait_for_ends

WORKER = "hermetic.enclave.worker"
PATIENCE_S = 120
TURNS = 10_000  # of the slow model's loop: some 50 ms for each request
CORES = sorted(os.sched_getaffinity(0))
SETTINGS = f"""[cpu]
front_end_cores = [{CORES[0]}]

[repository]
folder = "models"

[repository.models.pair]
instances = 2
cores = [{CORES[-1]}]

[log]"""


@dataclass(slots=True)
class Cast:
    """The server, and the models in its folder."""

    scene: Scene
    served: Running
    quick: Network
    newer: Network
    pair: Network
    operator: Client

    def loads(self, name: str) -> list[Record]:
        """What the log says of the workers of a model that have given their known answers."""
        return self.of(name, "model.loaded")

    def of(self, name: str, kind: str) -> list[Record]:
        records = self.scene.records("server")
        return [record for record in records if record.kind == kind and record.fields["model"] == name]

    def index(self, name: str) -> dict[int, tuple[str, str]]:
        """RepositoryIndex of one model: version -> (state, reason)."""
        models = self.operator.get_model_repository_index().models
        return {int(entry.version): (entry.state, entry.reason) for entry in models if entry.name == name}

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Wait until something holds; between two looks the server is asked whether it lives."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.operator.is_server_live()
            assert time.monotonic() < deadline, "wanted it to come, got nothing"


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with scene("sample") as place:
        quick = dense(place.workshop, "quick", seed=31)
        newer = dense(place.workshop, "quick", seed=32, version=2)
        pair = slow(place.workshop, "pair", seed=33, turns=TURNS)
        for network in (quick, pair):
            place.seal(network)
        with place.serve([], replace=[("[log]", SETTINGS)]) as served, served.client(operator=True) as operator:
            for network in (quick, pair):
                served.wait_until_ready(place.models / f"{network.name}-1.sealed")
            yield Cast(place, served, quick, newer, pair, operator)


@dataclass(slots=True)
class Asking:
    """Asks one model again and again, until the end of the block; each answer must be one of the plain models'.

    The block begins when there has been a first answer.
    """

    served: Running
    network: Network
    also: tuple[Network, ...] = ()
    errors: list[Exception] = field(default_factory=list)
    answered: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _begun: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        if not self._begun.wait(PATIENCE_S):
            self._stop.set()
            pytest.fail("wanted an answer, got none")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self) -> None:
        with self.served.client() as client:
            while not self._stop.is_set():
                try:
                    self._check(client)
                except (InferenceServerException, AssertionError) as error:
                    self.errors.append(error)
                self.answered += 1
                self._begun.set()

    def _check(self, client: Client) -> None:
        for other in self.also:
            try:
                check_answers(client, other)
            except AssertionError:
                continue
            return
        check_answers(client, self.network)


def cores_of(pid: int) -> set[str]:
    """The cores that each thread of a process may run on, as the kernel says."""
    statuses = []
    for task in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may have ended meanwhile
            statuses.append(task.read_text())
    return {line.split()[1] for text in statuses for line in text.splitlines() if line.startswith("Cpus_allowed_list:")}


def test_every_thread_runs_on_the_cores_that_the_configuration_names(cast: Cast) -> None:
    (front_end,) = cast.served.children("hermetic.server.frontend")
    assert cores_of(front_end) == {str(CORES[0])}
    for record in cast.loads("pair"):
        assert cores_of(record.fields["pid"]) == {str(CORES[-1])}
        assert (record.fields["cores"], record.fields["threads"]) == ([CORES[-1]], 1)
    (planned,) = [record for record in cast.scene.records("server") if record.kind == "cpu.planned"]
    assert (planned.fields["cores"], planned.fields["front-end-cores"]) == (len(CORES), [[CORES[0]]])


def test_each_instance_is_a_worker_with_a_key_of_its_own(cast: Cast) -> None:
    loads = cast.loads("pair")
    assert sorted(record.fields["instance"] for record in loads) == [0, 1]
    assert len({record.fields["pid"] for record in loads}) == 2
    releases = [r for r in cast.scene.records("broker") if r.kind == "broker.release"]
    assert sum(record.fields["resource"] == "models/pair/1" for record in releases) == 2
    with cast.served.client() as client:
        assert Questions(client, cast.pair, 6).check() == []


def test_a_killed_instance_fails_what_it_ran_and_the_model_stays_ready(cast: Cast) -> None:
    before = cast.loads("pair")
    victim = before[-1].fields
    with cast.served.client() as client:
        questions = Questions(client, cast.pair)
        killed = os.pidfd_open(victim["pid"])  # its supervisor may have buried it a moment after
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for_ends([killed])
        assert client.is_model_ready("pair")
        errors = questions.check()
        assert len(errors) <= 2, "wanted only what that worker had been handed to fail"
        assert {str(error.status()) for error in errors} <= {"StatusCode.UNAVAILABLE"}
        assert client.is_model_ready("pair")
        cast.wait_for(lambda: len(cast.loads("pair")) > len(before))
        again = cast.loads("pair")[-1].fields
        assert (again["instance"], again["generation"]) == (victim["instance"], victim["generation"])
        assert Questions(client, cast.pair, 6).check() == []
    lost = cast.of("pair", "worker.lost")[-1].fields
    assert lost["instance"] == victim["instance"]


def test_an_unload_wipes_all_instances(cast: Cast) -> None:
    workers = [os.pidfd_open(r.fields["pid"]) for r in cast.loads("pair") if not is_gone(r.fields["pid"])]
    assert len(workers) == 2
    cast.operator.unload_model("pair")
    wait_for_ends(workers)
    assert cast.of("pair", "model.unloaded")[-1].fields["wiped"] is True
    assert cast.index("pair") == {1: ("UNAVAILABLE", "unloaded")}


def test_a_load_with_a_configuration_takes_over_without_a_refused_request(cast: Cast) -> None:
    before = len(cast.loads("quick"))
    changed = {"name": "quick", "maxBatchSize": 8, "dynamic_batching": {"max_queue_delay_microseconds": 123}}
    with Asking(cast.served, cast.quick) as asking:
        cast.operator.load_model("quick", config=json.dumps(changed | {"instance_group": [{"count": 2}]}))
        assert cast.operator.get_model_config("quick").config.dynamic_batching.max_queue_delay_microseconds == 123
        assert len(cast.loads("quick")) == before + 2
        cast.operator.load_model("quick")
        assert cast.operator.get_model_config("quick").config.dynamic_batching.max_queue_delay_microseconds == 0
    assert asking.errors == []
    assert asking.answered > 0
    asked = cast.of("quick", "model.load-asked")
    assert json.loads(asked[0].fields["configuration"])["dynamic_batching"] == changed["dynamic_batching"]
    cast.wait_for(lambda: len(cast.of("quick", "model.unloaded")) == 2)


def test_a_load_that_is_refused_changes_nothing(cast: Cast) -> None:
    before = len(cast.loads("quick"))
    for text, words in (
        ({"max_batch_size": 4}, "'max_batch_size'"),
        ({"instance_group": [{"count": 17}]}, "operator"),
        ({"optimization": {"priority": "PRIORITY_MAX"}}, "'optimization'"),
        ({"version_policy": {"specific": {"versions": [9]}}}, "at least one version must be available"),
    ):
        with pytest.raises(InferenceServerException, match=words):
            cast.operator.load_model("quick", config=json.dumps(text))
    with pytest.raises(InferenceServerException, match="failed to poll from model repository") as caught:
        cast.operator.load_model("nobody")
    assert caught.value.status() == "StatusCode.INTERNAL"
    cast.operator.unload_model("nobody")
    assert len(cast.loads("quick")) == before
    with cast.served.client() as client:
        check_answers(client, cast.quick)


@pytest.mark.parametrize("text", ["5", "null", '{"\\ud800": 1}', '{"name": "\\udcff"}'])
def test_a_load_with_any_text_leaves_the_server_up(cast: Cast, text: str) -> None:
    """What an operator's client sends is read in the supervisor."""
    with pytest.raises(InferenceServerException, match="model configuration: expected"):
        cast.operator.load_model("quick", config=text)
    assert cast.operator.is_server_live()


def test_a_load_finds_files_that_have_come_and_serves_what_the_policy_chooses(cast: Cast) -> None:
    cast.scene.seal(cast.newer)
    assert cast.index("quick").keys() == {1}, "nothing looks for files unasked in this mode"
    with Asking(cast.served, cast.newer, also=(cast.quick,)) as asking:
        cast.operator.load_model("quick")
    assert asking.errors == []
    with cast.served.client() as client:
        check_answers(client, cast.newer)
        cast.wait_for(lambda: cast.index("quick")[1][0] == "UNAVAILABLE")
        assert cast.index("quick")[1][1] == "unloaded: not in the version policy (latest 1)"
        cast.operator.load_model("quick", config=json.dumps({"version_policy": {"all": {}}}))
        assert {version: state for version, (state, _) in cast.index("quick").items()} == {1: "READY", 2: "READY"}
        check_answers(client, cast.quick, model_version="1")
        check_answers(client, cast.newer, model_version="2")
        cast.operator.load_model("quick", config=json.dumps({"versionPolicy": {"specific": {"versions": [1]}}}))
        cast.wait_for(lambda: cast.index("quick")[2][0] == "UNAVAILABLE")
        check_answers(client, cast.quick)
