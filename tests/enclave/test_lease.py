"""A worker under leases, with real processes: what it refuses, when it ends, and that it ends amid a batch too."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hermetic.attestation.lease import LeasedModel, LeaseSigner, LeaseTerms, Refusal, key_thumbprint
from hermetic.bench.forget.last_moment import LastMoments
from hermetic.enclave.answering import answer
from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.known_answer_file import KnownAnswer
from hermetic.enclave.lease_timer import ENDED_AMID_WORK_STATUS, ENDED_STATUS, LeaseTimer, boottime
from hermetic.enclave.memory_scan import scan
from hermetic.enclave.supervisor import Worker
from hermetic.enclave.worker_lease import WorkerLease
from hermetic.errors import HermeticError, LeaseRefusedError
from tests.enclave.sealed_models import Sealed, known_answers_of, linear, sealed, settings, spec, started, tensor
from tests.flows.endless import endless, fatal

BROKER = LeaseSigner(ec.generate_private_key(ec.SECP256R1()))
STRANGER = LeaseSigner(ec.generate_private_key(ec.SECP256R1()))
HOUR_MS = 3_600_000
SOON_MS = 300
END_TIMEOUT_S = 60
ENDS: dict[str, Any] = {"inputs": [spec("x", "FP32", 96)], "outputs": [spec("y", "FP32", 96)], "max_batch_size": 8}
INPUTS = (tensor("x", "FP32", np.ones((1, 96), np.float32)),)


@dataclass
class Leased:
    """A worker that was told of the broker's key, and leases for it."""

    worker: Worker
    model: Sealed

    def terms(self, key: dict[str, str], **change: Any) -> LeaseTerms:
        manifest = self.model.manifest
        facts: dict[str, Any] = {
            "name": manifest.name,
            "version": manifest.version,
            "manifest_digest": manifest.digest().hex(),
        }
        facts |= {name: change.pop(name) for name in list(change) if name in facts}
        members = {"iss": "b", "jti": "0" * 32, "iat": int(time.time()), "length_ms": HOUR_MS, "grace_ms": 0}
        terms = members | {"client": None, "chips": ()} | change
        return LeaseTerms.of(LeasedModel(**facts), key_thumbprint(key), **terms)

    def open(self, lease: str, **more: Any) -> None:
        jwe = wrap_to(self.worker.public_key, bytearray(self.model.key))
        self.worker.open(self.model.fd, jwe, self.model.manifest.digest(), lease=lease, **more)

    def open_for_an_hour(self) -> str:
        lease = BROKER.sign(self.terms(self.worker.public_key))
        self.open(lease)
        return lease

    def renew(self, signer: LeaseSigner = BROKER, **change: Any) -> float:
        key = self.worker.new_lease_key(END_TIMEOUT_S)
        return self.worker.take_lease(signer.sign(self.terms(key, **change)), None, END_TIMEOUT_S)

    def end(self) -> str:
        """Wait for the end that it comes to by itself."""
        ended = select.poll()
        ended.register(self.worker.pidfd, select.POLLIN)
        assert ended.poll(1000 * END_TIMEOUT_S), "wanted it to end, got it alive"
        return self.worker.reap()


@pytest.fixture(scope="module")
def cases() -> list[KnownAnswer]:
    graph, _ = linear()
    with sealed({"model.onnx": graph.SerializeToString()}, **ENDS) as draft:
        return known_answers_of(draft, [INPUTS])


@pytest.fixture(scope="module")
def model(cases: list[KnownAnswer]) -> Iterator[Sealed]:
    graph, _ = linear()
    with sealed({"model.onnx": graph.SerializeToString()}, cases=cases, **ENDS) as final:
        yield final


@pytest.fixture(scope="module")
def serving(model: Sealed) -> Iterator[Leased]:
    """A worker that serves under a lease of an hour, for the tests that leave it as it was."""
    with started(settings(lease_key=BROKER.public.text)) as worker:
        leased = Leased(worker, model)
        leased.open_for_an_hour()
        yield leased


@contextlib.contextmanager
def new(model: Sealed) -> Iterator[Leased]:
    with started(settings(lease_key=BROKER.public.text)) as worker:
        yield Leased(worker, model)


def test_without_a_lease_nothing_is_opened(model: Sealed) -> None:
    with new(model) as leased:
        with pytest.raises(LeaseRefusedError, match=f"^{Refusal.MISSING}: "):
            leased.open("")
        with pytest.raises(ProcessLookupError):
            os.kill(leased.worker.pid, 0)


