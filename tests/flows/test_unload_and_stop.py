"""Models and servers that go: unloaded, drained, killed. What was accepted is answered, and nothing is left behind."""

import os
import queue
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from hermetic.demo.forgetting import look
from tests.flows.networks import Network, dense, slow
from tests.flows.scene import Client, Running, Scene, check_answers, index_of, question, scene

TURNS = 10_000  # of the slow model's loop: some 50 ms for each request
IN_FLIGHT = 24
END_TIMEOUT_S = 120
UNAVAILABLE = "StatusCode.UNAVAILABLE"
WORKER, FRONT_END = "hermetic.enclave.worker", "hermetic.server.frontend"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models: one answers at once, the other takes its time with each row, so that requests queue."""

    scene: Scene
    quick: Network
    slow: Network

    @property
    def files(self) -> tuple[Path, Path]:
        return self.scene.sealed["quick"], self.scene.sealed["slow"]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with scene("sample") as place:
        pair = Pair(place, dense(place.workshop, "quick", seed=3), slow(place.workshop, "slow", seed=4, turns=TURNS))
        for network in (pair.quick, pair.slow):
            place.seal(network)
        yield pair


class Questions:
    """Many questions to the slow model at once, on one connection, and how each was answered."""

    def __init__(self, client: Client, network: Network, count: int = IN_FLIGHT) -> None:
        self._network = network
        self._rows = network.rows(count)
        self._answers: queue.Queue[tuple[int, Any, InferenceServerException | None]] = queue.Queue()
        self.count = count
        for number, row in enumerate(self._rows):
            client.async_infer(network.name, question(row[None]), self._callback(number))
        first = self._answers.get(timeout=END_TIMEOUT_S)
        self._answers.put(first)
        # Answered by the same loop, on the same connection, after it has accepted all of the above.
        assert client.is_server_live()
        assert self._answers.qsize() < count, "wanted questions in flight, got them all answered"

    def _callback(self, number: int) -> Callable[[Any, InferenceServerException | None], None]:
        return lambda result, error: self._answers.put((number, result, error))

    def check(self) -> list[InferenceServerException]:
        """Wait for the end of each; every answer is the plain model's. Returns the errors."""
        errors = []
        wanted = np.concatenate([self._network.answer(row[None]) for row in self._rows[:2]])
        for _ in range(self.count):
            number, result, error = self._answers.get(timeout=END_TIMEOUT_S)
            if error is not None:
                errors.append(error)
            elif number < len(wanted):
                np.testing.assert_allclose(result.as_numpy("y")[0], wanted[number], rtol=1e-4, atol=1e-4)
        return errors


def worker_of(pair: Pair, name: str) -> int:
    """The process of the last load of a model, as the server's log has it."""
    pids = [
        r.fields["pid"] for r in pair.scene.records("server") if r.kind == "model.loaded" and r.fields["model"] == name
    ]
    return int(pids[-1])


def wait_for_ends(pidfds: Sequence[int]) -> None:
    """Wait until all of these processes have ended; fail where one lives on."""
    deadline = time.monotonic() + END_TIMEOUT_S
    waiting = list(pidfds)
    while waiting:
        ended, _, _ = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))
        assert ended, f"wanted every process gone within {END_TIMEOUT_S} s, got {len(waiting)} alive"
        waiting = [pidfd for pidfd in waiting if pidfd not in ended]
    for pidfd in pidfds:
        os.close(pidfd)


