"""What a change of governance is about, and what it can say (docs/spec/governance.md, sections 1, 2, 5 to 7).

Types only: each refuses what the spec does not allow. Whether a content fits what a broker has is the broker's.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hermetic.attestation.claims import Profile
from hermetic.attestation.evidence import canonical

MAX_OPERATORS: Final = 32
MAX_PREFIXES: Final = 64
"""Most prefixes of one operator."""

MAX_FORM: Final = 48 * 1024
"""Longest form of a governed policy, in characters: its record must fit into the log."""

MAX_MS: Final = 366 * 24 * 3600 * 1000
MAX_NUMBER: Final = 2**53 - 1

KEY_LABEL: Final = b"hermetic-governance-key/1\0"
"""What the digest of a model's key begins with."""

SMALL_ORDER: Final = tuple(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Encodings of the points of Ed25519 whose order divides 8, without the bit of the sign: anybody signs by them."""

WHOLE: Final = ""
"""The prefix of every name; also what is not about a name at all is covered by it alone."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters")
    return text


def _of_one_person(key: str) -> str:
    point = bytes.fromhex(key)
    if point[:-1] + bytes([point[-1] & 0x7F]) in SMALL_ORDER:
        raise ValueError("expected a public key of one person, got a point of small order, by which anybody signs")
    return key


def _literal(text: str) -> str:
    if any(mark in text for mark in "*?["):
        raise ValueError("expected a prefix, not a pattern (*, ?, [)")
    return text


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
OperatorName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
Prefix = Annotated[str, Field(max_length=256), AfterValidator(_printable), AfterValidator(_literal)]
Resource = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){2}$")]
Roots = Annotated[str, Field(pattern="^(shipped|none|[0-9a-f]{64})$")]
RevokedName = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_printable)]
FormText = Annotated[str, Field(min_length=1, max_length=MAX_FORM)]
VersionNumber = Annotated[int, Field(ge=0, le=MAX_NUMBER)]


class Strict(BaseModel):
    """Immutable; unknown members are refused, and so is every value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> dict[str, Any]:
        """The members as JSON has them."""
        return self.model_dump(mode="json")


class OfOperators(Strict):
    """The operators themselves."""

    kind: Literal["operators"] = "operators"


class OfPolicy(Strict):
    """The policy of a prefix of names: of models, or resource paths of secrets of no model."""

    kind: Literal["policy"] = "policy"
    of: Literal["models", "secrets", "serving-certificates"]
    prefix: Prefix

    @model_validator(mode="after")
    def _serving_has_no_names(self) -> Self:
        if self.of == "serving-certificates" and self.prefix != WHOLE:
            raise ValueError('prefix: expected "" for serving certificates')
        return self


class OfKey(Strict):
    """A stored key."""

    kind: Literal["key"] = "key"
    resource: Resource


class OfFloor(Strict):
    """The version floor of a model's name, when it is lowered."""

    kind: Literal["floor"] = "floor"
    name: Name


class OfRevocation(Strict):
    """What is revoked, when that is taken back: a model (`version` 0: all of them), a server or a chip."""

    kind: Literal["revocation"] = "revocation"
    of: Literal["model", "server", "chip"]
    name: RevokedName
    version: VersionNumber = 0

    @model_validator(mode="after")
    def _version_is_a_models(self) -> Self:
        if self.version and self.of != "model":
            raise ValueError(f"version: expected 0 for a {self.of}, got {self.version}")
        return self


Part = Literal["admins", "serving", "trust"]
"""A part of a broker's configuration that operators sign for."""


class OfConfiguration(Strict):
    """A part of the broker's configuration: whose evidence is genuine, who administrates, what certificates say."""

    kind: Literal["configuration"] = "configuration"
    part: Part


Subject: TypeAlias = OfOperators | OfPolicy | OfKey | OfFloor | OfRevocation | OfConfiguration


class Operator(Strict):
    """One who signs: a public key (Ed25519, hex), and the prefixes of names that they sign for."""

    key: Annotated[Digest, AfterValidator(_of_one_person)]  # 32 bytes in hex, as a digest is
    name: OperatorName
    prefixes: Annotated[tuple[Prefix, ...], Field(min_length=1, max_length=MAX_PREFIXES)]

    @model_validator(mode="after")
    def _prefixes_are_distinct(self) -> Self:
        if list(self.prefixes) != sorted(self.prefixes):
            raise ValueError("prefixes: expected them sorted")
        if any(after.startswith(before) for before, after in itertools.pairwise(self.prefixes)):
            raise ValueError("prefixes: expected none to begin with another one")
        return self

    def covers(self, name: str) -> bool:
        """Whether this operator signs for `name`; "" is what only those for every name sign for."""
        return any(name.startswith(prefix) for prefix in self.prefixes)


class OperatorSet(Strict):
    """Who signs, and how many of them it takes."""

    operators: Annotated[tuple[Operator, ...], Field(min_length=1, max_length=MAX_OPERATORS)]
    threshold: Annotated[int, Field(ge=1, le=MAX_OPERATORS)]

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        names = [one.name for one in self.operators]
        if names != sorted(set(names)):
            raise ValueError("operators: expected them sorted by name, each name once")
        if len({one.key for one in self.operators}) != len(names):
            raise ValueError("operators: expected a key of their own for each")
        whole = sum(one.covers(WHOLE) for one in self.operators)
        if whole < self.threshold:
            raise ValueError(
                f"threshold: expected at most {whole}, the number of operators for every name, got {self.threshold}"
            )
        return self

    @classmethod
    def of(cls, operators: Sequence[Operator], threshold: int) -> Self:
        """A set of these operators, in any order."""
        return cls(operators=tuple(sorted(operators, key=lambda one: one.name)), threshold=threshold)

    def find(self, name: str) -> Operator | None:
        """The operator called `name`."""
        return next((one for one in self.operators if one.name == name), None)


