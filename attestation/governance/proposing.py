"""The next change, out of what a broker says is in force (docs/spec/governance.md, section 9).

What it says is believed only as far as a proposal goes: operators sign what the file says, and the broker checks that
it follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.governance.change import TIME_FORMAT, Change, Statement, parse_content, parse_subject
from hermetic.attestation.governance.contents import (
    Content,
    KeyContent,
    OfConfiguration,
    OfKey,
    OfOperators,
    OfRevocation,
    OperatorSet,
    RestoreContent,
    Subject,
    digest_of,
)
from hermetic.errors import InvalidRequestError

DEFAULT_LIFE: Final = timedelta(days=7)
"""How long a proposal may be signed and handed in."""


@dataclass(frozen=True, slots=True)
class Proposer:
    """What a broker answered about its governance."""

    broker: str
    operators: OperatorSet
    operators_digest: str
    _versions: Mapping[Subject, tuple[int, str]]
    _pending: Mapping[str, KeyContent]
    _unsigned: Mapping[Subject, Content]

    @classmethod
    def of_json(cls, state: Mapping[str, JsonValue]) -> Self:
        """Read the answer of `GET /hermetic/v1/governance`; raises `InvalidRequestError`."""
        try:
            named = _object(state["operators"])
            operators = parse_content(OfOperators(), named["content"])
            versions: dict[Subject, tuple[int, str]] = {
                parse_subject(one["subject"]): (_number(one["version"]), str(one["digest"]))
                for one in _objects(state["in_force"])
            }
            if version := _number(named["version"]):
                versions[OfOperators()] = version, str(named["digest"])
            pending = {str(one["resource"]): _key(str(one["resource"]), one) for one in _objects(state["pending"])}
            unsigned = {
                (subject := parse_subject(one["subject"])): parse_content(subject, one["content"])
                for one in _objects(state.get("unsigned", []))
            }
            broker, digest = str(state["broker"]), str(named["digest"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"the broker's governance: cannot read its answer: {error!r}") from error
        if not isinstance(operators, OperatorSet):
            raise InvalidRequestError("the broker's governance: expected operators")
        return cls(broker, operators, digest, versions, pending, unsigned)

    @property
    def pending(self) -> Sequence[str]:
        """Resources whose keys nobody has signed for yet."""
        return sorted(self._pending)

    def key(self, resource: str, reason: str, now: datetime, life: timedelta = DEFAULT_LIFE) -> Change:
        """A change that lets a pending key be released; raises `InvalidRequestError` where it is not pending."""
        content = self._pending.get(resource)
        if content is None:
            raise InvalidRequestError(f"key {resource}: expected one that is pending, got {self.pending or 'none'}")
        return self.change(OfKey(resource=resource), content, reason, now, life)

    def part(self, subject: OfConfiguration) -> Content:
        """A part of the broker's configuration as it runs now; raises `InvalidRequestError` where that is in force."""
        content = self._unsigned.get(subject)
        if content is None:
            raise InvalidRequestError(f"configuration {subject.part}: expected one that is not what is in force")
        return content

    def change(
        self, subject: Subject, content: Content, reason: str, now: datetime, life: timedelta = DEFAULT_LIFE
    ) -> Change:
        """An unsigned change of `subject` that may be handed in for `life` from `now` on."""
        version, previous = self._versions.get(subject, (0, self.broker))
        statement = Statement(
            broker=self.broker,
            operators=self.operators_digest,
            subject=subject,
            version=version + 1,
            previous=previous,
            content=digest_of(content),
            not_after=(now + life).strftime(TIME_FORMAT),
            reason=reason,
        )
        return Change(statement, content)


def restoring(leases: Mapping[str, JsonValue], target: Mapping[str, JsonValue]) -> tuple[OfRevocation, RestoreContent]:
    """Say how the revocation of `target` is taken back, out of the answer of `GET /hermetic/v1/leases`.

    Raises `InvalidRequestError` where that is not revoked.
    """
    members = dict(target)
    version = members.pop("version", 0)
    try:
        ((of, name),) = members.items()
        subject = parse_subject({"kind": "revocation", "of": of, "name": name, "version": version})
        for one in _objects(leases["revoked"]):
            if {what: one.get(what) for what in target} == target and one.get("version", 0) == version:
                return _revocation(subject), RestoreContent(record=_number(one["record"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"revocation of {target}: cannot read that: {error!r}") from error
    raise InvalidRequestError(f"revocation of {target}: expected something that is revoked")


def _revocation(subject: Subject) -> OfRevocation:
    if not isinstance(subject, OfRevocation):
        raise TypeError(f"expected a revocation, got {type(subject).__name__}")
    return subject


def _key(resource: str, entry: Mapping[str, JsonValue]) -> KeyContent:
    content = parse_content(OfKey(resource=resource), entry["content"])
    if not isinstance(content, KeyContent):
        raise InvalidRequestError(f"key {resource}: expected a key's facts")
    return content


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def _objects(value: JsonValue) -> list[Mapping[str, JsonValue]]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return [_object(one) for one in value]


def _number(value: JsonValue) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return value
