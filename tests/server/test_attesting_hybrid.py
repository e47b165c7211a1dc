"""The server's side of the negotiation: what it attests, and which brokers and answers it does not take."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermetic.attestation.exchange import BrokerClient, Challenge
from hermetic.attestation.hybrid_key import HybridPublicKey, KeyWrap, public_key
from hermetic.enclave.attested_key import AttestedKey, wrap_to
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.errors import BrokerRefusedError
from hermetic.server.attesting import Applicant, Attesting
from tests.server.test_loading import manifest

OURS: dict[str, Any] = {"hermetic": {"version": 1}}
HYBRID = OURS | {"hermetic-key-wraps": ["HPKE-10-KE"]}
KEY = public_key(bytes(32))
REPORT = LockdownReport(properties={}, waived=(), warnings=(), zeroing="best effort")


class FarBroker:
    """A broker that answers with what it is told to, and remembers what it was sent."""

    def __init__(self, offer: Any, answer: bytes) -> None:
        self.challenge_of = Challenge("session", "nonce", offer)
        self.answer = answer
        self.attested: Any = "nothing"
        self.last_checkpoint = None
        self.last_lease = ""
        self.turn = __import__("threading").RLock()

    def challenge(self, tee: str) -> Challenge:
        return self.challenge_of

    def attest(self, challenge: Challenge, key: Any, evidence: Any, hermetic: Any, *, additional_evidence: str) -> str:
        self.attested = hermetic
        return "token"

    def resource(self, path: str) -> bytes:
        return self.answer


def attesting(broker: FarBroker, key_wrap: KeyWrap = "any") -> tuple[Attesting, list[bytes]]:
    measured: list[bytes] = []

    def collect(device: bytes, primary: Any) -> SimpleNamespace:
        primary("")
        return SimpleNamespace(primary={}, additional="")

    attester = SimpleNamespace(tee="sample", extend=measured.append, collect=collect)
    made = Attesting(cast(Any, attester), cast(BrokerClient, broker), lambda: {"profile": "demo"}, key_wrap)
    return made, measured


@pytest.fixture(scope="module")
def classical() -> bytes:
    return wrap_to(AttestedKey.generate().public_jwk, bytearray(32))


@pytest.fixture(scope="module")
def hybrid() -> bytes:
    return json.dumps(HybridPublicKey.parse(KEY).encrypt(bytes(32))).encode()


@pytest.mark.parametrize("key_wrap", ["any", "hybrid"])
def test_the_hybrid_key_is_attested_where_it_is_offered(hybrid: bytes, key_wrap: KeyWrap) -> None:
    broker = FarBroker(HYBRID, hybrid)
    release = attesting(broker, key_wrap)[0].release_key(manifest(), Applicant({}, REPORT, "", KEY))
    assert broker.attested["hybrid-key"] == KEY
    assert release.jwe == hybrid


def test_an_old_broker_gets_no_hybrid_key_and_its_wrap_is_taken_where_none_is_demanded(classical: bytes) -> None:
    broker = FarBroker(OURS, classical)
    assert attesting(broker)[0].release_key(manifest(), Applicant({}, REPORT, "", KEY)).jwe == classical
    assert "hybrid-key" not in broker.attested


@pytest.mark.parametrize(
    "offer", ["", OURS, {"hermetic-key-wraps": ["HPKE-10-KE"]}, OURS | {"hermetic-key-wraps": "HPKE-10-KE"}], ids=str
)
def test_a_stripped_offer_ends_it_where_hybrid_is_demanded(classical: bytes, offer: Any) -> None:
    """Before anything is measured or attested: what is not said cannot be answered."""
    broker = FarBroker(offer, classical)
    made, measured = attesting(broker, "hybrid")
    with pytest.raises(BrokerRefusedError, match="expected an offer of hybrid key wraps"):
        made.release_key(manifest(), Applicant({}, REPORT, "", KEY))
    assert (measured, broker.attested) == ([], "nothing")


def test_a_worker_without_a_hybrid_key_is_not_attested_for_where_it_is_demanded(hybrid: bytes) -> None:
    with pytest.raises(BrokerRefusedError, match="hybrid key wraps"):
        attesting(FarBroker(HYBRID, hybrid), "hybrid")[0].release_key(manifest(), Applicant({}, REPORT))


@pytest.mark.parametrize("key_wrap", ["any", "hybrid"])
def test_an_old_wrap_in_answer_to_a_hybrid_key_is_refused(classical: bytes, key_wrap: KeyWrap) -> None:
    with pytest.raises(BrokerRefusedError, match="expected one wrapped to the hybrid key that was attested"):
        attesting(FarBroker(HYBRID, classical), key_wrap)[0].release_key(manifest(), Applicant({}, REPORT, "", KEY))
