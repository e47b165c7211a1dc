"""Our server towards a broker that knows RCAR and nothing of ours: requests field by field, leases emulated."""

import ssl
import threading
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.exchange import BrokerClient
from hermetic.attestation.key_memory import KeyMemory
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.enclave.attested_key import KEY_MEMORY_BYTES, AttestedKey
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.supervisor import Worker
from hermetic.errors import BrokerRefusedError
from hermetic.server.attesting import Applicant, Attesting
from hermetic.server.config import Isolation
from hermetic.server.lease_events import LeaseEvents
from hermetic.server.loading import Leased, Loader
from tests.attestation.broker.independent_broker import IndependentBroker
from tests.enclave.sealed_by_hand import manifest_of

PATH = "models/ours/1"
KEY = bytes(range(32))
REPORT = LockdownReport(properties={}, waived=(), warnings=(), zeroing="enforced")
WAIT_S = 60.0


@pytest.fixture(params=[True, False], ids=["in RCAR's words", "with nothing"])
def broker(request: pytest.FixtureRequest) -> IndependentBroker:
    """How it answers on a path that it does not know."""
    return IndependentBroker({PATH: KEY}, says_what_path=request.param)


def connect(broker: IndependentBroker) -> BrokerClient:
    client = BrokerClient("https://broker.test", ssl.create_default_context())
    client._http.close()
    client._http = httpx.Client(base_url="https://broker.test", transport=httpx.MockTransport(broker))
    return client


@pytest.fixture
def attesting(broker: IndependentBroker) -> Iterator[Attesting]:
    with connect(broker) as client:
        yield Attesting(CompositeAttester(SampleAttester()), client, lambda: {"profile": "demo"})


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.model_validate(manifest_of([("model.onnx", b"g")], key_id=f"kbs:///{PATH}"), strict=False)


def key_pair() -> AttestedKey:
    return AttestedKey(KeyMemory(KEY_MEMORY_BYTES))


def test_a_key_is_had_with_nothing_that_the_protocol_does_not_have(
    broker: IndependentBroker, attesting: Attesting, manifest: Manifest
) -> None:
    assert attesting.lease_key() == ""
    pair = key_pair()
    release = attesting.release_key(manifest, Applicant(pair.public_jwk, REPORT))
    assert broker.wrong == []
    assert [(method, path) for method, path, _ in broker.requests] == [
        ("GET", "/hermetic/v1/leases/key"),
        ("POST", "/kbs/v0/auth"),
        ("POST", "/kbs/v0/attest"),
        ("GET", f"/kbs/v0/resource/{PATH}"),
    ]
    assert bytes(pair.open(release.jwe)) == KEY
    assert (release.checkpoint, release.lease) == (None, "")


class WorkerWithKeys:
    """A worker that makes a key for each renewal."""

    report = REPORT
    hybrid_key = ""

    def __init__(self) -> None:
        self.made: list[dict[str, str]] = []

    def new_lease_key(self, _timeout_s: float) -> dict[str, str]:
        self.made.append(dict(key_pair().public_jwk))
        return self.made[-1]


def test_leases_are_emulated_by_asking_again_with_fresh_evidence_and_a_new_key(
    broker: IndependentBroker, attesting: Attesting, manifest: Manifest
) -> None:
    loader = Loader(Isolation(), TrustedPublishers(publishers=()), attesting, ("one",))
    leased = loader.leasing.of("", attesting.lease_key(), 0.0)
    worker = WorkerWithKeys()
    for _ in range(2):
        leased = loader.renew(cast(Worker, worker), manifest, leased, WAIT_S)
        assert leased.facts()["lease"] == "not offered by broker"
    assert broker.wrong == []
    attested = [body["runtime-data"] for _, path, body in broker.requests if path.endswith("/attest")]
    assert [one["tee-pubkey"] for one in attested] == worker.made
    assert len({one["nonce"] for one in attested}) == len({key["x"] for key in worker.made}) == len(attested)
    broker.allowed = False
    with pytest.raises(BrokerRefusedError) as caught:
        loader.renew(cast(Worker, worker), manifest, leased, WAIT_S)
    assert caught.value.variant == "PolicyDeny"  # final


def test_a_broker_without_a_feed_is_asked_for_one_seldom(broker: IndependentBroker) -> None:
    lost = threading.Event()
    waits: list[float] = []
    events = LeaseEvents(lambda: connect(broker))

    def wait(seconds: float) -> Any:
        waits.append(seconds)
        events.stop()
        lost.set()

    events._stopped.wait = wait  # type: ignore[assignment, method-assign]
    events.start()
    assert lost.wait(WAIT_S)
    assert waits == [60.0]
    assert isinstance(Leased(None, "", 0.0, 1.0, 1.0).facts()["lease"], str)
