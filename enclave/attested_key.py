"""The key pair that attestation binds: made inside the locked worker, used to open one JWE, and wiped.

Source: RFC 7516 (flattened JSON serialisation), RFC 7518 sections 4.6 (ECDH-ES+A256KW) and 5.3 (A256GCM). Written on
`cryptography` rather than on a JOSE library, because every secret on the way must be overwritten: a library hands them
around in immutable objects. OpenSSL clears its own copies when the last reference to a key goes.
"""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds as wipe_bytes
from hermetic.errors import BorderError

__all__ = ["AttestedKey", "wrap_to"]

JWE_LIMIT: Final = 16 * 1024  # bytes
ALGORITHM: Final = "ECDH-ES+A256KW"
CONTENT_ENCRYPTION: Final = "A256GCM"
_MEMBERS: Final = frozenset({"protected", "encrypted_key", "iv", "ciphertext", "tag"})
_HEADER_MEMBERS: Final = frozenset({"alg", "enc", "epk", "apu", "apv"})
# jwcrypto puts these beside the protected header. Changing one only makes the unwrapping fail.
_UNPROTECTED_MEMBERS: Final = frozenset({"epk", "apu", "apv"})
_COORDINATE_BYTES: Final = 32
_KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16


class AttestedKey:
    """An EC P-256 key pair whose private half never leaves this object."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private: ec.EllipticCurvePrivateKey | None = private
        numbers = private.public_key().public_numbers()
        self.public_jwk: Final[dict[str, str]] = {
            "kty": "EC",
            "crv": "P-256",
            "alg": ALGORITHM,
            "x": _encode(numbers.x.to_bytes(_COORDINATE_BYTES, "big")),
            "y": _encode(numbers.y.to_bytes(_COORDINATE_BYTES, "big")),
        }

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh pair."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def wipe(self) -> None:
        """Forget the private half. Can be called again."""
        self._private = None

    def exchange(self, public: ec.EllipticCurvePublicKey) -> bytes:
        """Return the shared secret with `public`, which the caller wipes; `BorderError` once the key is wiped."""
        if self._private is None:
            raise BorderError("JWE: wanted the attested key, got none: it has been wiped")
        return self._private.exchange(ec.ECDH(), public)

    def open(self, jwe: bytes) -> bytearray:
        """Return the secret in `jwe` (flattened JSON, to this key), in memory that the caller wipes.

        Raises `BorderError` where it is malformed, for another algorithm, or not for this key.
        """
        message, unprotected = _parse(jwe)
        protected = message["protected"]
        header = _merge(_json_object(_decode(protected), "JWE header"), unprotected)
        shared = self.exchange(_ephemeral_key(header.get("epk")))
        wrapping = _wrapping_key(shared, _optional(header, "apu"), _optional(header, "apv"))
        try:
            content_key = aes_key_unwrap(wrapping, _decode(message["encrypted_key"], _KEY_BYTES + 8))
        except InvalidUnwrap:
            raise BorderError("JWE: wanted one to the attested key of this worker, got one to another key") from None
        finally:
            wipe_bytes(wrapping)
        try:
            return _decrypt(content_key, message, protected.encode())
        finally:
            wipe_bytes(content_key)


def wrap_to(public_jwk: Mapping[str, str], secret: bytearray | memoryview) -> bytes:
    """Return `secret` as a JWE to a worker's key: for whoever already holds it, such as the publisher while sealing.

    Raises `BorderError` where `public_jwk` is not an EC key on P-256.
    """
    ephemeral = AttestedKey.generate()
    header = {"alg": ALGORITHM, "enc": CONTENT_ENCRYPTION, "epk": _without_algorithm(ephemeral.public_jwk)}
    protected = _encode(json.dumps(header, separators=(",", ":")).encode())
    wrapping = _wrapping_key(ephemeral.exchange(_ephemeral_key(dict(public_jwk))), b"", b"")
    content_key, iv = os.urandom(_KEY_BYTES), os.urandom(_IV_BYTES)
    sealed = AESGCM(content_key).encrypt(iv, secret, protected.encode())
    message = {
        "protected": protected,
        "encrypted_key": _encode(aes_key_wrap(wrapping, content_key)),
        "iv": _encode(iv),
        "ciphertext": _encode(sealed[:-_TAG_BYTES]),
        "tag": _encode(sealed[-_TAG_BYTES:]),
    }
    wipe_bytes(content_key)
    wipe_bytes(wrapping)
    return json.dumps(message).encode()


def _without_algorithm(jwk: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in jwk.items() if name != "alg"}


def _wrapping_key(shared: bytes, apu: bytes, apv: bytes) -> bytes:
    """Return the key-encryption key of RFC 7518 section 4.6.2; `shared` is wiped."""
    # AlgorithmID, PartyUInfo, PartyVInfo, SuppPubInfo.
    info = b"".join(map(_with_length, (ALGORITHM.encode(), apu, apv))) + (8 * _KEY_BYTES).to_bytes(4, "big")
    wrapping = ConcatKDFHash(SHA256(), _KEY_BYTES, info).derive(shared)
    wipe_bytes(shared)
    return wrapping


def _decrypt(content_key: bytes, message: dict[str, str], associated_data: bytes) -> bytearray:
    ciphertext = _decode(message["ciphertext"]) + _decode(message["tag"], _TAG_BYTES)
    secret = bytearray(len(ciphertext) - _TAG_BYTES)
    try:
        AESGCM(content_key).decrypt_into(_decode(message["iv"], _IV_BYTES), ciphertext, associated_data, secret)
    except InvalidTag:
        raise BorderError("JWE: wanted an authentic ciphertext, got one that was changed") from None
    return secret


def _parse(jwe: bytes) -> tuple[dict[str, str], dict[str, object]]:
    """Return the texts, and the unprotected header (empty where there is none)."""
    if len(jwe) > JWE_LIMIT:
        raise BorderError(f"JWE: wanted at most {JWE_LIMIT} bytes, got {len(jwe)}")
    members = _json_object(jwe, "JWE")
    unprotected = members.pop("header", {})
    texts = {name: value for name, value in members.items() if isinstance(value, str)}
    if texts.keys() != _MEMBERS or members.keys() != _MEMBERS or not isinstance(unprotected, dict):
        raise BorderError(f"JWE: wanted the texts {sorted(_MEMBERS)}, got {sorted(members)}")
    return texts, unprotected


def _merge(protected: dict[str, object], unprotected: dict[str, object]) -> dict[str, object]:
    """Return the header of both parts (RFC 7516 section 4: no member in both)."""
    header = {**unprotected, **protected}
    if (
        (protected.get("alg"), protected.get("enc")) != (ALGORITHM, CONTENT_ENCRYPTION)
        or not header.keys() <= _HEADER_MEMBERS
        or not unprotected.keys() <= _UNPROTECTED_MEMBERS - protected.keys()
    ):
        raise BorderError(
            f"JWE header: wanted {ALGORITHM} with {CONTENT_ENCRYPTION} and members among {sorted(_HEADER_MEMBERS)}, "
            f"each once, got {protected.get('alg')!r} with {protected.get('enc')!r} and {sorted(header)}"
        )
    return header


def _ephemeral_key(jwk: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(jwk, dict) or (jwk.get("kty"), jwk.get("crv")) != ("EC", "P-256"):
        raise BorderError("JWE header: wanted an epk on P-256, got none")
    coordinates = (jwk.get("x"), jwk.get("y"))
    x, y = (int.from_bytes(_decode(value, _COORDINATE_BYTES), "big") for value in coordinates)
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise BorderError("JWE header: wanted an epk that is a point of P-256, got another") from None


def _json_object(text: bytes, what: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BorderError(f"{what}: wanted JSON, got {len(text)} other bytes") from None
    if not isinstance(value, dict):
        raise BorderError(f"{what}: wanted an object, got {type(value).__name__}")
    return value


def _optional(header: dict[str, object], name: str) -> bytes:
    return _decode(header[name]) if name in header else b""


def _with_length(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: object, length: int | None = None) -> bytes:
    """Return the bytes of unpadded base64url."""
    if not isinstance(text, str) or "=" in text:
        raise BorderError("JWE: wanted base64url without padding, got another value")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BorderError("JWE: wanted base64url without padding, got another text") from None
    if length is not None and len(data) != length:
        raise BorderError(f"JWE: wanted {length} bytes, got {len(data)}")
    return data
