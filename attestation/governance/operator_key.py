"""The key that an operator signs with: Ed25519 in PEM (PKCS #8), in a file that nobody else can read.

It belongs on a machine of the operator's own, or on a stick: signing needs no network and no broker.
"""

import os
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from hermetic.attestation.bounded_file import read_bounded
from hermetic.attestation.governance.change import Change, Signature
from hermetic.errors import ConfigurationError

MAX_FILE_BYTES: Final = 16 * 1024
_KEY_HEX: Final = 64


class OperatorKey:
    """An operator's private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Wrap `key`."""
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file; raises `ConfigurationError`."""
        data = read_bounded(path, MAX_FILE_BYTES)
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(f"{path}: expected a private key in PEM, got {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read; raises `ConfigurationError`."""
        data = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except OSError as error:
            raise ConfigurationError(f"{path}: expected a new file: {error.strerror}") from error

    @property
    def public(self) -> str:
        """The public key: 64 hex digits, as `hermetic broker init --operator NAME=...` takes it."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, change: Change, name: str) -> Change:
        """The change, with the signature of the operator called `name`."""
        signature = Signature(operator=name, signature=self._key.sign(change.statement.signed_bytes).hex())
        return change.with_signatures([signature])


def read_public_key(text: str) -> str:
    """A public key as a set has it: `text` is 64 hex digits, or a PEM file; raises `ConfigurationError`."""
    if len(text) == _KEY_HEX and all(digit in "0123456789abcdef" for digit in text):
        return text
    path = Path(text)
    try:
        key = load_pem_public_key(read_bounded(path, MAX_FILE_BYTES))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path}: expected 64 hex digits or a public key in PEM, got {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
