"""The protocol as an independent guest speaks it: every version, every kind of key, cookie and token."""

import base64
import json
import os
import re
from itertools import product

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from jwcrypto import jwk, jws

from tests.attestation.broker.independent_guest import KEY_KINDS, IndependentGuest, hermetic_claims
from tests.attestation.broker.world import InThread

VERSIONS = ("0.4.0", "0.3.0", "0.2.0")


def plain(broker: InThread, tag: str) -> bytes:
    secret = os.urandom(32)
    with broker.operator() as operator:
        operator.upload_plain_secret(f"kbs:///plain/secret/{tag}", secret)
    return secret


@pytest.mark.parametrize(("version", "key_kind"), list(product(VERSIONS, KEY_KINDS)))
def test_an_independent_guest_gets_a_secret(broker: InThread, version: str, key_kind: str) -> None:
    secret = plain(broker, f"s-{version}-{key_kind}")
    with broker.http() as http:
        guest = IndependentGuest(http, version=version, key_kind=key_kind)
        token = guest.handshake()
        path = f"plain/secret/s-{version}-{key_kind}"
        assert guest.open(guest.named(f"kbs:///{path}")) == secret
        assert guest.open(guest.resource(path, bearer=token)) == secret


def test_the_challenge_is_as_trustee_sends_it(guest: IndependentGuest) -> None:
    response = guest.auth()
    assert set(response.json()) == {"nonce", "extra-params"}
    assert response.json()["extra-params"] == ""
    assert len(response.json()["nonce"]) == 44
    assert len(base64.b64decode(response.json()["nonce"], validate=True)) == 32
    form = r"kbs-session-id=[0-9a-f]{32}; Expires=\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"
    assert re.fullmatch(form, response.headers["set-cookie"])


def test_our_additions_are_offered_only_to_who_asks(guest: IndependentGuest) -> None:
    guest.extra = {"hermetic": {"version": 1}}
    assert guest.auth().json()["extra-params"] == {"hermetic": {"version": 1}}
    guest.extra = {"hermetic": {"version": 2}}
    assert guest.auth().json()["extra-params"] == ""


def test_the_token_is_an_ear(broker: InThread, guest: IndependentGuest) -> None:
    token = guest.handshake()
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert header["typ"] == "JWT"
    assert header["alg"] == header["jwk"]["alg"] == "ES256"
    claims = jwt.decode(token, ECKey.import_key(header["jwk"]), algorithms=["ES256"]).claims
    by_another = jws.JWS()
    by_another.deserialize(token, jwk.JWK(**header["jwk"]))
    assert json.loads(by_another.payload) == claims
    assert claims["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert claims["exp"] - claims["iat"] == 300
    assert claims["iat"] == int(broker.world.clock.now.timestamp())
    assert set(claims["ear.verifier-id"]) == {"developer", "build"}
    appraisal = claims["submods"]["cpu0"]
    assert appraisal["ear.status"] == "contraindicated"
    assert len(appraisal["ear.trustworthiness-vector"]) == 8
    evidence = appraisal["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"] == {"nonce": guest.nonce, "tee-pubkey": guest.public}
    assert evidence["sample"]["svn"] == "1"


def test_a_second_attest_returns_the_same_token(guest: IndependentGuest) -> None:
    token = guest.handshake()
    again = guest.attest(raw=b"not even JSON")
    assert again.status_code == 200
    # Signed anew: the broker keeps what the token says, and not the token.
    assert again.json()["token"] != token
    assert [text.rpartition(".")[0] for text in (again.json()["token"], token)] == [token.rpartition(".")[0]] * 2


def test_a_model_key_goes_to_who_attested_its_manifest(broker: InThread, guest: IndependentGuest) -> None:
    key, digest = os.urandom(32), os.urandom(32)
    broker.upload("models/key/rcar-1", key, "rcar", 1, digest)
    guest.handshake(hermetic_claims(digest))
    response = guest.resource("models/key/rcar-1")
    assert guest.open(response) == key
    assert set(response.json()) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    assert response.headers["content-type"] == "application/json"


def test_a_release_comes_with_a_checkpoint_that_covers_it(broker: InThread, guest: IndependentGuest) -> None:
    from hermetic.attestation.log import NoteSigner, verify_checkpoint

    plain(broker, "checkpoint")
    guest.handshake()
    response = guest.resource("plain/secret/checkpoint")
    note = base64.b64decode(response.headers["hermetic-checkpoint"], validate=True)
    verifier = NoteSigner.parse((broker.world.folder / "log.key").read_text()).verifier()
    checkpoint = verify_checkpoint(note, verifier, "example.test/broker")
    index = int(response.headers["hermetic-log-index"])
    assert checkpoint.size > index
    record = broker.world.records()[index]
    assert record.kind == "broker.release"
    assert record.fields["outcome"] == "released"
    assert record.fields["resource"] == "plain/secret/checkpoint"
    assert {"sample evidence proves nothing", "demo profile"} <= set(map(str, record.fields["warnings"]))


def test_the_protected_header_is_rfc_7518s(guest: IndependentGuest, broker: InThread) -> None:
    plain(broker, "header")
    guest.handshake()
    protected = guest.resource("plain/secret/header").json()["protected"]
    header = json.loads(base64.urlsafe_b64decode(protected + "=" * (-len(protected) % 4)))
    assert header["alg"] == "ECDH-ES+A256KW"
    assert header["enc"] == "A256GCM"
    assert set(header["epk"]) == {"crv", "kty", "x", "y"}


def test_health(broker: InThread) -> None:
    with broker.http() as http, broker.admin_http() as admin:
        assert http.get("/healthz").json() == admin.get("/healthz").json() == {"status": "ok"}
