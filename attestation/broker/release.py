"""May this key go to this peer? Decided at GET resource, purely: facts in, every failed check out.

Genuine is verification.py's question and was answered at /attest. The order is that of docs/spec/key-broker.md, 2.5.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final, Literal

from hermetic.attestation.broker.key_store import StoredKey
from hermetic.attestation.broker.leases import LeaseLengths
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, Profile
from hermetic.attestation.policy import AppraisalPolicy, choose, failures
from hermetic.errors import ConfigurationError, FailedCheck

Rollback = Literal["floor", "latest-only"]

DEFAULT_LENGTHS: Final = LeaseLengths(length_ms=3_600_000, grace_ms=900_000)
"""An hour, and a quarter of one."""


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """A policy for models, and what stands beside it in the configuration."""

    form: AppraisalPolicy
    rollback: Rollback = "floor"
    roll_over: timedelta = timedelta(0)
    lengths: LeaseLengths = DEFAULT_LENGTHS
    digest: str = field(init=False)
    """The form's, hex; computed once."""

    def __post_init__(self) -> None:
        """Compute the digest."""
        object.__setattr__(self, "digest", self.form.digest().hex())


@dataclass(frozen=True, slots=True)
class SecretPolicy:
    """A policy for plain secrets: a pattern over `repository/type/tag` (`*` does not stop at `/`)."""

    resource: str
    form: AppraisalPolicy


@dataclass(frozen=True, slots=True)
class Policies:
    """Every policy of the broker."""

    models: tuple[ModelPolicy, ...]
    secrets: tuple[SecretPolicy, ...] = ()

    def choose(self, key: StoredKey) -> ModelPolicy | None:
        """The policy of a stored key; None where there is none, or two that fit equally well."""
        if key.model is None:
            forms = (entry.form for entry in self.secrets if fnmatchcase(str(key.resource), entry.resource))
            form = next(forms, None)
            return None if form is None else ModelPolicy(form)
        try:
            chosen = choose([entry.form for entry in self.models], key.model.name)
        except ConfigurationError:
            return None
        return next(entry for entry in self.models if entry.form is chosen)


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything that a release depends on. `floor` is the operator's, `settled` that of latest-only (else 0).

    `lease_key` is the digest of the key that signs our leases.
    """

    key: StoredKey
    claims: Claims
    profile: Profile
    floor: int
    settled: int
    time: datetime  # now
    lease_key: str


def refusals(asked: Asked, policy: ModelPolicy | None) -> tuple[FailedCheck, ...]:
    """Every check that speaks against the release, of the first group that fails; empty: release it."""
    if policy is None:
        return (FailedCheck("release.policy", "one policy for this resource", "none, or several that fit alike"),)
    for failed in (_profile(asked), _identity(asked), _rollback(asked), _key_wrap(asked, policy.form)):
        if failed:
            return failed
    return accepted(asked.claims, policy.form, asked.time)


def accepted(claims: Claims, form: AppraisalPolicy, time: datetime) -> tuple[FailedCheck, ...]:
    """Every check of an appraisal policy that the claims fail at `time`; empty: accepted."""
    return failures(claims, form, time)


def _profile(asked: Asked) -> tuple[FailedCheck, ...]:
    checks = Checks()
    checks.equal("release.profile", asked.key.profile, asked.profile)
    return checks.failed


def _identity(asked: Asked) -> tuple[FailedCheck, ...]:
    checks = Checks()
    model, hermetic = asked.key.model, asked.claims.hermetic
    if model is not None:
        checks.equal("release.purpose", "model", None if hermetic is None else hermetic.purpose)
        attested = None if hermetic is None else hermetic.manifest_digest
        checks.equal("release.manifest_digest", model.manifest_digest, attested)
        # A worker that does not hold our key would count no lease of ours.
        checks.equal("release.lease_key", asked.lease_key, None if hermetic is None else hermetic.lease_key)
    return checks.failed


def _key_wrap(asked: Asked, form: AppraisalPolicy) -> tuple[FailedCheck, ...]:
    """Whatever the session's key is said to be for, something is wrapped to it now."""
    checks = Checks()
    hermetic = asked.claims.hermetic
    if form.hermetic.key_wrap is not None:
        wrapped = "classical" if hermetic is None or hermetic.hybrid_key is None else "hybrid"
        checks.equal("release.key_wrap", form.hermetic.key_wrap, wrapped)
    return checks.failed


def _rollback(asked: Asked) -> tuple[FailedCheck, ...]:
    checks = Checks()
    model = asked.key.model
    if model is not None:
        version = model.version
        checks.demand("release.floor", version >= asked.floor, f"version >= {asked.floor}", version)
        checks.demand("release.latest_only", version >= asked.settled, f"version >= {asked.settled}", version)
    return checks.failed
