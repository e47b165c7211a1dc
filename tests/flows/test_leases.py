"""Leases with real processes: renewed under load, revoked by model, chip and server, outlived by nobody.

A worker's end is awaited by its pidfd, never slept for. The lengths are short, so that an end can be waited for.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from hermetic.attestation.log.record import Record
from hermetic.demo.forgetting import look
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, best_tee, check_answers, index_of, scene
from tests.flows.test_repository_explicit import Asking

pytestmark = pytest.mark.timeout(180)

LEASE_S, GRACE_S = 2.0, 3.0
REVOKED_WITHIN_S = 5.0
PATIENCE_S = 40.0
WORKER = "hermetic.enclave.worker"
OVER = "the model's lease is over: it is not served here any more"


@dataclass(slots=True)
class House:
    """A server with two models, both leased for seconds, and their operator."""

    scene: Scene
    served: Running
    networks: tuple[Network, Network]
    operator: Client

    def records(self, kind: str, whose: str = "server") -> list[Record]:
        return [r for r in self.scene.records(whose) if r.kind == kind]  # type: ignore[arg-type]

    def lease(self, *arguments: str) -> str:
        """Run `hermetic broker lease ...` as the broker's operator."""
        operator = self.scene.folder / "authority" / "operator" / "operator.toml"
        return self.scene.run("broker", "lease", *arguments, "-o", operator)

    def worker_of(self, network: Network) -> int:
        loaded = [r for r in self.records("model.loaded") if r.fields["model"] == network.name]
        return int(loaded[-1].fields["pid"])

    def load(self, *networks: Network) -> None:
        for network in networks:
            self.operator.load_model(network.name)
            with self.served.client() as client:
                check_answers(client, network)


def _short_leases(folder: Path) -> None:
    path = folder / "broker" / "broker.toml"
    text = path.read_text()
    for name, old, new in (("lease_s", "3600", LEASE_S), ("lease_grace_s", "900", GRACE_S)):
        assert f"{name} = {old}" in text
        text = text.replace(f"{name} = {old}", f"{name} = {new}")
    path.write_text(text)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with scene(best_tee(), _short_leases) as place:
        networks = dense(place.workshop, "first", seed=1), dense(place.workshop, "second", seed=2)
        files = [place.seal(network) for network in networks]
        with place.serve(files) as served, served.client(operator=True) as operator:
            yield House(place, served, networks, operator)


def await_end(pidfds: Sequence[int], within_s: float) -> float:
    """Wait for the end of all these processes; returns how long it took."""
    begun, waiting = time.monotonic(), list(pidfds)
    while waiting:
        left = begun + within_s - time.monotonic()
        ended, _, _ = select.select(waiting, [], [], max(0.0, left))
        assert ended, f"wanted them gone within {within_s} s, got {len(waiting)} alive"
        waiting = [one for one in waiting if one not in ended]
    return time.monotonic() - begun


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "wanted it to come"
        time.sleep(0.05)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ask_until_refused(client: Client, network: Network) -> InferenceServerException:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            check_answers(client, network)
        except InferenceServerException as error:
            return error
    pytest.fail("wanted a refusal, got answers")


def test_renewals_bring_fresh_evidence_and_new_keys_and_no_caller_notices(house: House) -> None:
    first, second = house.networks
    workers = {house.worker_of(network) for network in house.networks}
    before = len(house.records("lease.renewed"))
    with Asking(house.served, first) as one, Asking(house.served, second) as other:
        until(lambda: len(house.records("lease.renewed")) >= before + 4)
    assert one.errors == other.errors == []
    assert {house.worker_of(network) for network in house.networks} == workers
    released = [r.fields for r in house.records("broker.release", "broker") if r.fields["model"]["name"] == "first"]
    assert [r["outcome"] for r in released[:3]] == ["released", "renewed", "renewed"]
    assert len({r["key"] for r in released}) == len({r["lease"]["jti"] for r in released}) == len(released)
    assert {r["lease"]["cnf"]["jkt"] for r in released} == {r["key"] for r in released}
    attested = [r.fields["key"] for r in house.records("broker.attest", "broker")]
    assert {r["key"] for r in released} <= set(attested)


