"""The worker's hybrid key: what it opens, what a demand refuses, and that nothing of it is left."""

import base64
import json
from typing import Any

import pytest

from hermetic.attestation import hybrid_key
from hermetic.attestation.key_memory import KeyMemory
from hermetic.enclave.attested_key import KEY_MEMORY_BYTES, AttestedKey, wrap_to
from hermetic.errors import BorderError

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def key() -> AttestedKey:
    return AttestedKey.generate()


@pytest.fixture(scope="module")
def demanding() -> AttestedKey:
    return AttestedKey(KeyMemory(KEY_MEMORY_BYTES), "hybrid")


def hybrid_to(key: AttestedKey) -> dict[str, str]:
    message: dict[str, str] = json.loads(wrap_to(key.public_jwk, bytearray(SECRET), hybrid=key.hybrid_key))
    return message


def with_header(message: dict[str, str], **changes: Any) -> bytes:
    header = json.loads(base64.urlsafe_b64decode(message["protected"] + "=="))
    header = {name: value for name, value in (header | changes).items() if value is not None}
    protected = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return json.dumps(message | {"protected": protected}).encode()


def test_it_opens_both_kinds_unless_one_is_demanded(key: AttestedKey, demanding: AttestedKey) -> None:
    assert key.open(json.dumps(hybrid_to(key)).encode()) == SECRET
    assert key.open(wrap_to(key.public_jwk, bytearray(SECRET))) == SECRET
    assert demanding.open(json.dumps(hybrid_to(demanding)).encode()) == SECRET


def test_an_old_wrap_to_a_hybrid_demand_is_refused(demanding: AttestedKey) -> None:
    with pytest.raises(BorderError, match="wanted HPKE-10-KE, which was demanded, got 'ECDH-ES"):
        demanding.open(wrap_to(demanding.public_jwk, bytearray(SECRET)))


def test_an_old_wrap_that_calls_itself_hybrid_is_refused(demanding: AttestedKey) -> None:
    message = json.loads(wrap_to(demanding.public_jwk, bytearray(SECRET)))
    for changes in ({"alg": "HPKE-10-KE"}, {"alg": "HPKE-10-KE", "epk": None, "ek": "AAAA"}):
        with pytest.raises(BorderError, match="JWE"):
            demanding.open(with_header(message, **changes))


def test_one_to_another_worker_is_refused(key: AttestedKey, demanding: AttestedKey) -> None:
    with pytest.raises(BorderError, match="wanted one to the hybrid key of this worker"):
        key.open(json.dumps(hybrid_to(demanding)).encode())


@pytest.mark.parametrize("member", ["encrypted_key", "iv", "ciphertext", "tag"])
def test_a_changed_member_is_refused(key: AttestedKey, member: str) -> None:
    message = hybrid_to(key)
    raw = bytearray(base64.urlsafe_b64decode(message[member] + "=="))
    for at in (0, len(raw) - 1):
        raw[at] ^= 1
        changed = message | {member: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}
        with pytest.raises(BorderError, match="JWE"):
            key.open(json.dumps(changed).encode())
        raw[at] ^= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "HPKE-11-KE"}, {"alg": "HPKE-10"}, {"enc": "A128GCM"}, {"enc": None}, {"ek": None}, {"ek": 1},
        {"ek": "AAAA"}, {"kid": "x"}, {"epk": {}}, {"zip": "DEF"},
    ],
    ids=str,
)  # fmt: skip
def test_another_header_is_refused(key: AttestedKey, changes: dict[str, Any]) -> None:
    with pytest.raises(BorderError, match="JWE"):
        key.open(with_header(hybrid_to(key), **changes))


def test_an_unprotected_header_is_refused(key: AttestedKey) -> None:
    message = hybrid_to(key) | {"header": {"ek": "AAAA"}}
    with pytest.raises(BorderError, match="beside it"):
        key.open(json.dumps(message).encode())


def test_once_wiped_it_opens_nothing_and_its_seed_is_gone() -> None:
    memory = KeyMemory(KEY_MEMORY_BYTES)
    key = AttestedKey(memory)
    message = json.dumps(hybrid_to(key)).encode()
    with memory.view as view:
        assert any(view)
    key.wipe()
    with pytest.raises(BorderError, match="it has been wiped"):
        key.open(message)
    with pytest.raises(ValueError, match="got one that was wiped"):
        memory.view  # noqa: B018 - the property raises


def test_the_seed_lies_in_the_key_memory_alone() -> None:
    """What the public half is derived from stands nowhere else: the pair follows from those 32 bytes."""
    memory = KeyMemory(KEY_MEMORY_BYTES)
    key = AttestedKey(memory)
    with memory.view as view:
        places = [at for at in range(len(view) - 31) if _is_seed(bytes(view[at : at + 32]), key.hybrid_key, at)]
    assert len(places) == 1
    key.wipe()


def _is_seed(candidate: bytes, public: str, at: int) -> bool:
    # Fields begin at multiples of 16: the others cannot be one.
    return at % 16 == 0 and any(candidate) and hybrid_key.public_key(candidate) == public


def test_without_ml_kem_a_demand_is_refused_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid_key, "why_missing", lambda: "expected ML-KEM-768, got none")
    key = AttestedKey.generate()
    assert key.hybrid_key == ""
    assert key.open(wrap_to(key.public_jwk, bytearray(SECRET))) == SECRET
    with pytest.raises(BorderError, match="hybrid key: expected ML-KEM-768, got none"):
        AttestedKey(KeyMemory(KEY_MEMORY_BYTES), "hybrid")


@pytest.mark.parametrize("hybrid", ["AAAA", "*"])
def test_nothing_is_wrapped_to_what_is_no_hybrid_key(key: AttestedKey, hybrid: str) -> None:
    with pytest.raises(BorderError, match="hybrid key"):
        wrap_to(key.public_jwk, bytearray(SECRET), hybrid=hybrid)
