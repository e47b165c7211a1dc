"""What an editor of the broker's configuration cannot do alone: roots, roles and names are what operators signed for.

Attacks first: each works where nobody governs.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.bounded_file import read_bounded
from hermetic.attestation.broker import files, signed_configuration
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.configured import first_policies
from hermetic.attestation.broker.files import Files
from hermetic.attestation.broker.signed_configuration import signed_parts
from hermetic.attestation.governance import First, OfConfiguration
from hermetic.attestation.log import Log, NoteSigner
from hermetic.attestation.roots.nvgpu_trust import NvGpuTrust
from hermetic.attestation.roots.shipped_or_own import nvidia_roots
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.errors import BrokerRefusedError
from hermetic.provision.authority import new_key
from hermetic.provision.brokers import examine_broker
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.test_governed import (
    DIGEST,
    governed,
    hand_in,
    propose,
    proposer,
    refusal,
    released,
    sign_key,
    upload,
)
from tests.attestation.broker.world import ORIGIN, InThread, World
from tests.attestation.conftest import certificate_authority
from tests.attestation.governance.people import THREE
from tests.attestation.test_exchange import attest, csr, ec_jwk

TRUST, ADMINS, SERVING = (OfConfiguration(part=part) for part in ("trust", "admins", "serving"))
ANYBODY = {'client_authorities = ["hosts-ca.pem"]': 'client_authorities = ["hosts-ca.pem", "strangers-ca.pem"]'}
WIDER = {"'^/kbs/v0/resource/narrow/.+$' }": "'^/.+$' }"}
OTHER_NAME = {'dns = ["first.example.test", "localhost"]': 'dns = ["the-bank.example.test"]'}


def edited(world: World, change: Mapping[str, str]) -> BrokerConfig:
    return BrokerConfig.load(world.write_config(governance="operators", change=change))


def put_in_force(broker: InThread, subject: OfConfiguration) -> None:
    hand_in(broker, propose(broker, subject, proposer(broker).part(subject)), "alice", "bob")


def genuine(broker: InThread, who: str = "host") -> str:
    """Attest; what the broker says against it."""
    with broker.http(who) as http:
        guest = IndependentGuest(http)
        guest.auth()
        response = guest.attest(guest.body())
        return "" if response.status_code == 200 else str(response.json()["detail"])


@pytest.mark.parametrize(
    "change",
    [
        ANYBODY,
        {'client_certificates = "required"': 'client_certificates = "optional"'},
        {"[key_store]": f'[trust]\nprovisioned_aks = ["{"ab" * 32}"]\n[key_store]'},
        {"[key_store]": '[trust]\nak_authorities = ["strangers-ca.pem"]\n[key_store]'},
        {"[key_store]": '[roots]\namd = "shipped"\n[key_store]'},
        {'certificate = "ak-ca.pem"': 'certificate = "ak-ca.pem"\nsoftware_ek_authorities = ["strangers-ca.pem"]'},
    ],
    ids=["client-ca", "no-certificate", "ak", "ak-ca", "roots", "ek-ca"],
)
def test_whose_evidence_counts_is_what_operators_signed_for(world: World, change: Mapping[str, str]) -> None:
    governed(world)
    before = signed_parts(BrokerConfig.load(world.folder / "broker.toml"))
    after = signed_parts(edited(world, change))
    assert before[TRUST] != after[TRUST]
    assert {part for part in before if before[part] != after[part]} == {TRUST}


def test_an_edited_trust_attests_and_releases_nothing_until_two_have_signed(world: World) -> None:
    with governed(world).start() as broker:
        path, key = upload(broker, "held")
        sign_key(broker, path)
        assert released(broker, path) == key
        assert proposer(broker)._unsigned == {}
    edited(world, ANYBODY)
    with world.start() as broker:
        for who in ("stranger", "host"):
            assert "governance.configuration" in genuine(broker, who)
        change = propose(broker, TRUST, proposer(broker).part(TRUST))
        for names in ((), ("alice",), ("alice", "mallory")):
            assert "governance.signatures" in refusal(broker, change, *names)
        assert "governance.configuration" in genuine(broker)
        hand_in(broker, change, "alice", "carol")
        assert released(broker, path) == key
    assert [one for one in world.outcomes("broker.attest") if one == "refused"]
    edited(world, {})  # and back: an older version is no other thing than a new one
    with world.start() as broker:
        assert "governance.configuration" in genuine(broker)


@pytest.mark.parametrize("name", ["hosts-ca.pem", "token.pub", "ak-ca.pem"])
def test_a_file_that_is_exchanged_once_it_was_compared_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whoever may write the file waits until it was compared with the signatures, and then puts another one there."""
    governed(world)
    seen: list[str] = []
    others = {"hosts-ca.pem": "strangers-ca.pem", "token.pub": "second.pub", "ak-ca.pem": "strangers-ca.pem"}
    other = (world.folder / others[name]).read_bytes()

    def read(path: Path, limit_bytes: int) -> bytes:
        data = read_bounded(path, limit_bytes)
        seen.append(path.name)
        if path.name == name:
            path.write_bytes(other)
        return data

    monkeypatch.setattr(files, "read_bounded", read)
    with world.start() as broker:
        assert genuine(broker) == ""
        with pytest.raises(httpx.TransportError):
            genuine(broker, "stranger")
        with broker.operator() as admin:
            assert admin.floors() == {}
    assert seen.count(name) == 1