RENEWALS: dict[str, tuple[Callable[[Leased], float], Refusal]] = {
    "forged by a stranger": (lambda one: one.renew(STRANGER), Refusal.SIGNATURE),
    "of another model": (lambda one: one.renew(name="other"), Refusal.MODEL),
    "of another version": (lambda one: one.renew(version=9), Refusal.MODEL),
    "of another manifest": (lambda one: one.renew(manifest_digest="00" * 32), Refusal.MODEL),
    "issued tomorrow": (lambda one: one.renew(iat=int(time.time()) + 86_400), Refusal.FUTURE),
    "issued yesterday": (lambda one: one.renew(iat=int(time.time()) - 86_400), Refusal.OLD),
    "for another worker's key": (
        lambda one: one.worker.take_lease(
            BROKER.sign(one.terms(STRANGER.public.jwk)), None, END_TIMEOUT_S  # type: ignore[arg-type]
        ),
        Refusal.KEY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RENEWALS)
def test_a_renewal_that_is_not_right_is_refused_and_the_lease_before_holds(serving: Leased, name: str) -> None:
    attack, refusal = RENEWALS[name]
    serving.renew()
    with pytest.raises(LeaseRefusedError, match=f"^{refusal}: "):
        attack(serving)
    assert answer(serving.worker, INPUTS)
    assert serving.renew() == pytest.approx(HOUR_MS / 1000, abs=60)


def test_an_old_lease_is_not_taken_again(serving: Leased) -> None:
    key = serving.worker.new_lease_key(END_TIMEOUT_S)
    lease = BROKER.sign(serving.terms(key))
    serving.worker.take_lease(lease, None, END_TIMEOUT_S)
    for again in ("at once", "after another key"):
        with pytest.raises(LeaseRefusedError, match=f"^{Refusal.KEY}: "):
            serving.worker.take_lease(lease, None, END_TIMEOUT_S)
        assert serving.worker.new_lease_key(END_TIMEOUT_S) != key, again


def test_the_server_shortens_a_lease_and_lengthens_none(serving: Leased) -> None:
    for at_most_ms, wanted_s in ((HOUR_MS // 2, 1800), (2 * HOUR_MS, 3600)):
        key = serving.worker.new_lease_key(END_TIMEOUT_S)
        left = serving.worker.take_lease(BROKER.sign(serving.terms(key)), at_most_ms, END_TIMEOUT_S)
        assert left == pytest.approx(wanted_s, abs=60)
        assert left <= wanted_s


def test_a_lease_that_is_over_wipes_the_worker_and_ends_it(model: Sealed) -> None:
    canary = linear()[1][:4].tobytes()
    with new(model) as leased:
        leased.open_for_an_hour()
        assert answer(leased.worker, INPUTS)
        left: list[Any] = []
        with contextlib.ExitStack() as watching:
            if os.geteuid() == 0:
                pid = leased.worker.pid
                assert scan(pid, {"weight": canary}).hits != ()
                watching.enter_context(LastMoments([pid], lambda pid: left.extend(scan(pid, {"weight": canary}).hits)))
            leased.renew(length_ms=SOON_MS)
        assert left == []
        assert leased.end() == "ended: its lease was over, and it has wiped itself"
        assert leased.worker._process.returncode == ENDED_STATUS


def test_the_grace_is_part_of_it(serving: Leased) -> None:
    assert serving.renew(length_ms=1, grace_ms=HOUR_MS) > HOUR_MS / 1000 - 60


def test_a_lease_is_over_amid_a_batch_that_never_ends(tmp_path: Path) -> None:
    """The decrypted model is overwritten under the runtime; what that has packed for itself is not (LIMITATIONS.md)."""
    network = endless(tmp_path, "endless", seed=1)
    ends: dict[str, Any] = {"inputs": [spec("x", "FP32", 64)], "outputs": [spec("y", "FP32", 64)], "max_batch_size": 8}
    content = {"model.onnx": network.file.read_bytes()}
    rows = (tensor("x", "FP32", network.rows(1)),)
    with sealed(content, **ends) as draft:
        cases = known_answers_of(draft, [rows])
    canaries = {str(number): canary for number, canary in enumerate(network.canaries)}
    with sealed(content, cases=cases, **ends) as final, new(final) as leased:
        leased.open_for_an_hour()
        outcome: list[HermeticError] = []
        left: list[str] = []

        def decrypted(pid: int) -> list[str]:
            return [hit.region for hit in scan(pid, canaries).hits if "hermetic-model" in hit.region]

        def ask() -> None:
            try:
                answer(leased.worker, (tensor("x", "FP32", fatal(network)),))
            except HermeticError as error:
                outcome.append(error)

        asking = threading.Thread(target=ask)
        with contextlib.ExitStack() as watching:
            if os.geteuid() == 0:
                pid = leased.worker.pid
                assert decrypted(pid) != []
                watching.enter_context(LastMoments([pid], lambda pid: left.extend(decrypted(pid))))
            leased.renew(length_ms=4 * SOON_MS)  # the batch begins before
            asking.start()
        said = leased.end()
        asking.join(END_TIMEOUT_S)
        assert left == []
        assert said == "ended: its lease was over amid a batch: it has overwritten the model"
        assert leased.worker._process.returncode == ENDED_AMID_WORK_STATUS
        assert len(outcome) == 1, "nothing is answered once the lease is over"


class TestOnAClockOfItsOwn:
    """What a worker decides, with time that the test moves: nobody waits, and no process ends."""

    KEY: dict[str, str] = dict(STRANGER.public.jwk)  # noqa: RUF012
    MODEL = LeasedModel(name="m", version=1, manifest_digest="00" * 32)

    def lease(self, length_ms: int) -> str:
        terms = LeaseTerms.of(
            self.MODEL,
            key_thumbprint(self.KEY),
            iss="b",
            jti="0" * 32,
            iat=int(time.time()),
            length_ms=length_ms,
            grace_ms=0,
            client=None,
            chips=(),
        )
        return BROKER.sign(terms)

    def worker(self) -> WorkerLease:
        return WorkerLease(BROKER.public.text, LeaseTimer())

    def test_holding_a_lease_back_shortens_it(self) -> None:
        held_back_s = 50.0
        lease = self.worker()
        lease.expect(self.KEY, (time.time() - held_back_s, boottime() - held_back_s))
        lease.begin(self.MODEL, self.lease(HOUR_MS), None)
        assert lease.timer.left_s <= HOUR_MS / 1000 - held_back_s

    def test_a_lease_that_comes_too_late_is_refused(self) -> None:
        lease = self.worker()
        lease.expect(self.KEY, (time.time() - 50, boottime() - 50))
        with pytest.raises(LeaseRefusedError, match=f"^{Refusal.OVER}: "):
            lease.begin(self.MODEL, self.lease(49_000), None)

    @pytest.mark.parametrize("moved_s", [-86_400, 86_400])
    def test_a_wall_clock_that_is_moved_lengthens_nothing(self, monkeypatch: pytest.MonkeyPatch, moved_s: int) -> None:
        """After the move nothing new is taken, and what is in force ends when it would have."""
        now = time.time()
        lease = self.worker()
        lease.expect(self.KEY, (now, boottime()))
        lease.begin(self.MODEL, self.lease(HOUR_MS), None)
        ends = lease.timer.left_s
        monkeypatch.setattr("hermetic.enclave.worker_lease.wall_clock", lambda: now + moved_s)
        key = lease.new_key()
        terms = LeaseTerms.read(self.lease(HOUR_MS)).model_dump() | {"cnf": {"jkt": key_thumbprint(key)}}
        with pytest.raises(LeaseRefusedError, match=f"^({Refusal.FUTURE}|{Refusal.OLD}): "):
            lease.take(BROKER.sign(LeaseTerms.model_validate(terms)), None)
        assert lease.timer.left_s <= ends

    @pytest.mark.parametrize(
        "inherited",
        [
            "pass",
            "signal.signal(signal.SIGALRM, signal.SIG_IGN)",
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})",
        ],
    )
    def test_the_kernel_ends_a_process_whose_thread_cannot(self, inherited: str) -> None:
        """A process that arms its lease, and whose thread does nothing at its end; whatever it was started with."""
        program = (
            f"import signal\n{inherited}\n"
            "from hermetic.enclave import lease_timer as module\n"
            "module.FORCED_AFTER_S = 0.05\n"
            "timer = module.LeaseTimer()\n"
            "timer._run = lambda: None\n"
            "timer.arm(module.boottime())\n"
            "signal.pause()\n"
        )
        result = subprocess.run([sys.executable, "-c", program], check=False, timeout=END_TIMEOUT_S)
        assert result.returncode == -signal.SIGALRM
