"""What the log's records add up to: floors, spent admin tokens, leases, attempts, uploads, and who governs.

They have no other home than the log (docs/spec/key-broker.md, section 7). Pure: records and moments are arguments.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from hermetic.attestation.broker.entries import (
    ADMIN,
    ATTEST,
    CHANGE,
    FLOOR,
    GOVERNANCE,
    LEASE_RESTORED,
    LEASE_REVOKED,
    RELEASE,
    RELEASE_FAILED,
    UPLOAD,
)
from hermetic.attestation.broker.lease_state import LeaseState, Target
from hermetic.attestation.broker.record_fields import json_object, moment, number, text
from hermetic.attestation.broker.recorded import first_set, holding, revoked_target
from hermetic.attestation.broker.state.ledger import LoggedRecord
from hermetic.attestation.governance import (
    Change,
    FloorContent,
    Governance,
    OfFloor,
    OfRevocation,
    RestoreContent,
)
from hermetic.attestation.log.record import timestamp
from hermetic.errors import InvalidRequestError, LogError

MAX_SESSION_LIFE: Final = timedelta(hours=1)
"""Longest life of a session that a configuration may set."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What the newest accepted upload of a resource said: when, and the digest of the model's key (None: no model)."""

    created: str
    secret: str | None


@dataclass(slots=True)
class Standing:
    """What the log's records add up to.

    Floors by name, admin tokens spent with the time they end, leases, uploads by resource, and who governs. `attested`
    has the sessions (SHA-256 of their ids) that had their one attempt, with its time, oldest first.
    """

    floors: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    leases: LeaseState = field(default_factory=LeaseState)
    attested: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    governance: Governance = field(default_factory=Governance)

    def floor(self, name: str) -> int:
        """The floor of `name`; 0 where there is none, which every version is above."""
        return self.floors.get(name, 0)

    def apply(self, record: LoggedRecord, index: int) -> None:
        """Add the record at `index`; raises `LogError` for one that does not say what it must."""
        if record.kind == FLOOR:
            self._set_floor(text(record, "name"), number(record, "to"))
        elif record.kind == ADMIN:
            self.spent[spent_key(text(record, "issuer"), text(record, "jti"))] = number(record, "expires")
        elif record.kind == ATTEST:
            self.attested[text(record, "session")] = record.time
        elif record.kind == UPLOAD:
            self._enter_upload(record)
        elif record.kind == GOVERNANCE:
            if self.governance.first is None:  # a second one has no effect
                self.governance.begin(first_set(record))
        elif record.kind == CHANGE:
            self._enter_change(record)
        elif record.kind == LEASE_RESTORED and self.governance.first is not None:
            pass  # operators sign for that, in a change
        else:
            _apply_lease(self.leases, record, index)

    def _set_floor(self, name: str, to: int) -> None:
        """Where operators govern, a record that they have not signed raises a floor and never lowers it."""
        self.floors[name] = to if self.governance.first is None else max(self.floor(name), to)

    def _enter_upload(self, record: LoggedRecord) -> None:
        created, secret = record.fields.get("created"), record.fields.get("secret")
        if record.fields.get("outcome") == "accepted" and isinstance(created, str):
            digest = secret if isinstance(secret, str) else None
            self.uploads[text(record, "resource")] = Upload(created, digest)

    def _enter_change(self, record: LoggedRecord) -> None:
        """Put a change in force, unless it does not follow: then it has no effect, whoever wrote it."""
        try:
            change = Change.of_json(json_object(record, "change"))
        except InvalidRequestError as error:
            raise LogError(f"record {record.kind}: {error}") from error
        if self.governance.first is None or self.governance.judge(change, moment(record, "judged")):
            return
        self.governance.enter(change)
        match change.statement.subject, change.content:
            case OfFloor(name=name), FloorContent(to=to):
                self.floors[name] = to
            case OfRevocation() as subject, RestoreContent(record=index):
                self.leases.restore_recorded(revoked_target(subject), index)

    def forget_ended(self, now: datetime) -> None:
        """Forget tokens and leases that are over."""
        moment = now.timestamp()
        self.spent = {key: ends for key, ends in self.spent.items() if ends > moment}
        self.leases.forget_ended(now)
        self.forget_attempts(now)

    def forget_attempts(self, now: datetime) -> None:
        """Forget attempts of sessions that cannot be alive any more."""
        over = timestamp(now - MAX_SESSION_LIFE)
        while self.attested and next(iter(self.attested.values())) < over:
            del self.attested[next(iter(self.attested))]


def _apply_lease(leases: LeaseState, record: LoggedRecord, index: int) -> None:
    if record.kind == RELEASE and record.fields.get("lease") is not None:
        leases.enter(holding(record))
    elif record.kind == RELEASE_FAILED and record.fields.get("lease") is not None:
        leases.end(text(record, "lease"))
    elif record.kind in (LEASE_REVOKED, LEASE_RESTORED):
        target = Target.parse(json_object(record, "target"))
        if record.kind == LEASE_REVOKED:
            leases.revoke(target, text(record, "reason"), index)
        else:
            leases.restore(target)


def spent_key(issuer: str, token_id: str) -> str:
    """One name for a token id of an issuer."""
    return hashlib.sha256(f"{len(issuer)}:{issuer}{token_id}".encode()).hexdigest()
