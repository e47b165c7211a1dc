"""What a log's changes add up to, and whether the next one follows (docs/spec/governance.md, sections 4 and 5).

Rules of the state machine
- `begin` with the first set, once. A change is judged by the set that is in force before it.
- A change names the broker, the set in force, and the subject's version before it: what was signed for another
  broker, another set, another subject or an earlier state fails by name.
- Every signature must be a listed operator's and verify; those who sign for the subject's name are counted.
- `enter` follows a judged change; of two with one version the second fails.

Pure: time is an argument. Not here: what is in the log (broker/standing.py), whether a content fits what the broker
has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hermetic.attestation.checks import Checks
from hermetic.attestation.governance.change import Change, First, fits
from hermetic.attestation.governance.contents import (
    WHOLE,
    Content,
    OfKey,
    OfOperators,
    OfPolicy,
    Operator,
    OperatorSet,
    Subject,
    signed_name,
)
from hermetic.errors import FailedCheck, LogError

MAX_LIFE: Final = timedelta(days=366)
"""How far ahead the end of a statement may lie."""

SUBJECTS_KEPT: Final = 4096
"""How many subjects that were asked for are kept as made: names of models, their prefixes, and keys."""


@dataclass(frozen=True, slots=True)
class InForce:
    """A subject's newest change: its version, digest and content, and who signed it (nobody, of the first ones)."""

    version: int
    digest: str
    content: Content
    by: tuple[str, ...]


@dataclass(slots=True)
class Governance:
    """The state. Not thread-safe; `first` is None where nothing is governed."""

    first: First | None = None
    _broker: str = ""
    _operators: OperatorSet | None = None
    _in_force: dict[Subject, InForce] = field(default_factory=dict)

    def begin(self, first: First, log: str | None = None) -> None:
        """Take the first set; raises `LogError` for a second one, or one of another log than `log`."""
        if self.first is not None:
            raise LogError("operators: expected the first set of this log, got another one")
        if log is not None and first.log != log:
            raise LogError(f"operators: expected the first set of the log {log}, got one of {first.log}")
        self.first, self._broker, self._operators = first, first.digest, first.operators
        for policy in first.policies:
            self._in_force[policy.subject] = InForce(1, first.digest, policy.typed_content, ())

    @property
    def broker(self) -> str:
        """The broker's name in statements."""
        self.operators  # noqa: B018 - raises where there is none
        return self._broker

    @property
    def operators(self) -> OperatorSet:
        """Who signs now; raises `LogError` where nobody was named yet."""
        if self._operators is None:
            raise LogError("operators: expected a first set in the log, got none")
        return self._operators

    @property
    def operators_digest(self) -> str:
        """What statements call the set in force."""
        named = self._in_force.get(OfOperators())
        return self.broker if named is None else named.digest

    @property
    def operators_version(self) -> int:
        """How many changes made the set in force; 0 for the first one."""
        named = self._in_force.get(OfOperators())
        return 0 if named is None else named.version

    @property
    def in_force(self) -> Mapping[Subject, InForce]:
        """Every subject's newest change."""
        return MappingProxyType(self._in_force)

    def next_of(self, subject: Subject) -> tuple[int, str]:
        """The version of the subject's next change, and the digest of the one before it."""
        before = self._in_force.get(subject)
        return (1, self.broker) if before is None else (before.version + 1, before.digest)

    def judge(self, change: Change, time: datetime) -> tuple[FailedCheck, ...]:
        """Every check that the change fails at `time`; none: it follows, and `enter` may be called."""
        checks, statement = Checks(), change.statement
        version, previous = self.next_of(statement.subject)
        checks.equal("governance.broker", self.broker, statement.broker)
        checks.equal("governance.operators", self.operators_digest, statement.operators)
        checks.equal("governance.version", version, statement.version)
        checks.equal("governance.previous", previous, statement.previous)
        about = fits(statement, change.content)
        checks.require("governance.content", about, "the content that was signed", "another one")
        in_time = time < statement.ends <= time + MAX_LIFE
        wanted = f"an end after {time.isoformat()}, within {MAX_LIFE.days} days"
        checks.demand("governance.not_after", in_time, wanted, statement.not_after)
        self._judge_signatures(checks, change)
        return checks.failed

    def enter(self, change: Change) -> None:
        """Put a change in force that `judge` has nothing against."""
        statement, by = change.statement, tuple(one.operator for one in change.signatures)
        self._in_force[statement.subject] = InForce(statement.version, statement.digest, change.content, by)
        if isinstance(change.content, OperatorSet):
            self._operators = change.content

    def policy_of(
        self, of: Literal["models", "secrets", "serving-certificates"], name: str
    ) -> tuple[OfPolicy, InForce] | None:
        """The policy with the longest prefix of `name`; None where there is none."""
        for length in range(len(name), -1, -1):
            subject = _of_policy(of, name[:length])
            found = self._in_force.get(subject)
            if found is not None:
                return subject, found
        return None

    def key(self, resource: str) -> Content | None:
        """What the operators signed for as the key of `resource`; None while nobody has."""
        found = self._in_force.get(_of_key(resource))
        return None if found is None else found.content

    def _judge_signatures(self, checks: Checks, change: Change) -> None:
        name, message = signed_name(change.statement.subject, change.content), change.statement.signed_bytes
        count, faults, others = 0, [], []
        for one in change.signatures:
            operator = self.operators.find(one.operator)
            if operator is None:
                faults.append(f"{one.operator} is no operator now")
            elif not _verifies(operator, one.signature, message):
                faults.append(f"the signature of {one.operator} does not verify")
            elif operator.covers(name):
                count += 1
            else:
                others.append(f"{one.operator} does not sign for {name or WHOLE!r}")
        enough = self.operators.threshold
        got = "; ".join([f"{count} that count", *faults, *others])
        checks.demand("governance.signatures", count >= enough and not faults, f"{enough} of the operators'", got)


@lru_cache(maxsize=SUBJECTS_KEPT)
def _of_policy(of: Literal["models", "secrets", "serving-certificates"], prefix: str) -> OfPolicy:
    return OfPolicy.model_construct(of=of, prefix=prefix)


@lru_cache(maxsize=SUBJECTS_KEPT)
def _of_key(resource: str) -> OfKey:
    return OfKey.model_construct(resource=resource)


def _verifies(operator: Operator, signature: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(operator.key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True
