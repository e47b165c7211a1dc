"""The key pairs that attestation binds: made inside the locked worker, used to open one JWE, and wiped.

Two of them, on P-256 and hybrid (attestation/hybrid_key.py): a broker that was told of both wraps to the hybrid one.

At rest it lies in key memory, and so does what it opens: nobody else reads it there (attestation/key_memory.py).

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
from cryptography.hazmat.primitives.serialization import load_der_private_key

from hermetic.attestation import hybrid_key
from hermetic.attestation.hybrid_key import KeyWrap
from hermetic.attestation.key_memory import KeyMemory
from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds as wipe_bytes
from hermetic.errors import BorderError, InvalidRequestError

__all__ = ["KEY_MEMORY_BYTES", "AttestedKey", "wrap_to"]

JWE_LIMIT: Final = 16 * 1024  # bytes
KEY_MEMORY_BYTES: Final = 512  # the pairs, and what they open; several times over
ALGORITHM: Final = "ECDH-ES+A256KW"
CONTENT_ENCRYPTION: Final = "A256GCM"
_MEMBERS: Final = frozenset({"protected", "encrypted_key", "iv", "ciphertext", "tag"})
_HEADER_MEMBERS: Final = frozenset({"alg", "enc", "epk", "apu", "apv"})
_HYBRID_HEADER_MEMBERS: Final = frozenset({"alg", "enc", "ek"})
# jwcrypto puts these beside the protected header. Changing one only makes the unwrapping fail.
_UNPROTECTED_MEMBERS: Final = frozenset({"epk", "apu", "apv"})
_COORDINATE_BYTES: Final = 32
_KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16

# An EC private key on P-256 as RFC 5915 has it, up to the number and after it; without the public key.
_DER_HEAD: Final = bytes.fromhex("30310201010420")
_DER_TAIL: Final = bytes.fromhex("a00a06082a8648ce3d030107")
_NUMBER: Final = slice(len(_DER_HEAD), len(_DER_HEAD) + _KEY_BYTES)
DER_BYTES: Final = len(_DER_HEAD) + _KEY_BYTES + len(_DER_TAIL)
_ORDER: Final = bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")  # of P-256


class AttestedKey:
    """Key pairs whose private halves lie in key memory; OpenSSL has them for the length of one call."""

    def __init__(self, memory: KeyMemory, key_wrap: KeyWrap = "any") -> None:
        """Make fresh pairs. They take what they need of `memory`, which stays the caller's to wipe.

        `BorderError` where `key_wrap` is `hybrid` and there is no ML-KEM here.
        """
        self._key_wrap = key_wrap
        self.memory: Final = memory
        """Where the private half lies, and what is opened with it."""
        self._der: memoryview | None = memory.take(DER_BYTES)
        _fill(self._der)
        numbers = self._private().public_key().public_numbers()
        self.public_jwk: Final[dict[str, str]] = {
            "kty": "EC",
            "crv": "P-256",
            "alg": ALGORITHM,
            "x": _encode(numbers.x.to_bytes(_COORDINATE_BYTES, "big")),
            "y": _encode(numbers.y.to_bytes(_COORDINATE_BYTES, "big")),
        }
        self._seed: memoryview | None = None
        self.hybrid_key: Final = self._make_hybrid()
        """The public half of the hybrid pair (base64url); empty where there is no ML-KEM here."""

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh pair in a memory of its own."""
        return cls(KeyMemory(KEY_MEMORY_BYTES))

    def wipe(self) -> None:
        """Forget the private half, and what was opened with it: wipes the memory. Can be called again.

        Raises `KeyNotWipedError` where something of it is left.
        """
        if self._der is not None:
            self._der.release()
            self._der = None
        if self._seed is not None:
            self._seed.release()
            self._seed = None
        self.memory.wipe()

    def exchange(self, public: ec.EllipticCurvePublicKey) -> bytes:
        """Return the shared secret with `public`, which the caller wipes; `BorderError` once the key is wiped."""
        return self._private().exchange(ec.ECDH(), public)

    def open(self, jwe: bytes) -> memoryview:
        """Return the secret in `jwe` (flattened JSON, to this key), in the key's memory, until that is wiped.

        Raises `BorderError` where it is malformed, for another algorithm, not for this key, or larger than the memory,
        and where it is wrapped with P-256 alone though the hybrid key was demanded.
        """
        message, unprotected = _parse(jwe)
        protected = _json_object(_decode(message["protected"]), "JWE header")
        is_hybrid = protected.get("alg") == hybrid_key.ALGORITHM
        if self._key_wrap == "hybrid" and not is_hybrid:
            raise BorderError(f"JWE: wanted {hybrid_key.ALGORITHM}, which was demanded, got {protected.get('alg')!r}")
        unwrap = self._unwrap_hybrid if is_hybrid else self._unwrap
        content_key = unwrap(message, protected, unprotected)
        try:
            return self._decrypt(content_key, message, message["protected"].encode())
        finally:
            wipe_bytes(content_key)

    def _unwrap(self, message: dict[str, str], protected: dict[str, object], unprotected: dict[str, object]) -> bytes:
        header = _merge(protected, unprotected)
        shared = self.exchange(_ephemeral_key(header.get("epk")))
        wrapping = _wrapping_key(shared, _optional(header, "apu"), _optional(header, "apv"))
        try:
            return aes_key_unwrap(wrapping, _decode(message["encrypted_key"], _KEY_BYTES + 8))
        except InvalidUnwrap:
            raise BorderError("JWE: wanted one to the attested key of this worker, got one to another key") from None
        finally:
            wipe_bytes(wrapping)

    def _unwrap_hybrid(
        self, message: dict[str, str], protected: dict[str, object], unprotected: dict[str, object]
    ) -> bytes:
        if protected.keys() != _HYBRID_HEADER_MEMBERS or protected["enc"] != CONTENT_ENCRYPTION or unprotected:
            raise BorderError(
                f"JWE header: wanted exactly {sorted(_HYBRID_HEADER_MEMBERS)}, protected, with {CONTENT_ENCRYPTION}, "
                f"got {sorted(protected)} and {sorted(unprotected)} beside it"
            )
        if self._seed is None:
            raise BorderError(
                "JWE: wanted the attested hybrid key, got none: it has been wiped, or cannot be made here"
            )
        encapsulated = _decode(protected["ek"], hybrid_key.ENCAPSULATED_BYTES)
        wrapped = _decode(message["encrypted_key"], hybrid_key.WRAPPED_BYTES)
        try:
            return hybrid_key.unwrap(self._seed, encapsulated, wrapped)
        except InvalidTag:
            raise BorderError(
                "JWE: wanted one to the hybrid key of this worker, got another, or a changed one"
            ) from None

    def _make_hybrid(self) -> str:
        if (missing := hybrid_key.why_missing()) is not None:
            if self._key_wrap == "hybrid":
                raise BorderError(f"hybrid key: {missing}")
            return ""
        self._seed = self.memory.take(hybrid_key.SEED_BYTES)
        seed = os.urandom(hybrid_key.SEED_BYTES)
        try:
            self._seed[:] = seed
        finally:
            wipe_bytes(seed)
        return hybrid_key.public_key(self._seed)

    def _private(self) -> ec.EllipticCurvePrivateKey:
        """Return the key for one call; OpenSSL clears its copy when the last reference goes."""
        if self._der is None:
            raise BorderError("JWE: wanted the attested key, got none: it has been wiped")
        key = load_der_private_key(self._der, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):  # it is: this tells the type checker
            raise BorderError("attested key: wanted one on P-256, got another")
        return key

    def _decrypt(self, content_key: bytes, message: dict[str, str], associated_data: bytes) -> memoryview:
        ciphertext = _decode(message["ciphertext"]) + _decode(message["tag"], _TAG_BYTES)
        try:
            secret = self.memory.take(len(ciphertext) - _TAG_BYTES)
        except ValueError as error:
            raise BorderError(f"JWE: {error}") from None
        try:
            AESGCM(content_key).decrypt_into(_decode(message["iv"], _IV_BYTES), ciphertext, associated_data, secret)
        except InvalidTag:
            raise BorderError("JWE: wanted an authentic ciphertext, got one that was changed") from None
        return secret


