"""What a key store is: the facts that stand with a key, and the three things that any store can do.

What keeps them, and what opens them, is stores/.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from hermetic.attestation.claims import Profile
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import InvalidRequestError, KeyStoreError

MAX_SECRET_BYTES: Final = 65536
MODEL_KEY_BYTES: Final = 32
MAX_NAME_LENGTH: Final = 256
"""Longest model or publisher name, in characters."""

_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTS: Final = 3


class KeyExistsError(KeyStoreError):
    """The resource exists already; stores are create-only."""


@dataclass(frozen=True, slots=True, order=True)
class ResourcePath:
    """`<repository>/<type>/<tag>`."""

    repository: str
    type: str
    tag: str

    @classmethod
    def parse(cls, path: str) -> "ResourcePath":
        """Read `path`; raises `InvalidRequestError`."""
        parts = path.split("/")
        if len(parts) != _PARTS or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidRequestError(f"resource: expected repository/type/tag of [A-Za-z0-9._-], got {path[:400]!r}")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Which model version a key opens. `manifest_digest` is SHA-256, 64 hex digits."""

    name: str
    version: int
    manifest_digest: str
    publisher: str

    def to_json(self) -> dict[str, str | int]:
        """The facts as records and files hold them."""
        return {
            "name": self.name,
            "version": self.version,
            "manifest_digest": self.manifest_digest,
            "publisher": self.publisher,
        }


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The facts of a stored key, authenticated by the store; `model` is None for a plain secret."""

    resource: ResourcePath
    model: ModelFacts | None
    profile: Profile
    created: datetime


class KeyStore(Protocol):
    """Keeps secrets wrapped. Every method raises `KeyStoreError` when the store fails."""

    def create(self, key: StoredKey, secret: memoryview) -> None:
        """Store `secret` durably and at once; raises `KeyExistsError` when the resource exists."""

    def find(self, resource: ResourcePath) -> StoredKey | None:
        """The authenticated facts of `resource`, None when there is none; the secret stays wrapped."""

    def unwrap(self, resource: ResourcePath) -> KeyMemory:
        """The secret in the clear; the caller wipes it."""

    def list(self) -> tuple[StoredKey, ...]:
        """The facts of every key, in the order of their resources."""
