"""Whose models are opened: the list of trusted publishers, and the signatures over a manifest's digest.

Source: docs/spec/sealed-model.md section 3. Private keys are not here (sealed/publisher_key.py).
"""

import base64
import binascii
import hashlib
import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Final, Self

import rfc8785
from cryptography.exceptions import InvalidSignature

# cryptography imports its backend at the first ML-DSA key; a locked-down worker could not.
from cryptography.hazmat.backends.openssl import backend as _backend
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hermetic.enclave.manifest import NAME_PATTERN, explain
from hermetic.enclave.sealed.refusals import Refusal, refused
from hermetic.errors import ConfigurationError

__all__ = [
    "ALGORITHMS",
    "ED25519",
    "ML_DSA_65",
    "Publisher",
    "TrustedPublishers",
    "signed_message",
    "verify_signatures",
]

ED25519: Final = "ed25519"
ML_DSA_65: Final = "ml-dsa-65"
ALGORITHMS: Final = (ED25519, ML_DSA_65)
PUBLIC_KEY_BYTES: Final[Mapping[str, int]] = {ED25519: 32, ML_DSA_65: 1952}
SIGNATURE_BYTES: Final[Mapping[str, int]] = {ED25519: 64, ML_DSA_65: 3309}
PUBLISHERS_LIMIT: Final = 1024  # entries of one list

_DOMAIN: Final = b"hermetic-sealed-model/1 manifest signature\x00"
_ = _backend


def signed_message(manifest_digest: bytes) -> bytes:
    """Return what every algorithm signs for a manifest with this digest."""
    return _DOMAIN + manifest_digest


def decode_base64(text: str, length: int) -> bytes:
    """Return the `length` bytes of canonical, padded base64; `ValueError` for anything else."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected base64 of {length} bytes, got {error}") from None
    if len(raw) != length or base64.b64encode(raw).decode() != text:
        raise ValueError(f"expected canonical base64 of {length} bytes, got {len(raw)} bytes")
    return raw


class Publisher(BaseModel):
    """One trusted publisher: its public keys in base64, and whether it may publish programs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    ed25519: str | None = None
    ml_dsa_65: Annotated[str | None, Field(alias=ML_DSA_65)] = None
    code: bool = False
    native_code: bool = False

    @field_validator("ed25519", "ml_dsa_65")
    @classmethod
    def _is_a_key(cls, text: str | None, info: object) -> str | None:
        if text is not None:
            algorithm = ED25519 if getattr(info, "field_name", "") == "ed25519" else ML_DSA_65
            _public_key(algorithm, decode_base64(text, PUBLIC_KEY_BYTES[algorithm]))
        return text

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.algorithms:
            raise ValueError(f"expected a key for at least one of {', '.join(ALGORITHMS)}")
        if self.native_code and not self.code:
            raise ValueError("native_code: expected code = true beside it")
        return self

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms that every manifest of this publisher must be signed with."""
        return tuple(self.keys)

    @property
    def keys(self) -> dict[str, bytes]:
        """The raw public keys by algorithm."""
        texts = {ED25519: self.ed25519, ML_DSA_65: self.ml_dsa_65}
        return {name: base64.b64decode(text) for name, text in texts.items() if text is not None}

    def document(self) -> dict[str, str | bool]:
        """Return the entry as it stands in the list: present keys, both booleans."""
        return self.model_dump(by_alias=True, exclude_none=True)


class TrustedPublishers(BaseModel):
    """The whole list. A worker gets it before its lock-down; its digest stands in evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    publishers: Annotated[tuple[Publisher, ...], Field(max_length=PUBLISHERS_LIMIT)]

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [publisher.name for publisher in self.publishers]
        if len(set(names)) != len(names):
            raise ValueError("expected distinct publishers' names")
        return self

    @classmethod
    def loads(cls, text: str) -> Self:
        """Return the list in `text`, JSON or TOML; `ConfigurationError` says what is wrong."""
        try:
            if not text.lstrip().startswith("{"):
                # Through JSON, so that both forms are read by the same strict rules.
                text = json.dumps(tomllib.loads(text), default=str)
            return cls.model_validate_json(text)
        except (ValidationError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"trusted publishers: {explain(error)}") from None

    @property
    def text(self) -> str:
        """The list in canonical JSON, entries sorted by name; `loads` reads it again."""
        entries = [publisher.document() for publisher in sorted(self.publishers, key=lambda publisher: publisher.name)]
        return rfc8785.dumps({"publishers": entries}).decode()

    def digest(self) -> bytes:
        """Return the SHA-256 of `text`."""
        return hashlib.sha256(self.text.encode()).digest()

    def find(self, name: str) -> Publisher:
        """Return the publisher called `name`; refuse as `publisher-unknown` where it is not listed."""
        for publisher in self.publishers:
            if publisher.name == name:
                return publisher
        listed = ", ".join(sorted(publisher.name for publisher in self.publishers)) or "none"
        raise refused(Refusal.PUBLISHER_UNKNOWN, f"expected one of: {listed}, got {name!r}")


def verify_signatures(publisher: Publisher, manifest_digest: bytes, signatures: Mapping[str, bytes]) -> Publisher:
    """Return the publisher once every algorithm of its entry, and no other, has signed; else refuse by name."""
    for algorithm in publisher.algorithms:
        if algorithm not in signatures:
            raise refused(
                Refusal.SIGNATURE_MISSING,
                f"publisher {publisher.name!r}: expected {', '.join(publisher.algorithms)}, {algorithm} is missing",
            )
    for algorithm in signatures:
        if algorithm not in publisher.algorithms:
            raise refused(
                Refusal.SIGNATURE_UNLISTED,
                f"publisher {publisher.name!r}: expected only {', '.join(publisher.algorithms)}, got {algorithm}",
            )
    message = signed_message(manifest_digest)
    for algorithm, key in publisher.keys.items():
        try:
            _public_key(algorithm, key).verify(signatures[algorithm], message)
        except InvalidSignature:
            raise refused(
                Refusal.SIGNATURE_WRONG,
                f"{algorithm}: expected the signature of publisher {publisher.name!r} over this manifest, got another",
            ) from None
    return publisher


def _public_key(algorithm: str, raw: bytes) -> Ed25519PublicKey | MLDSA65PublicKey:
    if algorithm == ED25519:
        return Ed25519PublicKey.from_public_bytes(raw)
    return MLDSA65PublicKey.from_public_bytes(raw)
