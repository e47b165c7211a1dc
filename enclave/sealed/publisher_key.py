"""A publisher's private keys: made, kept in one file, used to sign. Only where models are sealed.

The file is JSON: {"name", "ed25519", "ml-dsa-65"}, the private keys as base64 of their 32-byte seeds (RFC 8032 and
FIPS 204), at least one of them. Everyone but its owner must be kept from reading it.
"""

import base64
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hermetic.enclave.manifest import NAME_PATTERN, explain
from hermetic.enclave.publishers import ED25519, ML_DSA_65, Publisher, decode_base64, signed_message
from hermetic.errors import ConfigurationError

__all__ = ["PublisherKey"]

SEED_BYTES: Final = 32
FILE_LIMIT: Final = 64 << 10  # bytes


class PublisherKey(BaseModel):
    """The private keys of one publisher, by algorithm. Never printed, never logged."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    ed25519: Annotated[str | None, Field(repr=False)] = None
    ml_dsa_65: Annotated[str | None, Field(alias=ML_DSA_65, repr=False)] = None

    @model_validator(mode="after")
    def _has_sound_keys(self) -> Self:
        if not self._seeds():
            raise ValueError(f"expected a private key for {ED25519}, {ML_DSA_65} or both")
        return self

    @classmethod
    def generate(cls, name: str) -> Self:
        """Return fresh keys for both algorithms."""
        seeds = {ED25519: os.urandom(SEED_BYTES), ML_DSA_65: os.urandom(SEED_BYTES)}
        return cls.model_validate(
            {"name": name, **{key: base64.b64encode(seed).decode() for key, seed in seeds.items()}}
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the keys in the file at `path`; `ConfigurationError` where others may read it or it is not one."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(FILE_LIMIT)
        except OSError as error:
            raise ConfigurationError(f"publisher key {path}: {error.strerror}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(f"publisher key {path}: expected mode 0600, got {stat.S_IMODE(mode):04o}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigurationError(f"publisher key {path}: {explain(error)}") from None

    def save(self, path: Path) -> None:
        """Write the keys to a new file at `path`, mode 0600; `ConfigurationError` where it exists."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"publisher key {path}: {error.strerror}") from None
        with os.fdopen(fd, "w") as file:
            json.dump(self.model_dump(by_alias=True, exclude_none=True), file, indent=2)
            file.write("\n")

    def publisher(self, *, code: bool = False, native_code: bool = False) -> Publisher:
        """Return the entry for a list of trusted publishers: the public halves."""
        raw = {
            algorithm: base64.b64encode(key.public_key().public_bytes_raw()).decode()
            for algorithm, key in self._private_keys().items()
        }
        return Publisher.model_validate({"name": self.name, **raw, "code": code, "native_code": native_code})

    def sign(self, manifest_digest: bytes) -> Mapping[str, bytes]:
        """Return a signature over the manifest with this digest for every algorithm."""
        message = signed_message(manifest_digest)
        return {algorithm: key.sign(message) for algorithm, key in self._private_keys().items()}

    def _seeds(self) -> dict[str, bytes]:
        texts = {ED25519: self.ed25519, ML_DSA_65: self.ml_dsa_65}
        return {algorithm: decode_base64(text, SEED_BYTES) for algorithm, text in texts.items() if text is not None}

    def _private_keys(self) -> dict[str, Ed25519PrivateKey | MLDSA65PrivateKey]:
        keys: dict[str, Ed25519PrivateKey | MLDSA65PrivateKey] = {}
        for algorithm, seed in self._seeds().items():
            if algorithm == ED25519:
                keys[algorithm] = Ed25519PrivateKey.from_private_bytes(seed)
            else:
                keys[algorithm] = MLDSA65PrivateKey.from_seed_bytes(seed)
        return keys
