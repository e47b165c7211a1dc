"""The hybrid key pair: an independent implementation's vector, and everything that it refuses."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hermetic.attestation import hybrid_key
from hermetic.attestation.hybrid_key import HybridPublicKey, is_hybrid, public_key, unwrap
from hermetic.errors import InvalidRequestError

VECTOR: dict[str, Any] = json.loads(Path("tests/vectors/post-quantum/jose-hpke-10-ke.json").read_text())
SEED = bytes(range(32))
PUBLIC = public_key(SEED)
LOW_ORDER = {"zero": bytes(32), "one": bytes([1]) + bytes(31)}


def raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def opened(message: dict[str, str], aad: bytes, seed: bytes = SEED) -> bytes:
    header = json.loads(raw(message["protected"]))
    cek = unwrap(seed, raw(header["ek"]), raw(message["encrypted_key"]))
    return AESGCM(cek).decrypt(raw(message["iv"]), raw(message["ciphertext"]) + raw(message["tag"]), aad)


def test_it_is_the_drafts_key_and_opens_the_drafts_message() -> None:
    key, message = VECTOR["key"], VECTOR["jwe"]
    assert public_key(raw(key["priv"])) == key["pub"]
    aad = f"{message['protected']}.{message['aad']}".encode()
    assert opened(message, aad, raw(key["priv"])).decode() == VECTOR["plaintext"]


def test_it_opens_what_it_wraps() -> None:
    message = HybridPublicKey.parse(PUBLIC).encrypt(b"a secret")
    assert opened(message, message["protected"].encode()) == b"a secret"
    header = json.loads(raw(message["protected"]))
    assert header.keys() == {"alg", "ek", "enc"}
    assert (header["alg"], header["enc"], len(raw(header["ek"]))) == ("HPKE-10-KE", "A256GCM", 1120)


def test_two_wraps_share_nothing() -> None:
    one, other = (HybridPublicKey.parse(PUBLIC).encrypt(b"a secret") for _ in range(2))
    assert not set(one.values()) & set(other.values())


@pytest.mark.parametrize("half", [slice(0, 1088), slice(1088, 1120)], ids=["ml-kem", "x25519"])
def test_either_half_of_another_ciphertext_opens_nothing(half: slice) -> None:
    one, other = (HybridPublicKey.parse(PUBLIC).encrypt(b"a secret") for _ in range(2))
    ours, theirs = (bytearray(raw(json.loads(raw(message["protected"]))["ek"])) for message in (one, other))
    assert unwrap(SEED, bytes(ours), raw(one["encrypted_key"]))
    ours[half] = theirs[half]
    with pytest.raises(InvalidTag):
        unwrap(SEED, bytes(ours), raw(one["encrypted_key"]))


@pytest.mark.parametrize("share", LOW_ORDER.values(), ids=LOW_ORDER)
def test_a_share_of_low_order_opens_nothing(share: bytes) -> None:
    message = HybridPublicKey.parse(PUBLIC).encrypt(b"a secret")
    encapsulated = raw(json.loads(raw(message["protected"]))["ek"])
    with pytest.raises(InvalidTag):
        unwrap(SEED, encapsulated[:1088] + share, raw(message["encrypted_key"]))


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER)
def test_a_public_key_of_low_order_is_refused(point: bytes) -> None:
    """Whoever attested it could not be told apart by X25519: everyone knows the shared secret."""
    with pytest.raises(InvalidRequestError, match="hybrid key: expected keys of ML-KEM-768 and X25519"):
        HybridPublicKey(raw(PUBLIC)[:1184] + point)


@pytest.mark.parametrize("length", [0, 32, 1184, 1215, 1217])
def test_a_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"expected 1216 bytes, got {length}"):
        HybridPublicKey((raw(PUBLIC) + bytes(1))[:length])


def test_halves_in_the_other_order_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="hybrid key"):
        HybridPublicKey(raw(PUBLIC)[1184:] + raw(PUBLIC)[:1184])


def test_coefficients_out_of_range_are_refused() -> None:
    """FIPS 203, 7.2: a key whose coefficients are not reduced is no key."""
    with pytest.raises(InvalidRequestError, match="hybrid key: expected keys of ML-KEM-768"):
        HybridPublicKey(b"\xff" * 1184 + raw(PUBLIC)[1184:])


@pytest.mark.parametrize("change", [PUBLIC + "=", PUBLIC[:-1] + "h", "\N{EM DASH}" + PUBLIC[1:], "*" + PUBLIC[1:]])
def test_other_texts_of_a_key_are_refused(change: str) -> None:
    if change == PUBLIC:
        pytest.skip("the last character happens to be that")
    with pytest.raises(InvalidRequestError, match="hybrid key"):
        HybridPublicKey.parse(change)


@pytest.mark.parametrize("lengths", [(1119, 48), (1121, 48), (1120, 47), (1120, 49), (0, 0)])
def test_other_lengths_open_nothing(lengths: tuple[int, int]) -> None:
    with pytest.raises(InvalidTag):
        unwrap(SEED, bytes(lengths[0]), bytes(lengths[1]))


def test_pure_ml_kem_is_another_scheme() -> None:
    """A message to the ML-KEM half alone, in the same frame, does not open with both."""
    from cryptography.hazmat.primitives import hpke

    expanded = __import__("hashlib").shake_256(SEED).digest(96)
    lattice = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).public_key()
    suite = hpke.Suite(hpke.KEM.MLKEM768, hpke.KDF.SHAKE256, hpke.AEAD.AES_256_GCM)
    sealed = suite.encrypt(bytes(32), lattice, b"JOSE-HPKE rcpt\xffA256GCM\xff")
    with pytest.raises(InvalidTag):
        unwrap(SEED, sealed[:1088] + bytes(32), sealed[1088:])


def test_without_ml_kem_it_says_so_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = hybrid_key.why_missing(supported=lambda: False)
    assert reason is not None
    assert "ML-KEM-768" in reason
    assert hybrid_key.why_missing() is None
    monkeypatch.setattr(hybrid_key, "why_missing", lambda: reason)
    with pytest.raises(InvalidRequestError, match="got one built without it"):
        public_key(SEED)
    with pytest.raises(InvalidRequestError, match="got one built without it"):
        HybridPublicKey.parse(PUBLIC)


def test_which_wrap_a_message_says_it_has() -> None:
    message = HybridPublicKey.parse(PUBLIC).encrypt(b"a secret")
    assert is_hybrid(json.dumps(message).encode())
    for other in (b"", b"[]", b"{}", b'{"protected": 1}', json.dumps({"protected": text(b"[]")}).encode()):
        assert not is_hybrid(other)
    assert not is_hybrid(json.dumps({"protected": text(b'{"alg":"ECDH-ES+A256KW"}')}).encode())
