"""May this key go to this peer? Decided at GET resource, purely: facts in, every failed check out.

Genuine is verification.py's question and was answered at /attest. The order is that of docs/spec/key-broker.md, 2.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Literal

from hermetic.attestation.broker.key_store import ResourcePath, StoredKey
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, Profile
from hermetic.errors import AppraisalError, FailedCheck

Rollback = Literal["floor", "latest-only"]


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """Which resources a policy is for, and what else stands with it in the configuration.

    `resource` is a pattern over `repository/type/tag` (`*`, `?`, `[...]`; `*` does not stop at `/`). `accept` raises
    `AppraisalError` with every failure.
    """

    resource: str
    name: str
    digest: str
    accept: Callable[[Claims], object]
    plain_secrets: bool
    rollback: Rollback
    roll_over: timedelta


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything that a release depends on. `floor` is the operator's, `settled` that of latest-only (else 0)."""

    key: StoredKey
    claims: Claims
    profile: Profile
    floor: int
    settled: int


def entry_for(resource: ResourcePath, entries: Sequence[PolicyEntry]) -> PolicyEntry | None:
    """The first entry whose pattern matches, None where none does."""
    return next((entry for entry in entries if fnmatchcase(str(resource), entry.resource)), None)


def refusals(asked: Asked, entry: PolicyEntry | None) -> tuple[FailedCheck, ...]:
    """Every check that speaks against the release, of the first group that fails; empty: release it."""
    if entry is None:
        return (FailedCheck("release.policy", "a policy entry for this resource", "none"),)
    for group in (_profile, _identity, _rollback, _appraisal):
        failed = group(asked, entry)
        if failed:
            return failed
    return ()


def _profile(asked: Asked, entry: PolicyEntry) -> tuple[FailedCheck, ...]:
    _ = entry
    checks = Checks()
    checks.equal("release.profile", asked.key.profile, asked.profile)
    return checks.failed


def _identity(asked: Asked, entry: PolicyEntry) -> tuple[FailedCheck, ...]:
    checks = Checks()
    model = asked.key.model
    if model is None:
        checks.demand("release.plain_secret", entry.plain_secrets, "plain_secrets = true in the policy entry", "false")
    else:
        hermetic = asked.claims.hermetic
        attested = None if hermetic is None else hermetic.manifest_digest
        checks.equal("release.manifest_digest", model.manifest_digest, attested)
    return checks.failed


def _rollback(asked: Asked, entry: PolicyEntry) -> tuple[FailedCheck, ...]:
    _ = entry
    checks = Checks()
    model = asked.key.model
    if model is not None:
        checks.demand("release.floor", model.version >= asked.floor, f"version >= {asked.floor}", model.version)
        checks.demand(
            "release.latest_only", model.version >= asked.settled, f"version >= {asked.settled}", model.version
        )
    return checks.failed


def _appraisal(asked: Asked, entry: PolicyEntry) -> tuple[FailedCheck, ...]:
    try:
        entry.accept(asked.claims)
    except AppraisalError as error:
        return error.failures
    return ()
