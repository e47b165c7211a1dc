"""The attested key opens what other implementations make for it, and nothing that was changed."""

import base64
import json
from typing import Any

import pytest
from joserfc import jwe as joserfc_jwe
from joserfc.jwk import ECKey
from jwcrypto import jwe, jwk

from hermetic.enclave.attested_key import JWE_LIMIT, AttestedKey, wrap_to
from hermetic.errors import BorderError

SECRET = bytes(range(32))
HEADER = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}


@pytest.fixture(scope="module")
def key() -> AttestedKey:
    return AttestedKey.generate()


def by_jwcrypto(key: AttestedKey, **header: str) -> bytes:
    message = jwe.JWE(SECRET, json.dumps(HEADER | header), recipient=jwk.JWK(**key.public_jwk))
    serialized: str = message.serialize()
    return serialized.encode()


def test_it_opens_what_it_and_others_make(key: AttestedKey) -> None:
    assert key.open(wrap_to(key.public_jwk, bytearray(SECRET))) == SECRET
    assert key.open(by_jwcrypto(key)) == SECRET
    assert key.open(by_jwcrypto(key, apu="QWxpY2U", apv="Qm9i")) == SECRET


def test_others_open_what_it_makes() -> None:
    private = jwk.JWK.generate(kty="EC", crv="P-256")
    message = wrap_to(json.loads(private.export_public()), bytearray(SECRET))
    opened = jwe.JWE()
    opened.deserialize(message.decode(), private)
    assert opened.payload == SECRET


def test_it_opens_joserfcs(key: AttestedKey) -> None:
    recipient = ECKey.import_key({name: key.public_jwk[name] for name in ("kty", "crv", "x", "y")})
    message = joserfc_jwe.FlattenedJSONEncryption(HEADER, SECRET)
    message.add_recipient(None, recipient)
    assert key.open(json.dumps(joserfc_jwe.encrypt_json(message, None)).encode()) == SECRET


def test_two_are_never_alike(key: AttestedKey) -> None:
    one, other = (json.loads(wrap_to(key.public_jwk, bytearray(SECRET))) for _ in range(2))
    assert not set(one.values()) & set(other.values())


def test_once_wiped_it_opens_nothing() -> None:
    key = AttestedKey.generate()
    message = wrap_to(key.public_jwk, bytearray(SECRET))
    key.wipe()
    key.wipe()
    with pytest.raises(BorderError, match="it has been wiped"):
        key.open(message)


def test_wiping_it_wipes_its_memory_and_what_was_opened_in_it() -> None:
    """Nobody can look at secret memory from outside: a wipe that forgets it would be seen by no search."""
    key = AttestedKey.generate()
    whole = key.memory.view  # keeps the mapping
    opened = key.open(wrap_to(key.public_jwk, bytearray(SECRET)))
    assert opened == SECRET
    assert sum(map(bool, whole)) > len(SECRET)
    key.wipe()
    assert not any(whole)
    assert not any(opened)
    with pytest.raises(ValueError, match="wiped"):
        _ = key.memory.view


def test_for_another_key_it_is_refused(key: AttestedKey) -> None:
    with pytest.raises(BorderError, match="got one to another key"):
        key.open(wrap_to(AttestedKey.generate().public_jwk, bytearray(SECRET)))


@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_every_changed_byte_is_refused(key: AttestedKey, member: str) -> None:
    message = json.loads(wrap_to(key.public_jwk, bytearray(SECRET)))
    raw = bytearray(base64.urlsafe_b64decode(message[member] + "=="))
    for at in range(len(raw)):
        raw[at] ^= 1
        changed = message | {member: base64.urlsafe_b64encode(raw).decode().rstrip("=")}
        with pytest.raises(BorderError, match="JWE"):
            key.open(json.dumps(changed).encode())
        raw[at] ^= 1


def protected(**changes: Any) -> str:
    header = HEADER | {"epk": {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}} | changes
    return base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "ECDH-ES"}, {"alg": "dir"}, {"enc": "A128GCM"}, {"zip": "DEF"}, {"crit": ["x"]}, {"epk": None},
        {"epk": {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}}, {"p2c": 10**9},
        {},  # a point that is not on the curve
        {"epk": {"kty": "EC", "crv": "P-256", "x": "A" * 44, "y": "A" * 43}}, {"apu": 7}, {"apv": "=="},
    ],
)  # fmt: skip
def test_another_header_is_refused(key: AttestedKey, changes: dict[str, Any]) -> None:
    message = json.loads(wrap_to(key.public_jwk, bytearray(SECRET))) | {"protected": protected(**changes)}
    with pytest.raises(BorderError, match="JWE"):
        key.open(json.dumps(message).encode())


def test_a_member_in_both_headers_is_refused(key: AttestedKey) -> None:
    message = json.loads(wrap_to(key.public_jwk, bytearray(SECRET)))
    message["header"] = {"epk": {}}
    with pytest.raises(BorderError, match="each once"):
        key.open(json.dumps(message).encode())


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000, b'{"protected": 1}', b" " * (JWE_LIMIT + 1)]
)
def test_what_is_no_jwe_is_refused(key: AttestedKey, text: bytes) -> None:
    with pytest.raises(BorderError, match="JWE"):
        key.open(text)
