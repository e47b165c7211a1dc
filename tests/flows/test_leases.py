"""Leases with real processes: renewed under load, revoked by model, chip and server, outlived by nobody.

A worker's end is awaited by its pidfd, never slept for. One model has leases of seconds, so that their end can be
waited for; two have those of an hour, and go only when they are revoked.
"""

import contextlib
import json
import os
import select
import signal
import ssl
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from hermetic.attestation.admin_client import AdminClient
from hermetic.attestation.clock import boottime
from hermetic.attestation.governance.alone import sign_restore
from hermetic.attestation.log.record import Record
from hermetic.attestation.operator_settings import OperatorSettings
from hermetic.demo import stage
from hermetic.demo.forgetting import look
from hermetic.demo.processes import Command
from hermetic.errors import BrokerRefusedError
from tests.attestation.broker.independent_guest import IndependentGuest
from tests.flows.moved_clock import COMPILER, PROGRAM, MovedClock
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, best_tee, check_answers, index_of, scene
from tests.flows.test_repository_explicit import Asking

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for a clock that moves"),
]

DAY_S = 86_400
SESSION_S = 10
LEASE_S, GRACE_S = 4.0, 8.0  # of the model "brief": longer than a load, or a renewal, on a busy machine
PATIENCE_S = 100.0  # until something must have come on any machine, however loaded
BRIEF = "brief"
LEASE_OVER = f"{BRIEF} version 1: UNAVAILABLE worker lost: ended: its lease was over"
READY = f"{BRIEF} version 1: READY"
OVER = "the model's lease is over: it is not served here any more"


@dataclass(slots=True)
class House:
    """A server with three models, and their operator."""

    scene: Scene
    served: Running
    networks: tuple[Network, Network]
    brief: Network
    operator: Client
    broker_clock: MovedClock
    host_clock: MovedClock

    def records(self, kind: str, whose: str = "server") -> list[Record]:
        return [r for r in self.scene.records(whose) if r.kind == kind]  # type: ignore[arg-type]

    @property
    def operators_file(self) -> Path:
        return self.scene.folder / "authority" / "operator" / "operator.toml"

    def broker(self, role: str | None = None) -> AdminClient:
        return OperatorSettings.load(self.operators_file).connect(role)

    def worker_of(self, network: Network) -> int:
        loaded = [r for r in self.records("model.loaded") if r.fields["model"] == network.name]
        return int(loaded[-1].fields["pid"])

    def renewals(self) -> list[Record]:
        """Of the model "brief"."""
        return [r for r in self.records("lease.renewed") if r.fields["model"] == BRIEF]

    def length_over(self) -> float:
        """Until when the newest lease of "brief" lasts at most without its grace, POSIX seconds."""
        loaded = [r for r in self.records("model.loaded") if r.fields["model"] == BRIEF]
        return LEASE_S + max(datetime.fromisoformat(r.time).timestamp() for r in (*loaded, *self.renewals()))


def _short_leases(folder: Path) -> None:
    """Give the model "brief" a policy of its own."""
    policy = (folder / "broker" / "policies" / "default.toml").read_text()
    assert 'models = ["*"]' in policy
    lines = [f'name = "{BRIEF}"' if line.startswith("name = ") else line for line in policy.splitlines()]
    brief = "\n".join(lines).replace('models = ["*"]', f'models = ["{BRIEF}"]')
    (folder / "broker" / "policies" / "brief.toml").write_text(brief)
    with (folder / "broker" / "broker.toml").open("a") as file:
        file.write(f"\n[limits]\nsession_s = {SESSION_S}\ntoken_s = {SESSION_S}\n")
        file.write(f'\n[[policies]]\nfile = "policies/brief.toml"\nlease_s = {LEASE_S}\nlease_grace_s = {GRACE_S}\n')


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Broker and host have a wall clock each, which a test may move."""
    clocks = tmp_path_factory.mktemp("clocks")
    broker_clock, host_clock = MovedClock(clocks, "broker"), MovedClock(clocks, "host")
    with contextlib.ExitStack() as resources:
        with broker_clock.told(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "Command", partial(Command, program=PROGRAM))
            place = resources.enter_context(scene(best_tee(), _short_leases))
        networks = dense(place.workshop, "first", seed=1), dense(place.workshop, "second", seed=2)
        brief = dense(place.workshop, BRIEF, seed=3)
        files = [place.seal(network) for network in (*networks, brief)]
        with host_clock.told():
            served = resources.enter_context(place.serve(files, program=PROGRAM))
        operator = resources.enter_context(served.client(operator=True))
        yield House(place, served, networks, brief, operator, broker_clock, host_clock)


def await_ends(pidfds: Sequence[int], within_s: float) -> None:
    """Wait for the end of all these processes."""
    deadline, waiting = time.monotonic() + within_s, list(pidfds)
    while waiting:
        ended, _, _ = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))
        assert ended, f"wanted them gone within {within_s} s, got {len(waiting)} alive"
        waiting = [one for one in waiting if one not in ended]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "wanted it to come"
        time.sleep(0.05)


def check_forgotten(pids: Sequence[int], canaries: Mapping[str, Sequence[bytes]]) -> None:
    """Nothing of these models is in these processes; only root may look."""
    if os.geteuid() == 0:
        counts = look(pids, canaries).counts
        assert set(counts.values()) == {0}, counts


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def said_that_it_is_over(error: Exception) -> bool:
    """In flight: what has ended; later: what there is no more, in Triton's words."""
    return any(words in str(error) for words in (OVER, "has no available versions", "is not at ready state"))


