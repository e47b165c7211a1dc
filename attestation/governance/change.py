"""The first set and a change: exact bytes, digests, signatures (docs/spec/governance.md, sections 2 and 3).

`loads` takes the one byte form that there is and nothing else. Here is what a document says; whether it is to be
followed is standing.py's.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from hermetic.attestation.evidence import JsonValue, canonical
from hermetic.attestation.governance.contents import (
    MAX_NUMBER,
    MAX_OPERATORS,
    Content,
    Digest,
    Name,
    OfConfiguration,
    OfFloor,
    OfKey,
    OfOperators,
    OfPolicy,
    OfRevocation,
    OperatorName,
    OperatorSet,
    Strict,
    Subject,
    content_type,
    digest_of,
)
from hermetic.errors import InvalidRequestError

FORMAT: Final = "hermetic-governance-change/1"
FIRST_FORMAT: Final = "hermetic-governance-first/1"
MAX_CHANGE_BYTES: Final = 56 * 1024
"""Longest change: with what a record adds it fits into one entry of the log."""

MAX_REASON: Final = 500
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
ID_BYTES: Final = 32


def _moment(text: str) -> str:
    if datetime.strptime(text, TIME_FORMAT).strftime(TIME_FORMAT) != text:  # noqa: DTZ007 - the form says Z
        raise ValueError("expected a moment of the form YYYY-MM-DDTHH:MM:SSZ")
    return text


def _reason(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters")
    return text


AnySubject = Annotated[
    OfOperators | OfPolicy | OfKey | OfFloor | OfRevocation | OfConfiguration, Field(discriminator="kind")
]


class Statement(Strict):
    """What an operator signs: everything that a change stands on, and the digest of what it says."""

    format: Literal["hermetic-governance-change/1"] = FORMAT
    broker: Digest
    operators: Digest
    subject: AnySubject
    version: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    previous: Digest
    content: Digest
    not_after: Annotated[str, AfterValidator(_moment)]
    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON), AfterValidator(_reason)]

    @property
    def signed_bytes(self) -> bytes:
        """What signatures are over."""
        return FORMAT.encode("ascii") + b"\0" + canonical(self.to_json())

    @property
    def digest(self) -> str:
        """The digest of the change: the same whoever has signed it."""
        return hashlib.sha256(self.signed_bytes).hexdigest()

    @property
    def ends(self) -> datetime:
        """From when on it is refused."""
        return datetime.strptime(self.not_after, TIME_FORMAT).replace(tzinfo=UTC)


class Signature(Strict):
    """One operator's signature, Ed25519, hex."""

    operator: OperatorName
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


class _File(Strict):
    """A change whose content has not been looked at."""

    statement: Statement
    content: dict[str, Any]
    signatures: Annotated[tuple[Signature, ...], Field(max_length=MAX_OPERATORS)]

    @model_validator(mode="after")
    def _one_signature_each(self) -> Self:
        names = [one.operator for one in self.signatures]
        if names != sorted(set(names)):
            raise ValueError("signatures: expected them sorted by operator, one of each")
        return self


@dataclass(frozen=True, slots=True)
class Change:
    """A statement, the content that it is about, and who has signed it."""

    statement: Statement
    content: Content
    signatures: tuple[Signature, ...] = ()

    @classmethod
    def loads(cls, data: bytes) -> Self:
        """Read a change's one byte form; raises `InvalidRequestError` for any other."""
        if len(data) > MAX_CHANGE_BYTES:
            raise InvalidRequestError(f"change: expected at most {MAX_CHANGE_BYTES} bytes, got {len(data)}")
        try:
            file = _File.model_validate_json(data)
            content = content_type(file.statement.subject).model_validate_json(canonical(file.content))
        except ValidationError as error:
            raise InvalidRequestError(f"change: {_problems(error)}") from None
        change = cls(file.statement, content, file.signatures)
        if change.dumps() != data:
            raise InvalidRequestError("change: expected its canonical JSON (RFC 8785) and one LF, got another form")
        return change

    @classmethod
    def of_json(cls, value: object) -> Self:
        """Read a change out of a record; raises `InvalidRequestError`."""
        return cls.loads(canonical(value) + b"\n")  # type: ignore[arg-type]

    def to_json(self) -> dict[str, JsonValue]:
        """The change as a record holds it."""
        return {
            "content": self.content.to_json(),
            "signatures": [one.to_json() for one in self.signatures],
            "statement": self.statement.to_json(),
        }

    def dumps(self) -> bytes:
        """The bytes of the file, and of the request that hands it in."""
        return canonical(self.to_json()) + b"\n"

    def with_signatures(self, more: Iterable[Signature]) -> Self:
        """This change with `more` signatures; of an operator who has signed already the new one counts."""
        merged = {one.operator: one for one in (*self.signatures, *more)}
        return replace(self, signatures=tuple(merged[name] for name in sorted(merged)))


