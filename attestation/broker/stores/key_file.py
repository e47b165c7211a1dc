"""The format hermetic-wrapped-key/1: facts, their authentication code, and a wrapped secret. Bytes in, bytes out.

Files, names and durability are stores/folder.py's.
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
from hermetic.attestation.broker.stores.local_kek import NONCE_BYTES, TAG_BYTES, Kek
from hermetic.attestation.broker.strict_json import exactly, json_object, parse_object, text
from hermetic.attestation.claims import Profile
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import InvalidRequestError, KeyStoreError

FORMAT: Final = "hermetic-wrapped-key/1"
MAX_FACTS_BYTES: Final = 8192
MAX_FILE_BYTES: Final = MAX_FACTS_BYTES + 65 + MAX_SECRET_BYTES + TAG_BYTES

PROFILES: Final[tuple[Profile, ...]] = ("production", "demo")

_MEMBERS: Final = ("created", "format", "kek", "model", "nonce", "profile", "resource")
_MODEL_MEMBERS: Final = ("manifest_digest", "name", "publisher", "version")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NONCE: Final = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file whose facts are authentic; the secret is still wrapped."""

    key: StoredKey
    facts: bytes
    nonce: bytes
    wrapped: bytes

    def unwrap(self, kek: Kek) -> KeyMemory:
        """The secret in the clear, for the caller to wipe; raises `KeyStoreError` when it is not authentic."""
        buffer = KeyMemory(len(self.wrapped) - TAG_BYTES)
        try:
            with buffer.view as view:
                kek.unwrap_into(self.nonce, self.wrapped, self.facts, view)
        except BaseException:
            buffer.wipe()
            raise
        return buffer


def encode(key: StoredKey, secret: memoryview, nonce: bytes, kek: Kek) -> bytes:
    """The bytes of a key file; `nonce` is 12 bytes that this KEK never saw."""
    facts = rfc8785.dumps(_facts(key, nonce, kek)) + b"\n"
    code = kek.facts_code(facts).hex().encode("ascii") + b"\n"
    return facts + code + kek.wrap(nonce, secret, facts)


def decode(data: bytes, expected: ResourcePath, kek: Kek) -> KeyFile:
    """Read a key file and authenticate its facts; raises `KeyStoreError` naming expected and got."""
    facts, code, wrapped = _split(data)
    try:
        members = parse_object(facts, "key file")
        exactly(members, "key file", _MEMBERS)
        _check_kek(members, kek)
        if not hmac.compare_digest(kek.facts_code(facts).hex().encode("ascii"), code):
            raise KeyStoreError(f"key file {expected}: expected authentic facts, got facts that were changed")
        return KeyFile(_stored_key(members, expected), facts, _nonce(members), wrapped)
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


def _facts(key: StoredKey, nonce: bytes, kek: Kek) -> dict[str, JsonValue]:
    return {
        "format": FORMAT,
        "resource": str(key.resource),
        "model": None if key.model is None else key.model.to_json(),
        "profile": key.profile,
        "created": key.created.astimezone(UTC).isoformat(),
        "kek": kek.identifier,
        "nonce": nonce.hex(),
    }


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    first, separator, rest = data.partition(b"\n")
    code, second_separator, wrapped = rest.partition(b"\n")
    if not separator or not second_separator or not TAG_BYTES < len(wrapped) <= MAX_SECRET_BYTES + TAG_BYTES:
        raise KeyStoreError(
            f"key file: expected two lines and a wrapped secret, got {len(data)} bytes that are not that"
        )
    return first + b"\n", code, wrapped


def _check_kek(members: Mapping[str, JsonValue], kek: Kek) -> None:
    form, identifier = members["format"], members["kek"]
    if form != FORMAT:
        raise InvalidRequestError(f"expected the format {FORMAT}, got {form!r}")
    if identifier != kek.identifier:
        raise InvalidRequestError(f"expected a key wrapped by the KEK {kek.identifier}, got one by {identifier!r}")


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


def _nonce(members: Mapping[str, JsonValue]) -> bytes:
    value = text(members, "nonce", "key file")
    if not _NONCE.fullmatch(value):
        raise InvalidRequestError(f"expected a nonce of {NONCE_BYTES} bytes in hex, got {value[:80]!r}")
    return bytes.fromhex(value)


def _name(members: Mapping[str, JsonValue], member: str) -> str:
    value = text(members, member, "model")
    if not value or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise InvalidRequestError(
            f"model {member}: expected 1 to {MAX_NAME_LENGTH} printable characters, got {value[:80]!r}"
        )
    return value
