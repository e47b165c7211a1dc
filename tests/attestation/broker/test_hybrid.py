"""Hybrid key wraps at the broker: offered, attested, demanded, and never left out silently.

The guest is the independent one: its hybrid key and its opening are made here from the library's parts and the drafts.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hermetic.attestation.log import NoteSigner
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.world import ORIGIN, InThread, World

OFFER = ["HPKE-10-KE"]
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.SHAKE256, hpke.AEAD.AES_256_GCM)


def raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class HybridGuest(IndependentGuest):
    """The independent guest, with a hybrid key beside its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expanded = hashlib.shake_256(os.urandom(32)).digest(96)
        lattice = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        point = X25519PrivateKey.from_private_bytes(expanded[64:])
        self.pair = hpke.MLKEM768X25519PrivateKey(lattice, point)
        self.hybrid = lattice.public_key().public_bytes_raw() + point.public_key().public_bytes_raw()

    def offered(self, offer: Any = OFFER) -> Any:
        self.extra = {"hermetic": {"version": 1}, "hermetic-key-wraps": offer}
        response = self.auth()
        assert response.status_code == 200
        return response.json()["extra-params"]

    def attested(self, claims: dict[str, Any]) -> int:
        return self.attest(self.body({"lease-key": self.lease_key()} | claims)).status_code

    def unwrapped(self, message: dict[str, str]) -> bytes:
        header = json.loads(raw(message["protected"]))
        assert header.keys() == {"alg", "ek", "enc"}
        assert (header["alg"], header["enc"]) == ("HPKE-10-KE", "A256GCM")
        cek = SUITE.decrypt(
            raw(header["ek"]) + raw(message["encrypted_key"]), self.pair, b"JOSE-HPKE rcpt\xffA256GCM\xff"
        )
        sealed = raw(message["ciphertext"]) + raw(message["tag"])
        return AESGCM(cek).decrypt(raw(message["iv"]), sealed, message["protected"].encode())


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    """A broker with forms that demand it, of models `hybrid-*` and secrets `plain-hybrid/*`, beside others.

    Its log has a second key too: `world.records()` demands both signatures.
    """
    world = World(tmp_path_factory.mktemp("broker"))
    (world.folder / "log.key").write_text(NoteSigner.generate(ORIGIN, second=True).encode_private_key())
    for file, models in (("hybrid", '["hybrid-*"]'), ("plain-hybrid", '["*"]')):
        world.write_policy(file, models=models)
        with (world.folder / f"{file}.toml").open("a") as form:
            form.write('key_wrap = "hybrid"\n')
    more = '[[policies]]\nfile = "hybrid.toml"\n'
    more += '[[plain_secrets]]\nresource = "plain-hybrid/*"\npolicy = "plain-hybrid.toml"\n'
    world.write_config(change={"[limits]": more + "[limits]"})
    with world.start() as running:
        yield running


@pytest.fixture
def hybrid(broker: InThread) -> Iterator[HybridGuest]:
    with broker.http() as http:
        yield HybridGuest(http)


def upload(broker: InThread, name: str) -> tuple[str, bytes, bytes]:
    key, digest = os.urandom(32), os.urandom(32)
    path = f"models/key/{name}"
    broker.upload(path, key, name, 1, digest)
    return path, key, digest


def test_it_is_offered_to_who_asks_for_it(hybrid: HybridGuest) -> None:
    assert hybrid.offered() == {"hermetic": {"version": 1}, "hermetic-key-wraps": OFFER}
    assert hybrid.offered(["HPKE-99-KE", *OFFER]) == {"hermetic": {"version": 1}, "hermetic-key-wraps": OFFER}
    for unknown in (["HPKE-99-KE"], [], "HPKE-10-KE", {"HPKE-10-KE": 1}, None, [OFFER]):
        assert hybrid.offered(unknown) == {"hermetic": {"version": 1}}
    hybrid.extra = {"hermetic-key-wraps": OFFER}
    assert hybrid.auth().json()["extra-params"] == ""


def test_an_attested_hybrid_key_gets_a_hybrid_wrap(broker: InThread, hybrid: HybridGuest) -> None:
    """Whatever the policy: the key that was attested is the key that is used."""
    for name in ("hybrid-whole", "any-whole"):
        path, key, digest = upload(broker, name)
        hybrid.offered()
        assert hybrid.attested(hermetic_claims(digest) | {"hybrid-key": text(hybrid.hybrid)}) == 200
        assert hybrid.unwrapped(hybrid.resource(path).json()) == key
        release = [record for record in broker.world.records() if record.kind == "broker.release"][-1]
        assert (release.fields["outcome"], release.fields["key_wrap"]) == ("released", "HPKE-10-KE")


