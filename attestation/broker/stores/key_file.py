"""The format hermetic-wrapped-key/2: facts, their authentication code, and a wrapped secret. Bytes in, bytes out.

Files, names and durability are stores/folder.py's, the page is docs/spec/key-stores.md.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import rfc8785

from hermetic.attestation.broker.key_store import (
    MAX_NAME_LENGTH,
    MAX_SECRET_BYTES,
    ModelFacts,
    ResourcePath,
    StoredKey,
)
from hermetic.attestation.broker.stores.facts_key import FactsKey
from hermetic.attestation.broker.stores.kek import Kek, KekRing
from hermetic.attestation.broker.strict_json import exactly, json_object, parse_object, text
from hermetic.attestation.claims import Profile
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import InvalidRequestError, KeyStoreError

FORMAT: Final = "hermetic-wrapped-key/2"
MAX_FACTS_BYTES: Final = 8192
MAX_WRAPPED_BYTES: Final = 2 * MAX_SECRET_BYTES
"""Longest wrapped secret: base64 and what a kind of KEK puts around it."""

MAX_FILE_BYTES: Final = MAX_FACTS_BYTES + 65 + MAX_WRAPPED_BYTES

PROFILES: Final[tuple[Profile, ...]] = ("production", "demo")

_MEMBERS: Final = ("created", "format", "kek", "model", "profile", "resource")
_MODEL_MEMBERS: Final = ("manifest_digest", "name", "publisher", "version")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file whose facts are authentic; the secret is still wrapped, by the KEK named `kek`."""

    key: StoredKey
    facts: bytes
    kek: str
    wrapped: bytes

    def unwrap(self, keks: KekRing) -> KeyMemory:
        """The secret in the clear, for the caller to wipe; raises `KeyStoreError` when it is not authentic."""
        return keks.by(self.kek).unwrap(self.wrapped, self.facts)


def encode(key: StoredKey, secret: memoryview, kek: Kek, facts_key: FactsKey) -> bytes:
    """The bytes of a key file; asks the KEK."""
    facts = rfc8785.dumps(_facts(key, kek)) + b"\n"
    wrapped = kek.wrap(secret, facts)
    if len(wrapped) > MAX_WRAPPED_BYTES:
        raise KeyStoreError(f"wrapped key: expected at most {MAX_WRAPPED_BYTES} bytes, got {len(wrapped)}")
    return facts + facts_key.code(facts).hex().encode("ascii") + b"\n" + wrapped


def decode(data: bytes, expected: ResourcePath, facts_key: FactsKey) -> KeyFile:
    """Read a key file and authenticate its facts; raises `KeyStoreError` naming expected and got."""
    facts, code, wrapped = _split(data)
    try:
        members = parse_object(facts, "key file")
        exactly(members, "key file", _MEMBERS)
        if members["format"] != FORMAT:
            raise InvalidRequestError(f"expected the format {FORMAT}, got {members['format']!r}")
        if not hmac.compare_digest(facts_key.code(facts).hex().encode("ascii"), code):
            raise KeyStoreError(f"key file {expected}: expected authentic facts, got facts that were changed")
        return KeyFile(_stored_key(members, expected), facts, text(members, "kek", "key file"), wrapped)
    except InvalidRequestError as error:
        raise KeyStoreError(f"key file {expected}: {error}") from error


def model_facts(members: Mapping[str, JsonValue]) -> ModelFacts:
    """Read and check a model's facts; raises `InvalidRequestError`."""
    exactly(members, "model", _MODEL_MEMBERS)
    version = members["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidRequestError(f"model version: expected a whole number of at least 1, got {version!r}")
    digest = text(members, "manifest_digest", "model")
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequestError(f"manifest digest: expected 64 lower-case hex digits, got {digest[:80]!r}")
    return ModelFacts(_name(members, "name"), version, digest, _name(members, "publisher"))


def _facts(key: StoredKey, kek: Kek) -> dict[str, JsonValue]:
    return {
        "format": FORMAT,
        "resource": str(key.resource),
        "model": None if key.model is None else key.model.to_json(),
        "profile": key.profile,
        "created": key.created.astimezone(UTC).isoformat(),
        "kek": kek.identifier,
    }


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    first, separator, rest = data.partition(b"\n")
    code, second_separator, wrapped = rest.partition(b"\n")
    if not separator or not second_separator or not 0 < len(wrapped) <= MAX_WRAPPED_BYTES:
        raise KeyStoreError(
            f"key file: expected two lines and a wrapped secret, got {len(data)} bytes that are not that"
        )
    return first + b"\n", code, wrapped


def _stored_key(members: Mapping[str, JsonValue], expected: ResourcePath) -> StoredKey:
    resource = ResourcePath.parse(text(members, "resource", "key file"))
    if resource != expected:
        raise InvalidRequestError(f"expected the key of {expected}, got that of {resource}")
    model = None if members["model"] is None else model_facts(json_object(members, "model", "key file"))
    profile = next((known for known in PROFILES if known == members["profile"]), None)
    if profile is None:
        raise InvalidRequestError(f"expected a profile out of {PROFILES}, got {members['profile']!r}")
    created = datetime.fromisoformat(text(members, "created", "key file"))
    return StoredKey(resource, model, profile, created)


def _name(members: Mapping[str, JsonValue], member: str) -> str:
    value = text(members, member, "model")
    if not value or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise InvalidRequestError(
            f"model {member}: expected 1 to {MAX_NAME_LENGTH} printable characters, got {value[:80]!r}"
        )
    return value