class Form(Strict):
    """A policy of secrets, or of serving certificates: an appraisal policy as its author wrote it."""

    form: FormText


class ModelForm(Strict):
    """A policy of models, and how long their leases are."""

    form: FormText
    rollback: Literal["floor", "latest-only"] = "floor"
    roll_over_s: Annotated[int, Field(ge=0, le=MAX_MS // 1000)]
    lease_ms: Annotated[int, Field(ge=1, le=MAX_MS)]
    grace_ms: Annotated[int, Field(ge=0, le=MAX_MS)]


class KeyModel(Strict):
    """Which model version a key opens."""

    name: Name
    version: VersionNumber
    manifest_digest: Digest
    publisher: Name


class KeyContent(Strict):
    """The facts of a stored key; `secret` is `secret_digest`, None where it is not known or could be guessed."""

    created: Annotated[str, Field(min_length=1, max_length=64)]
    model: KeyModel | None
    profile: Profile
    secret: Digest | None


class FloorContent(Strict):
    """A floor that is lowered; `before` is written `from`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)

    before: Annotated[VersionNumber, Field(alias="from")]
    to: VersionNumber

    @model_validator(mode="after")
    def _is_lower(self) -> Self:
        if self.to >= self.before:
            raise ValueError(f"to: expected below {self.before}, got {self.to}")
        return self

    def to_json(self) -> dict[str, Any]:
        """The members as JSON has them."""
        return self.model_dump(mode="json", by_alias=True)


class RestoreContent(Strict):
    """Which revocation is taken back: the index of its record in the broker's log. A later one still stands."""

    record: VersionNumber


class CollateralTrust(Strict):
    """Who signs bundles of collateral, and for how long after its end it is believed: digests of the two files."""

    signers: Digest | None
    windows: Digest | None


class TrustContent(Strict):
    """Whose evidence is genuine, and who may ask for it to be judged.

    Certificates are SHA-256 of their DER, sorted; a vendor's roots "shipped", "none" or the digest of a folder's.
    """

    profile: Profile
    amd: Roots
    intel: Roots
    nvidia: Roots
    ak_authorities: tuple[Digest, ...]
    provisioned_aks: tuple[Digest, ...]
    ek_authorities: tuple[Digest, ...]
    software_ek_authorities: tuple[Digest, ...]
    collateral: CollateralTrust | None
    clients: tuple[Digest, ...]
    client_certificates: Literal["required", "optional"]


class AdminIssuer(Strict):
    """Who issues admin tokens: names to say, SHA-256 of the key's SubjectPublicKeyInfo, roles (None: every role)."""

    name: Name
    audience: str | None
    key: Digest
    roles: tuple[Name, ...] | None


class AdminRole(Strict):
    """What a role may do: a pattern of paths, and prefixes of names."""

    role: Name
    allowed: str
    names: tuple[str, ...]


class AdminsContent(Strict):
    """Who may come to the admin listener (SHA-256 of the CAs), who issues tokens, and what each role may."""

    authorities: tuple[Digest, ...]
    issuers: tuple[AdminIssuer, ...]
    roles: tuple[AdminRole, ...]


class ServingName(Strict):
    """What the serving certificate of one client says."""

    client: str
    common_name: str
    dns: tuple[str, ...]
    ip: tuple[str, ...]
    uris: tuple[str, ...]


class ServingContent(Strict):
    """The CA of serving certificates (SHA-256), None without one, and whose certificates say what."""

    authority: Digest | None
    names: tuple[ServingName, ...]


Configuration: TypeAlias = TrustContent | AdminsContent | ServingContent
Content: TypeAlias = OperatorSet | ModelForm | Form | KeyContent | FloorContent | RestoreContent | Configuration


_TYPES: Final[Mapping[str, type[Content]]] = {
    "operators": OperatorSet,
    "key": KeyContent,
    "floor": FloorContent,
    "revocation": RestoreContent,
    "admins": AdminsContent,
    "serving": ServingContent,
    "trust": TrustContent,
}


def content_type(subject: Subject) -> type[Content]:
    """The type that a subject's contents have."""
    match subject:
        case OfPolicy(of=of):
            return ModelForm if of == "models" else Form
        case OfConfiguration(part=part):
            return _TYPES[part]
    return _TYPES[subject.kind]


def signed_name(subject: Subject, content: Content) -> str:
    """The name that an operator must sign for, to sign for this change; "" where it is about no name, or all."""
    match subject, content:
        case OfPolicy(of="models", prefix=prefix), _:
            return prefix
        case OfKey(), KeyContent(model=KeyModel(name=name)):
            return name
        case OfFloor(name=name), _:
            return name
        case OfRevocation(of="model", name=name), _:
            return name
    return WHOLE


def secret_digest(key: bytes | bytearray | memoryview) -> str:
    """What a change says of a model's key: 32 random bytes, which nobody finds by their digest."""
    hashed = hashlib.sha256(KEY_LABEL)
    hashed.update(key)
    return hashed.hexdigest()


def digest_of(content: Content) -> str:
    """SHA-256 of a content's canonical JSON, hex."""
    return hashlib.sha256(canonical(content.to_json())).hexdigest()