def test_a_root_that_is_exchanged_or_put_beside_once_its_folder_was_compared_is_not_used(tmp_path: Path) -> None:
    """The same with a demo's own roots: a folder is listed once, and each file in it is read once."""
    folder = tmp_path / "roots"
    (folder / "devices").mkdir(parents=True)
    own, others = (certificate_authority(new_key(), datetime.now(UTC)).public_bytes(Encoding.PEM) for _ in range(2))
    (folder / "devices" / "own.pem").write_bytes(own)
    read = Files()
    compared = signed_configuration._roots(read, folder)
    (folder / "devices" / "own.pem").write_bytes(others)
    (folder / "devices" / "beside.pem").write_bytes(others)
    (folder / "manifests").mkdir()
    (folder / "manifests" / "beside.pem").write_bytes(others)
    assert signed_configuration._roots(read, folder) == compared != signed_configuration._roots(Files(), folder)
    trust = nvidia_roots(folder, "demo", read)
    assert trust == NvGpuTrust((x509.load_pem_x509_certificate(own),))
    assert len(nvidia_roots(folder, "demo").device_roots) == 2, "wanted them on the disk"


def test_a_session_from_before_gets_nothing_once_operators_signed_for_another_trust(world: World) -> None:
    with governed(world).start() as broker, broker.http() as http:
        path, key = upload(broker, "held")
        sign_key(broker, path)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        assert guest.open(guest.resource(path)) == key
        to_come = signed_parts(edited(world, ANYBODY))[TRUST]
        hand_in(broker, propose(broker, TRUST, to_come), "alice", "bob")
        response = guest.resource(path)
        assert response.status_code == 401
        assert "governance.configuration" in response.json()["detail"]
    with world.start() as broker:  # with the file that they signed for
        assert released(broker, path) == key


def test_an_edited_role_or_issuer_does_nothing_but_have_changes_signed(world: World) -> None:
    governed(world)
    edited(world, WIDER)
    with world.start() as broker:
        for role in ("narrow", "operator"):
            with (
                broker.operator(role=role) as admin,
                pytest.raises(BrokerRefusedError, match="that operators signed for"),
            ):
                admin.floors()
        with broker.operator(role="narrow") as admin, pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
            admin.revoke_leases({"model": "m"}, "r")
        put_in_force(broker, ADMINS)
        with broker.operator(role="narrow") as admin:
            assert admin.floors() == {}
    refused = [r.fields["reasons"] for r in world.records() if r.kind == "broker.admin" and r.fields["reasons"]]
    assert len(refused) == 3


def test_another_key_of_an_issuer_is_another_issuer(world: World) -> None:
    governed(world)
    before = signed_parts(BrokerConfig.load(world.folder / "broker.toml"))
    (world.folder / "token.pub").write_bytes((world.folder / "unknown.pub").read_bytes())
    after = signed_parts(BrokerConfig.load(world.folder / "broker.toml"))
    assert {part for part in before if before[part] != after[part]} == {ADMINS}


def test_no_certificate_says_a_name_that_operators_did_not_sign_for(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    def certified(broker: InThread) -> str:
        claims = hermetic_claims(bytes(32), purpose="serving-key")
        with broker.guest() as client:
            attest(client, SampleAttester(), ec_jwk(key.public_key()), claims)
            try:
                client.certify_serving_key(csr(key))
            except BrokerRefusedError as error:
                return str(error)
            return ""

    with governed(world).start() as broker:
        assert certified(broker) == ""
    edited(world, OTHER_NAME)
    with world.start() as broker:
        assert "governance.configuration" in certified(broker)
        put_in_force(broker, SERVING)
        assert certified(broker) == ""


def test_a_log_of_before_has_no_parts_until_operators_sign_for_them(world: World) -> None:
    config = BrokerConfig.load(world.write_config(governance="operators"))
    older = First.fix(ORIGIN, THREE, first_policies(config, Files()))
    signer = NoteSigner.parse((world.folder / "log.key").read_text())
    with Log.open(world.folder / "log", ORIGIN, signer, now=world.clock) as log:
        log.append({"kind": "broker.governance", "fields": {"first": older.to_json()}})
    edited(world, ANYBODY)
    with world.start() as broker:
        assert genuine(broker) == ""
        assert set(proposer(broker)._unsigned) == {TRUST, ADMINS, SERVING}
    assert "nobody has signed for it" in str(examine_broker(world.folder / "broker.toml"))
    with world.start() as broker:
        hand_in(broker, propose(broker, TRUST, signed_parts(config)[TRUST]), "alice", "bob")
        assert "governance.configuration" in genuine(broker)
    findings = examine_broker(world.folder / "broker.toml")
    assert [one.state for one in findings if "trust" in one.detail] == ["missing"]
