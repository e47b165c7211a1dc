"""MakeCredential in software: a secret that only the TPM holding both an EK and a named key can read.

Source: TPM 2.0 Library, Part 1, 24 "Credential Protection", B.10.4 (RSA), C.6.4 (EC); KDFa and KDFe 11.4.10. What is
made is opened by TPM2_ActivateCredential. Not here: whether that EK or that name deserves a secret (enrolment.py).
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from hermetic.attestation.abi.cursor import sized
from hermetic.attestation.abi.tpm import HASHES, Alg, Public
from hermetic.errors import InvalidRequestError

IDENTITY: Final = b"IDENTITY\0"
"""Label of the seed's transport."""

_OAEP_HASHES: Final[Mapping[int, Callable[[], hashes.HashAlgorithm]]] = {
    Alg.SHA1: hashes.SHA1,
    Alg.SHA256: hashes.SHA256,
    Alg.SHA384: hashes.SHA384,
}


@dataclass(frozen=True, slots=True)
class Credential:
    """What TPM2_ActivateCredential takes: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, each with its length."""

    id_object: bytes
    encrypted_secret: bytes


def make_credential(ek: Public, name: bytes, secret: bytes) -> Credential:
    """Protect `secret` for the TPM that holds `ek` and an object `name`.

    Raises `InvalidRequestError` when `ek` has no symmetric algorithm AES-CFB, or `secret` is longer than its digest.
    """
    hash_name = HASHES.get(ek.name_alg)
    if hash_name is None or ek.symmetric.alg != Alg.AES or ek.symmetric.details[1:] != (Alg.CFB,):
        raise InvalidRequestError("expected an EK with a known name algorithm and AES-CFB, got another")
    size = hashlib.new(hash_name).digest_size
    if len(secret) > size:
        raise InvalidRequestError(f"expected a secret of at most {size} bytes, got {len(secret)}")
    seed, encrypted_seed = _seed(ek, hash_name)
    key = kdfa(hash_name, seed, b"STORAGE", name, b"", ek.symmetric.details[0])
    # Part 1, 24.4: CFB with an IV of zeros; the key is used once, because the seed is.
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    mac_key = kdfa(hash_name, seed, b"INTEGRITY", b"", b"", 8 * size)
    mac = hmac.digest(mac_key, identity + name, hash_name)
    return Credential(sized(sized(mac) + identity), sized(encrypted_seed))


def _seed(ek: Public, hash_name: str) -> tuple[bytes, bytes]:
    """A fresh seed, and its transport to the EK (content of TPM2B_ENCRYPTED_SECRET)."""
    key = ek.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        oaep_hash = _OAEP_HASHES[ek.name_alg]()
        seed = secrets.token_bytes(oaep_hash.digest_size)
        return seed, key.encrypt(seed, padding.OAEP(padding.MGF1(oaep_hash), oaep_hash, IDENTITY))
    ephemeral = ec.generate_private_key(key.curve)
    size = (key.curve.key_size + 7) // 8
    ours = ephemeral.public_key().public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    theirs = key.public_numbers().x.to_bytes(size, "big")
    shared = ephemeral.exchange(ec.ECDH(), key)
    return kdfe(hash_name, shared, IDENTITY, x, theirs), sized(x) + sized(y)


def kdfa(hash_name: str, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2; SP 800-108 counter mode with HMAC): `bits` of key, a multiple of 8."""
    fixed = label + b"\0" + context_u + context_v + bits.to_bytes(4, "big")
    size = hashlib.new(hash_name).digest_size
    blocks = [hmac.digest(key, i.to_bytes(4, "big") + fixed, hash_name) for i in range(1, bits // 8 // size + 2)]
    return b"".join(blocks)[: bits // 8]


def kdfe(hash_name: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """KDFe (Part 1, 11.4.10.3; SP 800-56A) of one digest's length; `label` ends with its 00."""
    return hashlib.new(hash_name, (1).to_bytes(4, "big") + shared + label + party_u + party_v).digest()
