"""The lease as a format: attacks first, each refused by its own name, then what is accepted; and the vectors."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwt
from joserfc.jwk import ECKey

from hermetic.attestation.lease import (
    LeasedModel,
    LeaseKey,
    LeaseSigner,
    LeaseTerms,
    Refusal,
    key_thumbprint,
)
from hermetic.errors import ConfigurationError, LeaseRefusedError

VECTORS = Path(__file__).parents[1] / "vectors" / "leases"
MODEL = LeasedModel(name="model", version=3, manifest_digest="ab" * 32)
KEY = "A" * 43
NOW = 1_800_000_000
BROKER = LeaseSigner(ec.generate_private_key(ec.SECP256R1()))
PRIVATE = BROKER._key


def terms(**change: Any) -> LeaseTerms:
    members = {"iss": "broker", "jti": "0" * 32, "iat": NOW, "length_ms": 1000, "grace_ms": 0, "client": "host",
               "chips": ["tpm-ek:00"]}  # fmt: skip
    return LeaseTerms.model_validate_json(
        json.dumps({"model": MODEL.model_dump(), "cnf": {"jkt": KEY}, **members, **change})
    )


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: Any, payload: Any = None) -> str:
    """Any header and claims, really signed by the broker's key."""
    body = terms().model_dump(mode="json") if payload is None else payload
    signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(body).encode())}"
    r, s = decode_dss_signature(PRIVATE.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def header(**change: Any) -> dict[str, Any]:
    return {"alg": "ES256", "kid": BROKER.public.thumbprint, "typ": "hermetic-lease+jwt", **change}


def signed_by_hmac() -> str:
    """The classic confusion: HS256 with the public key as the secret."""
    signed = f"{encoded(json.dumps(header(alg='HS256')).encode())}.{encoded(terms().model_dump_json().encode())}"
    mac = hmac.HMAC(BROKER.public.text.encode(), hashes.SHA256())
    mac.update(signed.encode())
    return f"{signed}.{encoded(mac.finalize())}"


def unsigned() -> str:
    return f"{encoded(json.dumps(header(alg='none')).encode())}.{encoded(terms().model_dump_json().encode())}."


def of_another_broker() -> str:
    return LeaseSigner(ec.generate_private_key(ec.SECP256R1())).sign(terms())


def extended_by_the_server() -> str:
    head, _, signature = BROKER.sign(terms()).split(".")
    return f"{head}.{encoded(terms(length_ms=10**9).model_dump_json().encode())}.{signature}"


def of_another_broker_in_our_name() -> str:
    head, payload, _ = BROKER.sign(terms()).split(".")
    return f"{head}.{payload}.{of_another_broker().split('.')[2]}"


def a_token() -> str:
    return jwt.encode({"typ": "JWT", "alg": "ES256"}, {"iss": "broker", "jti": "1"}, ECKey.import_key(PRIVATE))


ATTACKS: dict[str, tuple[Callable[[], str], Refusal]] = {
    "nothing": (str, Refusal.MISSING),
    "not a JWT": (lambda: "lease", Refusal.MALFORMED),
    "too long": (lambda: "A" * 20_000, Refusal.MALFORMED),
    "with padding": (lambda: BROKER.sign(terms()) + "==", Refusal.MALFORMED),
    "alg none": (unsigned, Refusal.ALGORITHM),
    "alg none, signed": (lambda: forged(header(alg="none")), Refusal.ALGORITHM),
    "HS256 with the public key": (signed_by_hmac, Refusal.ALGORITHM),
    "a token of the same broker": (a_token, Refusal.ALGORITHM),
    "another key in the header": (lambda: forged(header(jwk=dict(BROKER.public.jwk))), Refusal.MALFORMED),
    "another broker": (of_another_broker, Refusal.SIGNATURE),
    "another broker in our name": (of_another_broker_in_our_name, Refusal.SIGNATURE),
    "extended by the server": (extended_by_the_server, Refusal.SIGNATURE),
    "a zero signature": (lambda: BROKER.sign(terms()).rpartition(".")[0] + "." + "A" * 86, Refusal.SIGNATURE),
    "half a signature": (lambda: BROKER.sign(terms()).rpartition(".")[0] + ".AAAA", Refusal.SIGNATURE),
    "a member more": (
        lambda: forged(header(), terms().model_dump(mode="json") | {"exp": NOW}),
        Refusal.MALFORMED,
    ),
    "no length": (lambda: forged(header(), terms().model_dump(mode="json") | {"length_ms": 0}), Refusal.MALFORMED),
    "a length for ever": (
        lambda: forged(header(), terms().model_dump(mode="json") | {"length_ms": 10**15}),
        Refusal.MALFORMED,
    ),
    "claims that are a list": (lambda: forged(header(), [1]), Refusal.MALFORMED),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_lease_is_refused_by_name(name: str) -> None:
    make, refusal = ATTACKS[name]
    with pytest.raises(LeaseRefusedError, match=f"^{refusal}: "):
        BROKER.public.verify(make())


def test_what_the_broker_signs_is_accepted_and_by_an_ordinary_library_too() -> None:
    lease = BROKER.sign(terms())
    assert BROKER.public.verify(lease) == LeaseTerms.read(lease) == terms()
    decoded = jwt.decode(lease, ECKey.import_key(dict(BROKER.public.jwk)), algorithms=["ES256"])
    assert decoded.claims["cnf"] == {"jkt": KEY}


def test_a_signature_verifies_in_one_form_alone() -> None:
    """base64url has spare bits in its last character: another spelling of the same bytes is refused."""
    lease = BROKER.sign(terms())
    spare = {"A": "B", "Q": "R", "g": "h", "w": "x"}
    with pytest.raises(LeaseRefusedError, match=f"^{Refusal.MALFORMED}: "):
        BROKER.public.verify(lease[:-1] + spare[lease[-1]])


@pytest.mark.parametrize(
    "other", [{"name": "other"}, {"version": 4}, {"manifest_digest": "cd" * 32}], ids=["name", "version", "manifest"]
)
def test_a_lease_of_another_model_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(LeaseRefusedError, match=f"^{Refusal.MODEL}: "):
        terms().check(MODEL.model_copy(update=other), KEY)


def test_a_lease_for_another_key_is_refused() -> None:
    with pytest.raises(LeaseRefusedError, match=f"^{Refusal.KEY}: "):
        terms().check(MODEL, "B" * 43)
    assert terms().check(MODEL, KEY) == terms()


@pytest.mark.parametrize(
    ("made", "now", "refusal"),
    [
        (NOW - 86_400, NOW - 86_400, Refusal.FUTURE),  # the host's clock is a day back
        (NOW - 301, NOW - 301, Refusal.FUTURE),
        (NOW + 301, NOW + 302, Refusal.OLD),
        (NOW + 86_400, NOW + 86_400, Refusal.OLD),  # a day forward
    ],
)
def test_a_lease_of_another_time_is_refused(made: float, now: float, refusal: Refusal) -> None:
    with pytest.raises(LeaseRefusedError, match=f"^{refusal}: "):
        terms().check_times(made, now)


@pytest.mark.parametrize(("made", "now"), [(NOW, NOW), (NOW - 300, NOW - 300), (NOW + 300, NOW + 300)])
def test_clocks_may_be_apart_by_minutes(made: float, now: float) -> None:
    assert terms().check_times(made, now) == terms()


def test_a_thumbprint_is_that_of_rfc_7638() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert LeaseKey(key).thumbprint == ECKey.import_key(key).thumbprint()
    assert key_thumbprint({**LeaseKey(key).jwk, "alg": "ECDH-ES+A256KW"}) == LeaseKey(key).thumbprint


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"crv":"P-256","kty":"EC","x":"AA","y":"AA"}', json.dumps(ECKey.generate_key("P-384").as_dict())],
)
def test_what_is_no_lease_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="lease key: wanted a JWK on P-256"):
        LeaseKey.loads(text)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_vector(path: Path) -> None:
    vector = json.loads(path.read_text())
    key, model = LeaseKey.loads(json.dumps(vector["lease-key"])), LeasedModel(**vector["model"])

    def judge() -> LeaseTerms:
        found = key.verify(vector["lease"]).check(model, vector["thumbprint"])
        return found.check_times(vector["made"], vector["now"])

    if vector["refusal"] is None:
        assert judge().model_dump(mode="json") == vector["claims"]
    else:
        with pytest.raises(LeaseRefusedError, match=f"^{vector['refusal']}: "):
            judge()


def test_there_is_a_vector_for_each_refusal_of_the_format() -> None:
    named = {json.loads(path.read_text())["refusal"] for path in VECTORS.glob("*.json")}
    assert named == {None, *Refusal} - {Refusal.OVER}  # which is a matter of a clock
