"""The ML-DSA-65 key beside an Ed25519 key of the same name: both must have signed (docs/spec/post-quantum.md).

C2SP's signed-note gives types without a number the byte FF and a longer identifier. A reader that knows only the
Ed25519 key takes such a line for one of an unknown key and ignores it, as the format demands. Texts, lines and their
order are note.py's.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature

# cryptography imports its backend at the first ML-DSA key; a locked-down process could not.
from cryptography.hazmat.backends.openssl import backend as _backend
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from hermetic.errors import ConfigurationError, LogError

TYPE: Final = b"\xffhermetic-ml-dsa-65/1\x00"
"""What stands in front of a key of this type, in its text and in the hash that is its id."""
PUBLIC_BYTES: Final = 1952
SEED_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
CONTEXT: Final = b"hermetic signed note"
"""FIPS 204's context string: a signature over a note is none over anything else that the key may sign."""
PRIVATE: Final = "PRIVATE+KEY"

_ = _backend


@dataclass(frozen=True, slots=True)
class SecondKey:
    """The public half: a name, and FIPS 204's encoding of the key."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        """Raise `ConfigurationError` for what is no ML-DSA-65 key."""
        try:
            MLDSA65PublicKey.from_public_bytes(self.public_key)
        except ValueError as error:
            raise ConfigurationError(f"expected an ML-DSA-65 key of {PUBLIC_BYTES} bytes, got {error}") from error

    @classmethod
    def parse(cls, text: str) -> "SecondKey":
        """Read `<name>+<id>+<base64(TYPE || key)>`; raises `ConfigurationError`."""
        name, key_id, encoded = _split(text, 3)
        key = cls(name, _after_type(encoded, PUBLIC_BYTES))
        _check_id(key_id, key.key_id)
        return key

    @property
    def key_id(self) -> bytes:
        """SHA-256(name || newline || TYPE || key)[:4]."""
        return hashlib.sha256(self.name.encode() + b"\n" + TYPE + self.public_key).digest()[:KEY_ID_BYTES]

    def encode(self) -> str:
        """The key as the text that `parse` reads."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(TYPE + self.public_key).decode()}"

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raise `LogError` unless `signature` is this key's of `message`."""
        try:
            MLDSA65PublicKey.from_public_bytes(self.public_key).verify(signature, message, CONTEXT)
        except InvalidSignature as error:
            raise LogError(f"the ML-DSA-65 signature of {self.name} does not verify") from error


class SecondSigner:
    """The private half, in this process's memory."""

    def __init__(self, name: str, seed: bytes) -> None:
        """The key of FIPS 204 that this seed of 32 bytes gives; expanded once, which takes longer than signing."""
        self.name: Final = name
        self._key: Final = MLDSA65PrivateKey.from_seed_bytes(seed)

    @classmethod
    def generate(cls, name: str) -> "SecondSigner":
        """A new random key."""
        return cls(name, os.urandom(SEED_BYTES))

    @classmethod
    def parse(cls, text: str) -> "SecondSigner":
        """Read `PRIVATE+KEY+<name>+<id>+<base64(TYPE || seed)>`; raises `ConfigurationError`."""
        private, key, name, key_id, encoded = _split(text, 5)
        if f"{private}+{key}" != PRIVATE:
            raise ConfigurationError(f"expected a signing key {PRIVATE}+<name>+<id>+<key>")
        signer = cls(name, _after_type(encoded, SEED_BYTES))
        _check_id(key_id, signer.verifier().key_id)
        return signer

    def encode_private_key(self) -> str:
        """The private key as the text that `parse` reads. For a key file, and nothing else."""
        encoded = base64.b64encode(TYPE + self._key.private_bytes_raw()).decode()
        return f"{PRIVATE}+{self.name}+{self.verifier().key_id.hex()}+{encoded}"

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`, 3309 bytes."""
        return self._key.sign(message, CONTEXT)

    def verifier(self) -> SecondKey:
        """The public half."""
        return SecondKey(self.name, self._key.public_key().public_bytes_raw())


def is_second(text: str) -> bool:
    """Whether a key's text, public or private, says that it is of a type without a number: that of FF."""
    parts = text.strip().split("+", 4 if text.startswith(PRIVATE) else 2)
    return parts[-1].startswith("/")  # base64 of a first byte of FC or more, which no other type has


def _split(text: str, count: int) -> list[str]:
    parts = text.strip().split("+", count - 1)
    if len(parts) != count:
        raise ConfigurationError("expected an ML-DSA-65 key <name>+<id>+<key>")
    return parts


def _after_type(encoded: str, size: int) -> bytes:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise ConfigurationError("the ML-DSA-65 key is not base64") from error
    if not decoded.startswith(TYPE) or len(decoded) != len(TYPE) + size:
        raise ConfigurationError(f"expected an ML-DSA-65 key of {size} bytes after its type, got {len(decoded)} in all")
    return decoded[len(TYPE) :]


def _check_id(got: str, key_id: bytes) -> None:
    if got != key_id.hex():
        raise ConfigurationError(f"expected key id {key_id.hex()} in the ML-DSA-65 key, got {got}")