@pytest.mark.parametrize("kind", ["model", "chip", "server"])
def test_what_is_revoked_stops_under_load_and_leaves_nothing(house: House, kind: str) -> None:
    if kind == "chip" and house.scene.installation.tee != "tpm":
        pytest.skip("sample evidence names no chip")
    first, second = house.networks
    held = house.records("broker.release", "broker")[-1].fields["lease"]
    target = {"model": first.name, "chip": (held["chips"] or [""])[0], "server": held["client"]}[kind]
    concerned = [first] if kind == "model" else [first, second]
    pidfds = [os.pidfd_open(house.worker_of(network)) for network in concerned]
    with house.served.client() as client, Asking(house.served, second) as others:
        began = time.monotonic()
        house.lease("revoke", f"--{kind}", target, "--reason", "a test")
        await_end(pidfds, REVOKED_WITHIN_S)
        assert time.monotonic() - began < 2 * REVOKED_WITHIN_S  # the command's own start is in it
        error = ask_until_refused(client, first)
    for pidfd in pidfds:
        os.close(pidfd)
    assert "has no available versions" in error.message() or OVER in error.message()
    assert bool(others.errors) == (second in concerned)
    assert all("has no available versions" in str(e) or OVER in str(e) for e in others.errors), others.errors
    states = index_of(house.operator)
    for network in concerned:
        assert states[network.name][0] == "UNAVAILABLE"
        assert states[network.name][1].startswith("its lease was revoked: the " + kind)
        assert not house.operator.is_model_ready(network.name)
    canaries = {network.name: list(network.canaries) for network in concerned}
    found = look([*house.served.pids, house.scene.installation.broker.pid], canaries)
    assert all(count == 0 for count in found.counts.values()), found.counts
    with pytest.raises(InferenceServerException, match="key broker refused"):
        house.operator.load_model(first.name)
    house.lease("restore", f"--{kind}", target, "--reason", "over", "--role", "rollback")
    house.load(*concerned)


def test_a_broker_that_is_away_for_less_than_the_grace_changes_nothing(house: House) -> None:
    workers = [house.worker_of(network) for network in house.networks]
    with Asking(house.served, house.networks[0]) as asking, stopped(house.scene.installation.broker.pid):
        failures = len(house.records("lease.renewed"))
        time.sleep(LEASE_S)  # the broker's absence is the test; the lease's length is over by then, its grace is not
    until(lambda: len(house.records("lease.renewed")) >= failures + 2)
    assert asking.errors == []
    assert [house.worker_of(network) for network in house.networks] == workers


def test_past_the_grace_models_stop_and_come_back_with_the_broker(house: House) -> None:
    moment = house.served.ear.now
    pidfds = [os.pidfd_open(house.worker_of(network)) for network in house.networks]
    with stopped(house.scene.installation.broker.pid):
        await_end(pidfds, LEASE_S + GRACE_S + REVOKED_WITHIN_S)
        for network in house.networks:
            house.served.ear.wait_for(f"{network.name} version 1: UNAVAILABLE .*its lease was over", moment)
    for network in house.networks:
        house.served.ear.wait_for(f"{network.name} version 1: READY", moment)
    for pidfd in pidfds:
        os.close(pidfd)


def test_workers_end_without_their_supervisor_too(house: House) -> None:
    pidfds = [os.pidfd_open(house.worker_of(network)) for network in house.networks]
    with stopped(house.served.server.pid):
        await_end(pidfds, LEASE_S + GRACE_S + REVOKED_WITHIN_S)
    until(lambda: all(house.operator.is_model_ready(network.name) for network in house.networks))
    pidfds += [os.pidfd_open(house.worker_of(network)) for network in house.networks]
    os.kill(house.served.server.pid, signal.SIGKILL)
    await_end(pidfds, REVOKED_WITHIN_S)
    for pidfd in pidfds:
        os.close(pidfd)