def status_of(ask: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask()
    return str(caught.value.status())


# -------------------------------------------------------------------------------------------- the end


def test_sigterm_under_load_loses_nothing_and_leaves_nothing(pair: Pair) -> None:
    with pair.scene.serve(pair.files) as served, served.client() as client, served.client() as late:
        check_answers(late, pair.quick)
        processes = [os.pidfd_open(pid) for pid in served.pids]
        questions = Questions(client, pair.slow)
        os.kill(served.server.pid, signal.SIGTERM)
        assert status_of(lambda: ask_until_refused(late, pair.quick)) == UNAVAILABLE
        assert questions.check() == []
        served.server.succeed(END_TIMEOUT_S)
        wait_for_ends(processes)
    assert pair.scene.records("server")[-1].kind == "server.stopped"


def ask_until_refused(client: Client, network: Network) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        client.infer(network.name, question(network.rows(1)))


def test_nobody_outlives_a_killed_supervisor(pair: Pair) -> None:
    with pair.scene.serve(pair.files[:1]) as served:
        children = [os.pidfd_open(pid) for pid in served.pids[1:]]
        assert len(children) == 2
        os.kill(served.server.pid, signal.SIGKILL)
        wait_for_ends(children)


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    """The server of the tests below, which leave it as they found it. One server at a time: the log has one writer."""
    with pair.scene.serve(pair.files) as served:
        yield served


# --------------------------------------------------------------------------------------------------------------- unload


def test_who_may_not_operate_may_not_unload(served: Running, pair: Pair) -> None:
    with served.client() as client:
        assert status_of(lambda: client.unload_model("quick")) == "StatusCode.PERMISSION_DENIED"
        assert status_of(lambda: client.load_model("quick")) == "StatusCode.PERMISSION_DENIED"
        check_answers(client, pair.quick)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of locked processes")
def test_unload_in_flight_answers_what_was_accepted_and_leaves_no_weight(served: Running, pair: Pair) -> None:
    canaries = {network.name: network.canaries for network in (pair.quick, pair.slow)}
    with served.client() as client, served.client(operator=True) as operator:
        processes = [*served.pids, pair.scene.installation.broker.pid]
        before = look(processes, canaries)
        assert before.counts["slow"] > 0, "the scanner's positive control"
        worker = os.pidfd_open(worker_of(pair, "slow"))
        questions = Questions(client, pair.slow)
        operator.unload_model("slow")
        assert questions.check() == []
        wait_for_ends([worker])
        after = look([*served.pids, pair.scene.installation.broker.pid], canaries)
        assert after.counts["slow"] == 0
        assert after.counts["quick"] > 0, "the other model's weights stay where they are"
        assert status_of(lambda: client.infer("slow", question(pair.slow.rows(1)))) == "StatusCode.NOT_FOUND"
        assert index_of(operator)["slow"] == ("UNAVAILABLE", "unloaded")
        check_answers(client, pair.quick)
        operator.load_model("slow")
        assert Questions(client, pair.slow, 3).check() == []


# -------------------------------------------------------------------------------------------- kill -9 and back


def test_a_killed_worker_is_an_error_of_its_requests_only_and_comes_back(served: Running, pair: Pair) -> None:
    with served.client() as client, served.client() as other:
        questions = Questions(client, pair.slow)
        moment = served.ear.now
        os.kill(worker_of(pair, "slow"), signal.SIGKILL)
        check_answers(other, pair.quick)
        errors = questions.check()
        assert errors, "wanted the requests of the killed worker to fail, got all answered"
        assert {str(error.status()) for error in errors} == {UNAVAILABLE}
        served.wait_until_lost_and_ready(pair.scene.sealed["slow"], moment)
        check_answers(other, pair.quick)
        assert Questions(client, pair.slow, 3).check() == []


def test_a_worker_that_dies_while_it_is_unloaded_stays_away(served: Running, pair: Pair) -> None:
    """The operator asked for an end, and gets it, however it came; nothing starts the model again."""
    with served.client() as client, served.client(operator=True) as operator:
        questions = Questions(client, pair.slow)
        with ThreadPoolExecutor(1) as pool:
            moment = served.ear.now
            unloaded = pool.submit(operator.unload_model, "slow")
            served.ear.wait_for("^model slow version 1: UNLOADING", moment)
            os.kill(worker_of(pair, "slow"), signal.SIGKILL)
            unloaded.result(END_TIMEOUT_S)
        assert {str(error.status()) for error in questions.check()} == {UNAVAILABLE}
        assert index_of(operator)["slow"] == ("UNAVAILABLE", "unloaded")
        ended = [record for record in pair.scene.records("server") if record.kind == "model.unloaded"]
        assert ended[-1].fields["wiped"] is False
        operator.load_model("slow")
        served.wait_until_ready(pair.scene.sealed["slow"], moment)
        assert Questions(client, pair.slow, 3).check() == []


def wait_for_front_end(served: Running) -> None:
    """Wait until somebody listens on the server's port and speaks TLS."""
    credentials = grpc.ssl_channel_credentials(
        served.ca_file.read_bytes(), served.key_file.read_bytes(), served.certificate_file.read_bytes()
    )
    with grpc.secure_channel(served.address, credentials) as channel:
        grpc.channel_ready_future(channel).result(END_TIMEOUT_S)


def wait_until_served(client: Client, network: Network) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while not client.is_model_ready(network.name):
        assert time.monotonic() < deadline, f"wanted {network.name} ready, got a front end without it"


def test_a_killed_front_end_comes_back_on_the_same_port(served: Running, pair: Pair) -> None:
    (front_end,) = served.children(FRONT_END)
    os.kill(front_end, signal.SIGKILL)
    wait_for_front_end(served)
    assert served.children(FRONT_END) != [front_end]
    with served.client() as client:
        for network in (pair.quick, pair.slow):
            wait_until_served(client, network)
        check_answers(client, pair.quick)


def test_front_end_and_workers_killed_at_once_come_back(served: Running, pair: Pair) -> None:
    """The supervisor talks to processes that are gone already, and lives."""
    moment = served.ear.now
    victims = [*served.children(FRONT_END), *served.children(WORKER)]
    os.kill(served.server.pid, signal.SIGSTOP)  # so that it finds all of them dead
    gone = [os.pidfd_open(pid) for pid in victims]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for_ends(gone)
    os.kill(served.server.pid, signal.SIGCONT)
    for file in pair.files:
        served.wait_until_lost_and_ready(file, moment)
    wait_for_front_end(served)
    with served.client() as client:
        wait_until_served(client, pair.quick)
        check_answers(client, pair.quick)