class FirstPolicy(Strict):
    """A policy, or a part of the configuration, that an installation begins with."""

    subject: Annotated[OfPolicy | OfConfiguration, Field(discriminator="kind")]
    content: dict[str, Any]

    @model_validator(mode="after")
    def _content_fits(self) -> Self:
        if self.typed_content.to_json() != self.content:
            raise ValueError("content: expected every member, as the change of a policy has them")
        return self

    @property
    def typed_content(self) -> Content:
        """The content, checked."""
        return content_type(self.subject).model_validate_json(canonical(self.content))


class First(Strict):
    """What `hermetic broker init` fixes: the first operators, and the policies to begin with. Nobody signs it."""

    format: Literal["hermetic-governance-first/1"] = FIRST_FORMAT
    id: Digest
    log: Name
    operators: OperatorSet
    policies: tuple[FirstPolicy, ...]

    @model_validator(mode="after")
    def _each_policy_once(self) -> Self:
        subjects = [canonical(one.subject.to_json()) for one in self.policies]
        if subjects != sorted(set(subjects)):
            raise ValueError("policies: expected them sorted by subject, each subject once")
        return self

    @classmethod
    def fix(
        cls, log: str, operators: OperatorSet, policies: Iterable[tuple[OfPolicy | OfConfiguration, Content]]
    ) -> Self:
        """A new first set, with an id of its own."""
        ordered = sorted(
            (FirstPolicy(subject=subject, content=content.to_json()) for subject, content in policies),
            key=lambda one: canonical(one.subject.to_json()),
        )
        return cls(id=secrets.token_hex(ID_BYTES), log=log, operators=operators, policies=tuple(ordered))

    @classmethod
    def of_json(cls, value: object) -> Self:
        """Read the first set out of its record; raises `InvalidRequestError`."""
        data = canonical(value)  # type: ignore[arg-type]
        try:
            first = cls.model_validate_json(data)
        except ValidationError as error:
            raise InvalidRequestError(f"first operators: {_problems(error)}") from None
        if canonical(first.to_json()) != data:
            raise InvalidRequestError("first operators: expected every member, got a document that leaves some out")
        return first

    @property
    def digest(self) -> str:
        """The broker's name in every statement."""
        return hashlib.sha256(FIRST_FORMAT.encode("ascii") + b"\0" + canonical(self.to_json())).hexdigest()


def parse_subject(value: object) -> Subject:
    """A subject out of JSON; raises `InvalidRequestError`."""
    try:
        return TypeAdapter[Subject](AnySubject).validate_json(canonical(value))  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidRequestError(f"subject: {_problems(error)}") from None


def parse_content(subject: Subject, value: object) -> Content:
    """A content of `subject` out of JSON; raises `InvalidRequestError`."""
    try:
        return content_type(subject).model_validate_json(canonical(value))  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidRequestError(f"content of {shown(subject)}: {_problems(error)}") from None


def shown(subject: Subject) -> str:
    """A subject for people."""
    match subject:
        case OfPolicy(of=of, prefix=prefix):
            return f'policy of {of} "{prefix}"' if prefix else f"policy of {of}"
        case OfKey(resource=resource):
            return f"key {resource}"
        case OfFloor(name=name):
            return f"floor of {name}"
        case OfRevocation(of=of, name=name, version=version):
            return f"revocation of {of} {name}" + (f" version {version}" if version else "")
        case OfConfiguration(part=part):
            return f"configuration: {part}"
        case OfOperators():
            return "operators"


def fits(statement: Statement, content: Content) -> bool:
    """Whether the statement is about this content."""
    return statement.content == digest_of(content)


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()[:5])