def wrap_to(public_jwk: Mapping[str, str], secret: bytearray | memoryview, *, hybrid: str = "") -> bytes:
    """Return `secret` as a JWE to a worker's key: for whoever already holds it, such as the publisher while sealing.

    To the `hybrid` key where there is one. Raises `BorderError` where it is none, or `public_jwk` not one on P-256.
    """
    if hybrid:
        try:
            return json.dumps(hybrid_key.HybridPublicKey.parse(hybrid).encrypt(secret)).encode()
        except InvalidRequestError as error:
            raise BorderError(str(error)) from None
    ephemeral = AttestedKey.generate()
    try:
        header = {"alg": ALGORITHM, "enc": CONTENT_ENCRYPTION, "epk": _without_algorithm(ephemeral.public_jwk)}
        protected = _encode(json.dumps(header, separators=(",", ":")).encode())
        wrapping = _wrapping_key(ephemeral.exchange(_ephemeral_key(dict(public_jwk))), b"", b"")
    finally:
        ephemeral.wipe()
    content_key, iv = os.urandom(_KEY_BYTES), os.urandom(_IV_BYTES)
    try:
        sealed = AESGCM(content_key).encrypt(iv, secret, protected.encode())
        encrypted_key = aes_key_wrap(wrapping, content_key)
    finally:
        wipe_bytes(content_key)
        wipe_bytes(wrapping)
    message = {
        "protected": protected,
        "encrypted_key": _encode(encrypted_key),
        "iv": _encode(iv),
        "ciphertext": _encode(sealed[:-_TAG_BYTES]),
        "tag": _encode(sealed[-_TAG_BYTES:]),
    }
    return json.dumps(message).encode()


def _fill(der: memoryview) -> None:
    """Write a new private key: a random number below the order of the curve, and not 0."""
    der[:] = _DER_HEAD + bytes(_KEY_BYTES) + _DER_TAIL
    while True:
        number = os.urandom(_KEY_BYTES)
        try:
            if bytes(_KEY_BYTES) < number < _ORDER:
                der[_NUMBER] = number
                return
        finally:
            wipe_bytes(number)


def _without_algorithm(jwk: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in jwk.items() if name != "alg"}


def _wrapping_key(shared: bytes, apu: bytes, apv: bytes) -> bytes:
    """Return the key-encryption key of RFC 7518 section 4.6.2; `shared` is wiped."""
    # AlgorithmID, PartyUInfo, PartyVInfo, SuppPubInfo.
    info = b"".join(map(_with_length, (ALGORITHM.encode(), apu, apv))) + (8 * _KEY_BYTES).to_bytes(4, "big")
    try:
        return ConcatKDFHash(SHA256(), _KEY_BYTES, info).derive(shared)
    finally:
        wipe_bytes(shared)


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
