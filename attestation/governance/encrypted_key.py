"""A private key under a passphrase: PKCS #8, PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC (RFC 8018).

Written here because the library's own encryption takes 2048 rounds and cannot be told otherwise. It reads what this
writes; so does `openssl pkey`.
"""

import base64
import hashlib
import os
import textwrap
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["encrypted_pem"]

ROUNDS: Final = 600_000
"""Of PBKDF2: some 0.2 s for each guess (OWASP's number for HMAC-SHA-256)."""

SALT_BYTES: Final = 16
BLOCK_BYTES: Final = 16
KEY_BYTES: Final = 32

_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2: Final = bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA256: Final = bytes.fromhex("300c06082a864886f70d02090500")
_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")


def encrypted_pem(pkcs8: bytes, passphrase: bytes) -> bytes:
    """Encrypt a PrivateKeyInfo (DER): EncryptedPrivateKeyInfo in PEM."""
    salt, iv = os.urandom(SALT_BYTES), os.urandom(BLOCK_BYTES)
    key = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ROUNDS, KEY_BYTES)
    padding = BLOCK_BYTES - len(pkcs8) % BLOCK_BYTES
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(pkcs8 + bytes([padding]) * padding) + encryptor.finalize()
    rounds = _der(_INTEGER, ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1, "big"))
    kdf = _der(_SEQUENCE, _PBKDF2 + _der(_SEQUENCE, _der(_OCTETS, salt) + rounds + _HMAC_SHA256))
    cipher = _der(_SEQUENCE, _AES_256_CBC + _der(_OCTETS, iv))
    algorithm = _der(_SEQUENCE, _PBES2 + _der(_SEQUENCE, kdf + cipher))
    text = base64.b64encode(_der(_SEQUENCE, algorithm + _der(_OCTETS, encrypted))).decode("ascii")
    lines = "\n".join(textwrap.wrap(text, 64))
    return f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{lines}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode("ascii")


def _der(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:  # noqa: PLR2004 - the short form of a length
        return bytes([tag, size]) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + value