def test_a_stripped_offer_gets_nothing_where_hybrid_is_demanded(broker: InThread, hybrid: HybridGuest) -> None:
    """Someone on the way takes the offer out: the guest attests no hybrid key, and the policy says no."""
    path, _, digest = upload(broker, "hybrid-stripped")
    hybrid.handshake(hermetic_claims(digest))
    refused = hybrid.resource(path)
    assert refused.status_code == 401
    assert "release.key_wrap: wanted hybrid, got classical" in refused.json()["detail"]
    release = [record for record in broker.world.records() if record.kind == "broker.release"][-1]
    assert (release.fields["outcome"], release.fields["key_wrap"]) == ("refused", "ECDH-ES+A256KW")


def test_without_a_demand_the_record_says_how_it_was_wrapped(broker: InThread, hybrid: HybridGuest) -> None:
    path, key, digest = upload(broker, "any-classical")
    hybrid.handshake(hermetic_claims(digest))
    assert hybrid.open(hybrid.resource(path)) == key
    release = [record for record in broker.world.records() if record.kind == "broker.release"][-1]
    assert release.fields["key_wrap"] == "ECDH-ES+A256KW"


def test_a_hybrid_key_that_no_evidence_binds_is_refused(hybrid: HybridGuest) -> None:
    """Taken out, put in, or another's: the report data is of what the guest sent."""
    claims = hermetic_claims(bytes(32))
    other = text(hybrid.hybrid[::-1])
    for bound, sent in (
        (claims | {"hybrid-key": text(hybrid.hybrid)}, claims),
        (claims, claims | {"hybrid-key": text(hybrid.hybrid)}),
        (claims | {"hybrid-key": text(hybrid.hybrid)}, claims | {"hybrid-key": other}),
    ):
        hybrid.offered()
        body = hybrid.body(bound)
        body["runtime-data"]["hermetic"] = sent
        assert hybrid.attest(body).status_code == 401


def test_a_hybrid_key_where_none_was_offered_is_refused(hybrid: HybridGuest) -> None:
    hybrid.extra = {"hermetic": {"version": 1}}
    assert hybrid.auth().status_code == 200
    response = hybrid.attest(hybrid.body(hermetic_claims(bytes(32)) | {"hybrid-key": text(hybrid.hybrid)}))
    assert response.status_code == 401
    assert "this session's challenge offered none" in response.json()["detail"]


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:1184],
        lambda key: key[1184:],
        lambda key: key + b"\0",
        lambda key: key[:-1],
        lambda key: key[1184:] + key[:1184],
        lambda key: key[:1184] + bytes(32),
        lambda key: b"\xff" * 1184 + key[1184:],
        lambda _: b"",
    ],
    ids=["ml-kem-alone", "x25519-alone", "longer", "shorter", "swapped", "zero-point", "no-ml-kem-key", "empty"],
)
def test_what_is_no_hybrid_key_is_refused(hybrid: HybridGuest, change: Any) -> None:
    hybrid.offered()
    body = hybrid.body(hermetic_claims(bytes(32)) | {"hybrid-key": text(change(hybrid.hybrid))})
    response = hybrid.attest(body)
    assert response.status_code == 401
    assert "hybrid key: expected" in response.json()["detail"] or "hybrid-key" in response.json()["detail"]


def test_a_purpose_escapes_no_demand(broker: InThread, hybrid: HybridGuest) -> None:
    """A form asks it of models; a plain secret is wrapped too, whatever its session's key is said to be for."""
    with broker.operator() as operator:
        operator.upload_plain_secret("kbs:///plain-hybrid/secret/one", b"a secret")
    for purpose in ("model", "serving-key"):
        hybrid.handshake(hermetic_claims(bytes(32)) | {"purpose": purpose})
        refused = hybrid.resource("plain-hybrid/secret/one")
        assert refused.status_code == 401
        assert "release.key_wrap" in refused.json()["detail"]
    hybrid.offered()
    assert hybrid.attested(hermetic_claims(bytes(32)) | {"hybrid-key": text(hybrid.hybrid)}) == 200
    assert hybrid.unwrapped(hybrid.resource("plain-hybrid/secret/one").json()) == b"a secret"
