"""A key pair that holds as long as X25519 or ML-KEM-768 does, and the JWE that carries a secret to it.

HPKE in base mode with the KEM MLKEM768-X25519 (X-Wing), SHAKE256 and AES-256-GCM, as JOSE's `HPKE-10-KE`: exact bytes
in docs/spec/post-quantum.md. HPKE and both KEMs are the library's; here is how a seed becomes a pair, and JOSE's
framing. Where the library has no ML-KEM on this platform `why_missing` says so, and every call refuses. Not here:
keeping a private half (enclave/attested_key.py), reading a whole JWE (that too), and who must use this (policy/).
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidTag

# cryptography imports its backend at the first ML-KEM key; a locked-down worker could not.
from cryptography.hazmat.backends.openssl import backend as _backend
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hermetic.attestation.key_memory import wipe_bytes_that_nobody_else_holds
from hermetic.errors import InvalidRequestError

__all__ = [
    "ALGORITHM",
    "ENCAPSULATED_BYTES",
    "SEED_BYTES",
    "WRAPPED_BYTES",
    "HybridPublicKey",
    "KeyWrap",
    "is_hybrid",
    "public_key",
    "unwrap",
    "why_missing",
]

ALGORITHM: Final = "HPKE-10-KE"
"""JOSE's name: key encryption with MLKEM768-X25519, SHAKE256, AES-256-GCM."""
CONTENT_ENCRYPTION: Final = "A256GCM"
SEED_BYTES: Final = 32
PUBLIC_BYTES: Final = 1216  # 1184 of ML-KEM-768, 32 of X25519
ENCAPSULATED_BYTES: Final = 1120  # 1088 of ML-KEM-768, 32 of X25519
CEK_BYTES: Final = 32
WRAPPED_BYTES: Final = CEK_BYTES + 16  # with HPKE's tag

KeyWrap: TypeAlias = Literal["any", "hybrid"]
"""What a secret may be wrapped with: whatever both sides know, or the hybrid key only."""

_ML_KEM_PUBLIC_BYTES: Final = 1184
_ML_KEM_SEED_BYTES: Final = 64
_EXPANDED_BYTES: Final = 96
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_INFO: Final = b"JOSE-HPKE rcpt\xff" + CONTENT_ENCRYPTION.encode() + b"\xff"


def why_missing(*, supported: Callable[[], bool] = _backend.mlkem_supported) -> str | None:
    """Why there are no hybrid keys here, or None where there are."""
    return None if supported() else "expected a cryptography library with ML-KEM-768, got one built without it"


class HybridPublicKey:
    """The public half of a pair: what a secret is wrapped to."""

    def __init__(self, raw: bytes) -> None:
        """Read ML-KEM's encapsulation key and X25519's point, one after the other.

        Raises `InvalidRequestError` for another length, for what is no ML-KEM key (FIPS 203, 7.2), and for a point of
        low order, whose shared secret everyone knows.
        """
        if (missing := why_missing()) is not None:
            raise InvalidRequestError(f"hybrid key: {missing}")
        if len(raw) != PUBLIC_BYTES:
            raise InvalidRequestError(f"hybrid key: expected {PUBLIC_BYTES} bytes, got {len(raw)}")
        try:
            point = X25519PublicKey.from_public_bytes(raw[_ML_KEM_PUBLIC_BYTES:])
            X25519PrivateKey.generate().exchange(point)
            lattice = MLKEM768PublicKey.from_public_bytes(raw[:_ML_KEM_PUBLIC_BYTES])
        except ValueError as error:
            raise InvalidRequestError(f"hybrid key: expected keys of ML-KEM-768 and X25519, got {error}") from error
        self._key = hpke.MLKEM768X25519PublicKey(lattice, point)

    @classmethod
    def parse(cls, text: str) -> "HybridPublicKey":
        """Read base64url without padding, in its one canonical form; raises `InvalidRequestError`."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError as error:  # binascii.Error, or text that is not ASCII
            raise InvalidRequestError(f"hybrid key: expected base64url, got {error}") from error
        if _encode(raw) != text:
            raise InvalidRequestError("hybrid key: expected canonical base64url without padding, got another text")
        return cls(raw)

    def encrypt(self, secret: bytes | bytearray | memoryview) -> dict[str, str]:
        """Return `secret` as a flattened JWE (RFC 7516, 7.2.2) to this key. The keys on the way are wiped."""
        cek = os.urandom(CEK_BYTES)
        try:
            sealed = _suite().encrypt(cek, self._key, _INFO)
            header = {"alg": ALGORITHM, "ek": _encode(sealed[:ENCAPSULATED_BYTES]), "enc": CONTENT_ENCRYPTION}
            protected = _encode(json.dumps(header, separators=(",", ":")).encode())
            iv = os.urandom(_IV_BYTES)
            content = AESGCM(cek).encrypt(iv, secret, protected.encode("ascii"))
        finally:
            wipe_bytes_that_nobody_else_holds(cek)
        return {
            "protected": protected,
            "encrypted_key": _encode(sealed[ENCAPSULATED_BYTES:]),
            "iv": _encode(iv),
            "ciphertext": _encode(content[:-_TAG_BYTES]),
            "tag": _encode(content[-_TAG_BYTES:]),
        }


def is_hybrid(jwe: bytes) -> bool:
    """Whether `jwe` (flattened, JSON) says that it is wrapped to a hybrid key; whether it is, its opener finds out."""
    try:
        message = json.loads(jwe)
        protected = message["protected"]
        header = json.loads(base64.urlsafe_b64decode(protected + "=" * (-len(protected) % 4)))
        return bool(header["alg"] == ALGORITHM)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def public_key(seed: bytes | memoryview) -> str:
    """Return the public half of the pair that these 32 bytes are the private half of: base64url, `PUBLIC_BYTES`."""
    lattice, point = _expand(seed)
    return _encode(lattice.public_key().public_bytes_raw() + point.public_key().public_bytes_raw())


def unwrap(seed: bytes | memoryview, encapsulated: bytes, wrapped: bytes) -> bytes:
    """Return the content key in `wrapped`; the caller wipes it.

    Raises `InvalidTag` where the two are not for this pair, belong to different messages, or were changed: ML-KEM
    does not say which, and gives another secret instead.
    """
    if (len(encapsulated), len(wrapped)) != (ENCAPSULATED_BYTES, WRAPPED_BYTES):
        raise InvalidTag
    return _suite().decrypt(encapsulated + wrapped, hpke.MLKEM768X25519PrivateKey(*_expand(seed)), _INFO)


def _expand(seed: bytes | memoryview) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    """X-Wing's expandDecapsulationKey; OpenSSL clears its copies when the last reference to a key goes."""
    if (missing := why_missing()) is not None:
        raise InvalidRequestError(f"hybrid key: {missing}")
    if len(seed) != SEED_BYTES:
        raise InvalidRequestError(f"hybrid key: expected a seed of {SEED_BYTES} bytes, got {len(seed)}")
    expanded = hashlib.shake_256(seed).digest(_EXPANDED_BYTES)
    try:
        view = memoryview(expanded)
        lattice = MLKEM768PrivateKey.from_seed_bytes(view[:_ML_KEM_SEED_BYTES])
        return lattice, X25519PrivateKey.from_private_bytes(view[_ML_KEM_SEED_BYTES:])
    finally:
        wipe_bytes_that_nobody_else_holds(expanded)


def _suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.SHAKE256, hpke.AEAD.AES_256_GCM)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