def test_renewals_bring_fresh_evidence_and_new_keys_and_no_caller_notices(house: House) -> None:
    brief, worker = house.brief, house.worker_of(house.brief)
    with Asking(house.served, brief) as asking:
        until(lambda: len(house.renewals()) >= 2)
    assert asking.errors == []
    assert house.worker_of(brief) == worker
    released = [r.fields for r in house.records("broker.release", "broker") if r.fields["model"]["name"] == BRIEF]
    assert [r["outcome"] for r in released[-2:]] == ["renewed", "renewed"]
    assert len({r["key"] for r in released}) == len({r["lease"]["jti"] for r in released}) == len(released)
    assert {r["lease"]["cnf"]["jkt"] for r in released} == {r["key"] for r in released}
    sizes = [int(r.fields["broker-checkpoint"].split("\n")[1]) for r in house.renewals()]
    assert sizes == sorted(set(sizes))
    assert house.records("broker.log-fault") == []
    attested = [r.fields["key"] for r in house.records("broker.attest", "broker")]
    assert {r["key"] for r in released} <= set(attested)


def test_operators_see_what_is_leased(house: House) -> None:
    listed = json.loads(house.scene.run("broker", "lease", "list", "--json", "-o", house.operators_file))
    assert {lease["model"] for lease in listed["leases"]} == {"first", "second", BRIEF}
    assert listed["revoked"] == []


@pytest.mark.parametrize("kind", ["model", "chip", "server"])
def test_what_is_revoked_stops_under_load_and_leaves_nothing(house: House, kind: str) -> None:
    if kind == "chip" and house.scene.installation.tee != "tpm":
        pytest.skip("sample evidence names no chip")
    first, second = house.networks
    held = house.records("broker.release", "broker")[-1].fields["lease"]
    target = {kind: {"model": first.name, "chip": (held["chips"] or [""])[0], "server": held["client"]}[kind]}
    concerned = [first] if kind == "model" else [first, second, house.brief]
    pidfds = [os.pidfd_open(house.worker_of(network)) for network in concerned]
    with house.served.client() as client, Asking(house.served, first) as asking, Asking(house.served, second) as others:
        check_answers(client, first)
        with house.broker() as broker:
            assert broker.revoke_leases(target, "a test") >= len(concerned)
        await_ends(pidfds, PATIENCE_S)
        until(lambda: bool(asking.errors))
    others_words = {str(error) for error in [*asking.errors, *others.errors] if not said_that_it_is_over(error)}
    assert not others_words, "wanted every refusal to say that the lease is over"
    assert bool(others.errors) == (second in concerned)
    until(lambda: all(index_of(house.operator)[network.name][0] == "UNAVAILABLE" for network in concerned))
    states = index_of(house.operator)
    for network in concerned:
        assert states[network.name][1].startswith("its lease was revoked: the " + kind)
        assert not house.operator.is_model_ready(network.name)
    canaries = {network.name: list(network.canaries) for network in concerned}
    check_forgotten([*house.served.pids, house.scene.installation.broker.pid], canaries)
    with pytest.raises(InferenceServerException, match="key broker refused"):
        house.operator.load_model(first.name)
    with house.broker() as broker, pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
        broker.restore_leases(target, "not the operator's role")
    with house.broker("rollback") as broker, pytest.raises(BrokerRefusedError, match="that operators signed"):
        broker.restore_leases(target, "nobody has signed")
    with house.broker() as broker:
        sign_restore(broker, target, "over", house.scene.installation.sign_as or "")
    for network in concerned:
        house.operator.load_model(network.name)
    with house.served.client() as client:
        check_answers(client, first)


def test_a_broker_that_is_away_for_less_than_the_grace_changes_nothing(house: House) -> None:
    """It is away when the lease's length ends, so that only the grace is left."""
    workers = [house.worker_of(network) for network in (*house.networks, house.brief)]
    with Asking(house.served, house.brief) as asking:
        with stopped(house.scene.installation.broker.pid):
            while (left_s := house.length_over() - time.time()) > 0:
                time.sleep(left_s)  # the absence is what is tested; a renewal may have been on its way
            renewed = len(house.renewals())
        until(lambda: len(house.renewals()) > renewed)
    assert asking.errors == []
    assert [house.worker_of(network) for network in (*house.networks, house.brief)] == workers


