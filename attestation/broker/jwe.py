"""The attested public key (a JWK) and the JWE that carries a secret to it (RFC 7516, 7517, 7518).

Written on `cryptography` rather than on a JOSE library, because the secret stands in a buffer that is wiped and must
not be copied into immutable bytes. Opening a JWE is the worker's business.
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hermetic.attestation import hybrid_key
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.key_memory import wipe_bytes_that_nobody_else_holds
from hermetic.errors import InvalidRequestError

CONTENT_ENCRYPTION: Final = "A256GCM"
KEY_AGREEMENT: Final = "ECDH-ES+A256KW"
KEY_TRANSPORT: Final = "RSA-OAEP-256"

CURVES: Final[Mapping[str, tuple[type[ec.EllipticCurve], int]]] = {
    "P-256": (ec.SECP256R1, 32),
    "P-521": (ec.SECP521R1, 66),
}
"""Curves by their JOSE names, and the length of a coordinate in bytes."""

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
RSA_EXPONENT: Final = 65537
CEK_BYTES: Final = 32
IV_BYTES: Final = 12
TAG_BYTES: Final = 16

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class TeeKey:
    """An attested public key: the JWK as received (it is what was hashed), and the key itself."""

    jwk: Mapping[str, JsonValue]
    public_key: PublicKey
    thumbprint: str = field(init=False)
    """The RFC 7638 thumbprint, base64url."""

    def __post_init__(self) -> None:
        """Compute the thumbprint, once: records and leases name the key by it."""
        members = (
            ("crv", "kty", "x", "y") if isinstance(self.public_key, ec.EllipticCurvePublicKey) else ("e", "kty", "n")
        )
        canonical = json.dumps({name: self.jwk[name] for name in members}, separators=(",", ":"))
        digest = Hash(SHA256())
        digest.update(canonical.encode())
        object.__setattr__(self, "thumbprint", b64url(digest.finalize()))


def tee_key(jwk: Mapping[str, JsonValue]) -> TeeKey:
    """Read a `tee-pubkey`; raises `InvalidRequestError` for every kind, algorithm or value that is not taken."""
    kind, algorithm = jwk.get("kty"), jwk.get("alg")
    if (kind, algorithm) == ("EC", KEY_AGREEMENT):
        return TeeKey(dict(jwk), _ec_key(jwk))
    if (kind, algorithm) == ("RSA", KEY_TRANSPORT):
        return TeeKey(dict(jwk), _rsa_key(jwk))
    raise InvalidRequestError(
        f"tee-pubkey: expected EC with {KEY_AGREEMENT} or RSA with {KEY_TRANSPORT}, got {kind!r} with {algorithm!r}"
    )


def key_wrap(recipient: TeeKey, hybrid: str) -> str:
    """The `alg` of what `encrypt` makes."""
    if hybrid:
        return hybrid_key.ALGORITHM
    return KEY_TRANSPORT if isinstance(recipient.public_key, rsa.RSAPublicKey) else KEY_AGREEMENT


def encrypt(secret: bytes | memoryview, recipient: TeeKey, hybrid: str = "") -> dict[str, str]:
    """`secret` as a flattened JWE to `recipient`. The keys on the way are wiped, whatever happens.

    Where its `hybrid` key was attested too (base64url), it goes to that one, and never to the other.
    """
    if hybrid:
        return hybrid_key.HybridPublicKey.parse(hybrid).encrypt(secret)
    cek = os.urandom(CEK_BYTES)
    try:
        header, encrypted_key = _wrap_cek(cek, recipient.public_key)
        protected = b64url(json.dumps(header, separators=(",", ":")).encode())
        iv = os.urandom(IV_BYTES)
        sealed = AESGCM(cek).encrypt(iv, secret, protected.encode("ascii"))
    finally:
        wipe_bytes_that_nobody_else_holds(cek)
    return {
        "protected": protected,
        "encrypted_key": b64url(encrypted_key),
        "iv": b64url(iv),
        "ciphertext": b64url(sealed[:-TAG_BYTES]),
        "tag": b64url(sealed[-TAG_BYTES:]),
    }


def _wrap_cek(cek: bytes, key: PublicKey) -> tuple[dict[str, JsonValue], bytes]:
    if isinstance(key, rsa.RSAPublicKey):
        oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
        return {"alg": KEY_TRANSPORT, "enc": CONTENT_ENCRYPTION}, key.encrypt(cek, oaep)
    ephemeral = ec.generate_private_key(key.curve)
    header: dict[str, JsonValue] = {
        "alg": KEY_AGREEMENT,
        "enc": CONTENT_ENCRYPTION,
        "epk": ec_jwk(ephemeral.public_key()),
    }
    kek = _concat_kdf(ephemeral.exchange(ec.ECDH(), key))
    try:
        return header, aes_key_wrap(kek, cek)
    finally:
        wipe_bytes_that_nobody_else_holds(kek)


def _concat_kdf(shared: bytes) -> bytes:
    """RFC 7518 section 4.6.2 with AlgorithmID "ECDH-ES+A256KW", empty PartyUInfo and PartyVInfo, 256 bits.

    Wipes `shared`.
    """
    algorithm = KEY_AGREEMENT.encode("ascii")
    other_info = len(algorithm).to_bytes(4, "big") + algorithm + bytes(8) + (256).to_bytes(4, "big")
    try:
        return ConcatKDFHash(SHA256(), 32, other_info).derive(shared)
    finally:
        wipe_bytes_that_nobody_else_holds(shared)


def ec_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, JsonValue]:
    """The public JWK of an EC key: crv, kty, x, y."""
    name, size = next((name, size) for name, (curve, size) in CURVES.items() if isinstance(key.curve, curve))
    numbers = key.public_numbers()
    x, y = (b64url(number.to_bytes(size, "big")) for number in (numbers.x, numbers.y))
    return {"crv": name, "kty": "EC", "x": x, "y": y}


def _ec_key(jwk: Mapping[str, JsonValue]) -> ec.EllipticCurvePublicKey:
    name = jwk.get("crv")
    if not isinstance(name, str) or name not in CURVES:
        raise InvalidRequestError(f"tee-pubkey: expected the curve {' or '.join(CURVES)}, got {name!r}")
    curve, size = CURVES[name]
    x, y = (int.from_bytes(_member(jwk, coordinate, size), "big") for coordinate in ("x", "y"))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError as error:
        raise InvalidRequestError(f"tee-pubkey: expected a point on {name}, got {error}") from error


def _rsa_key(jwk: Mapping[str, JsonValue]) -> rsa.RSAPublicKey:
    modulus = int.from_bytes(_member(jwk, "n"), "big")
    exponent = int.from_bytes(_member(jwk, "e"), "big")
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS or exponent != RSA_EXPONENT:
        raise InvalidRequestError(
            f"tee-pubkey: expected RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits with exponent {RSA_EXPONENT}, "
            f"got {modulus.bit_length()} bits with {exponent.bit_length()}-bit exponent"
        )
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise InvalidRequestError(f"tee-pubkey: expected an RSA key, got {error}") from error


def _member(jwk: Mapping[str, JsonValue], name: str, size: int | None = None) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str) or "=" in value or len(value) > MAX_RSA_BITS:
        raise InvalidRequestError(f"tee-pubkey: expected base64url without padding in {name!r}")
    try:
        data = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise InvalidRequestError(f"tee-pubkey: expected base64url in {name!r}, got {error}") from error
    if size is not None and len(data) != size:
        raise InvalidRequestError(f"tee-pubkey: expected {size} bytes in {name!r}, got {len(data)}")
    return data


def b64url(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
