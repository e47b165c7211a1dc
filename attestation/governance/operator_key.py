"""The key that an operator signs with: Ed25519 in PEM (PKCS #8), in a file that nobody else can read, or in a token.

It belongs on a machine of the operator's own, or on a stick: signing needs no network and no broker. A file is under a
passphrase, unless its owner says otherwise.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

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
from hermetic.attestation.governance.encrypted_key import encrypted_pem
from hermetic.attestation.governance.operator_token import SCHEME, OperatorToken
from hermetic.errors import ConfigurationError

MAX_FILE_BYTES: Final = 16 * 1024
_KEY_HEX: Final = 64
_ENCRYPTED: Final = b"ENCRYPTED"


Secret = Callable[[], bytearray]
"""Asks for a passphrase or a PIN, when it is needed; what it returns is overwritten after use."""


class OperatorSigner(Protocol):
    """What signs for an operator: a key in a file, or in a token; used in a `with`."""

    @property
    def public(self) -> str:
        """The public key: 64 hex digits."""

    def sign(self, change: Change, name: str) -> Change:
        """The change, with the signature of the operator called `name`."""

    def __enter__(self) -> Self:
        """It is open."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It is closed."""


class OperatorKey:
    """An operator's private key, out of a file."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Wrap `key`."""
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: Secret | None = None) -> Self:
        """Read a key file; `passphrase` is asked only where it is encrypted. Raises `ConfigurationError`."""
        data = read_bounded(path, MAX_FILE_BYTES)
        try:
            key = load_pem_private_key(data, None if _ENCRYPTED not in data else _asked(path, passphrase))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(f"{path}: expected a private key in PEM, got {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
        return cls(key)

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write the key to a new file that only its owner can read, encrypted where a passphrase is given.

        Raises `ConfigurationError`.
        """
        if passphrase is None:
            data = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        else:
            data = encrypted_pem(self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def sign(self, change: Change, name: str) -> Change:
        """The change, with the signature of the operator called `name`."""
        signature = Signature(operator=name, signature=self._key.sign(change.statement.signed_bytes).hex())
        return change.with_signatures([signature])


def open_signer(where: str, secret: Secret | None) -> OperatorSigner:
    """The key at `where`: a `pkcs11:` URI, else a file. `secret` asks for its PIN or passphrase where one is needed.

    Raises `ConfigurationError` or `KeyStoreUnavailableError`.
    """
    return OperatorToken(where, secret) if where.startswith(SCHEME) else OperatorKey.load(Path(where), secret)


def _asked(path: Path, passphrase: Secret | None) -> bytes:
    if passphrase is None:
        raise ConfigurationError(f"{path}: expected a key that is not encrypted, or a passphrase: hermetic broker sign")
    text = passphrase()
    try:
        return bytes(text)
    finally:
        text[:] = bytes(len(text))


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