@contextlib.contextmanager
def off_by(clock: MovedClock, seconds: int) -> Iterator[None]:
    clock.move(seconds)
    try:
        yield
    finally:
        clock.move(0)


def test_a_broker_whose_clock_is_moved_goes_on_and_forgets_nothing_that_has_expired(house: House) -> None:
    """Its sessions and tokens end when they would have, and leases are renewed as before."""
    with http_of(house) as http:
        waiting, attested = IndependentGuest(http), IndependentGuest(http)
        waiting.auth()
        attested.handshake()
        begun = boottime()
        with off_by(house.broker_clock, DAY_S):
            pass  # what others have dated ends early meanwhile; nothing is left of it when the clock is right again
        with off_by(house.broker_clock, -DAY_S), Asking(house.served, house.brief) as asking:
            await_renewals(house)
        assert asking.errors == []
        with off_by(house.broker_clock, DAY_S):
            assert attested.resource("plain/a/b").json()["type"].endswith("PluginInternalError")  # it still counts
        while boottime() < begun + SESSION_S + 1:  # the end of a session is what is tested
            time.sleep(0.2)
            waiting.lease_key()  # a connection made under a clock that is off would not pass TLS
        for back in (SESSION_S, DAY_S):  # into its life again, and before it
            with off_by(house.broker_clock, -back):
                for bearer in (None, attested.token):
                    answer = attested.resource("plain/a/b", bearer=bearer)
                    assert answer.status_code == 401
                    assert answer.json()["type"].rpartition("/")[2] in ("TokenNotFound", "TokenVerifierError")
        with off_by(house.broker_clock, -DAY_S):
            assert "expired" in waiting.attest().json()["detail"]


def await_renewals(house: House) -> None:
    """Wait for two more: the first may have been on its way."""
    before = len(house.renewals())
    until(lambda: len(house.renewals()) >= before + 2)


def http_of(house: House) -> httpx.Client:
    """A connection to the broker for somebody with the host's certificate."""
    settings = tomllib.loads((house.scene.folder / "server" / "server.toml").read_text())["broker"]
    folder = house.scene.folder / "server"
    context = ssl.create_default_context(cafile=str(folder / settings["authority"]))
    context.load_cert_chain(folder / settings["certificate"], folder / settings["key"])
    return httpx.Client(base_url=settings["url"], verify=context, trust_env=False, timeout=PATIENCE_S)


@pytest.mark.parametrize(("moved", "refusal"), [(DAY_S, "lease-too-old"), (-DAY_S, "lease-from-the-future")])
def test_a_host_whose_clock_is_moved_has_no_longer_lease(house: House, moved: int, refusal: str) -> None:
    """The broker answers and the supervisor lives: the worker takes no lease, ends with its last one, and is wiped."""
    before, moment = len(house.records("lease.not-renewed")), house.served.ear.now
    pid = house.worker_of(house.brief)
    worker = os.pidfd_open(pid)
    with off_by(house.host_clock, moved):
        await_ends([worker], LEASE_S + GRACE_S + PATIENCE_S)
        house.served.ear.wait_for(LEASE_OVER, moment)
        check_forgotten(house.served.pids, {BRIEF: list(house.brief.canaries)})
    os.close(worker)
    reasons = {r.fields["reason"].partition(":")[0] for r in house.records("lease.not-renewed")[before:]}
    assert refusal in reasons
    house.served.ear.wait_for_each(LEASE_OVER, READY, after=moment)


@pytest.mark.parametrize("moved", [DAY_S, -DAY_S])
def test_a_caller_whose_clock_is_moved_believes_nobody(house: House, tmp_path: Path, moved: int) -> None:
    """Certificates of serving keys live for less than a day: out of their time, either way."""
    clock = MovedClock(tmp_path, "caller")
    clock.move(moved)
    folder = house.scene.folder / "client"
    files = {"ca": "serving-ca.pem", "cert": "client.pem", "key": "client.key", "policy": "caller.toml"}
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    with clock.told(), Command(["verify", house.served.address, *options], program=PROGRAM) as command:
        command.wait_for(r"tls: ", PATIENCE_S)


def test_past_the_grace_a_worker_ends_without_its_supervisor_and_the_model_comes_back(house: House) -> None:
    moment, worker = house.served.ear.now, os.pidfd_open(house.worker_of(house.brief))
    with stopped(house.scene.installation.broker.pid), stopped(house.served.server.pid):
        await_ends([worker], LEASE_S + GRACE_S + PATIENCE_S)
    house.served.ear.wait_for_each(LEASE_OVER, READY, after=moment)
    os.close(worker)


def test_workers_end_at_once_when_their_supervisor_is_killed(house: House) -> None:
    pidfds = [os.pidfd_open(house.worker_of(network)) for network in house.networks]
    os.kill(house.served.server.pid, signal.SIGKILL)
    await_ends(pidfds, PATIENCE_S)
    for pidfd in pidfds:
        os.close(pidfd)
