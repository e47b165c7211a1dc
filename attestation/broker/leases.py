"""The book of leases: issues, renews, revokes, and tells clients what was revoked (docs/spec/leases.md).

The record of a release holds the lease, and was decided on everything that was recorded before it: a revocation, of
whatever process, is before it and refuses it, or after it and ends it. Revocations and their cursors are the log's.
Thread-safe; what waits for events is told by `watch`, and waits elsewhere (lease_feed.py).
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.key_store import ModelFacts, ResourcePath
from hermetic.attestation.broker.lease_state import Holding, Target, chips, facts
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.sessions import Attested
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.lease import LeasedModel, LeaseSigner, LeaseTerms
from hermetic.errors import FailedCheck

BEGINNING: Final = -1
"""The cursor before every event."""

MAX_EVENTS: Final = 256
"""Most revocations in one answer of the feed."""


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """How many leases may be held, in all and by one client."""

    most: int
    most_per_client: int


@dataclass(frozen=True, slots=True)
class LeaseLengths:
    """How long a policy's leases are, and how long they outlast a broker that is away, in milliseconds."""

    length_ms: int
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose session asks for which key."""

    attested: Attested
    client: ClientIdentity | None
    resource: ResourcePath
    model: ModelFacts


class Leases:
    """Every lease of this broker that has not ended, as the log has them."""

    def __init__(
        self, log: Journal, signer: LeaseSigner, limits: LeaseLimits, *, issuer: str, clock: Callable[[], datetime]
    ) -> None:
        """`log` adds them up."""
        self.signer: Final = signer
        self._log = log
        self._limits = limits
        self._issuer = issuer
        self._clock = clock
        self.watch: Final = log.watch
        self.forget: Final = log.forget

    def draw_up(self, asker: Asker, lengths: LeaseLengths) -> Holding:
        """Return a new lease, which nobody has yet."""
        model = asker.model
        terms = LeaseTerms.of(
            LeasedModel(name=model.name, version=model.version, manifest_digest=model.manifest_digest),
            asker.attested.tee_key.thumbprint,
            iss=self._issuer,
            jti=uuid.uuid4().hex,
            iat=int(self._clock().timestamp()),
            length_ms=lengths.length_ms,
            grace_ms=lengths.grace_ms,
            client=None if asker.client is None else asker.client.name,
            chips=chips(asker.attested.claims),
        )
        return Holding(terms, str(asker.resource), _key(asker.client))

    def refusals(self, standing: Standing, holding: Holding) -> tuple[FailedCheck, ...]:
        """Say what is revoked that a new lease would come under. Raises `Refusal` where there is no room for one."""
        state = standing.leases
        state.forget_ended(self._clock())
        if against := state.against(holding):
            return _revoked(against)
        if len(state.holdings) >= self._limits.most:
            raise Refusal(Variant.TOO_MANY_REQUESTS, f"leases: expected at most {self._limits.most} held")
        if state.held_by(holding.client) >= self._limits.most_per_client:
            most = self._limits.most_per_client
            raise Refusal(Variant.TOO_MANY_REQUESTS, f"leases: expected at most {most} held by one client")
        return ()

    def revoke(self, target: Target, reason: str, client: JsonValue) -> int:
        """End every lease under `target`, and issue no other; returns how many were ended. Durable first."""

        def act(standing: Standing) -> tuple[Entry, int]:
            standing.leases.forget_ended(self._clock())
            ended = standing.leases.under(target)
            return _entry(entries.LEASE_REVOKED, target, reason, client), len(ended)

        return self._log.decide(act)[1]

    def restore(self, target: Target, reason: str, client: JsonValue) -> None:
        """Take a revocation back; raises `Refusal` where there is none. What it ended stays ended."""

        def act(standing: Standing) -> tuple[Entry, None]:
            if target not in standing.leases.revoked:
                raise Refusal(Variant.INVALID_REQUEST, f"{target.kind} {target.name}: expected a revoked one")
            return _entry(entries.LEASE_RESTORED, target, reason, client), None

        self._log.decide(act)

    def overview(self) -> dict[str, JsonValue]:
        """What is held, and what is revoked."""
        with self._log.standing() as (standing, _):
            state = standing.leases
            state.forget_ended(self._clock())
            revoked: list[JsonValue] = [
                {**target.to_json(), "reason": revoked.reason, "record": revoked.record}
                for target, revoked in sorted(state.revoked.items(), key=lambda one: one[0])
            ]
            return {"leases": facts(state.holdings.values()), "revoked": revoked}

    def events(self, client: ClientIdentity, after: int) -> list[JsonValue]:
        """What was durably revoked after the cursor `after` that ended leases of this client, oldest first.

        A cursor that this log has not reached is another log's, as after a back-up was restored: then everything is
        told, or what is revoked from now on would be missed until the log is as long again.
        """
        with self._log.standing() as (standing, durable):
            standing.leases.forget_ended(self._clock())
            after = after if after < durable else BEGINNING
            known = [event for event in standing.leases.events if after < event.cursor < durable]
        found: list[JsonValue] = [
            {"cursor": event.cursor, "revoked": event.target.kind, "leases": ids}
            for event in known
            if (ids := event.of((client.issuer, client.name)))
        ]
        return found[:MAX_EVENTS]


def against_host(standing: Standing, attested: Attested, client: ClientIdentity | None) -> tuple[FailedCheck, ...]:
    """Say what is revoked of the host of a session: it gets nothing, with a lease or without."""
    return _revoked(standing.leases.against_host(None if client is None else client.name, chips(attested.claims)))


def _entry(kind: str, target: Target, reason: str, client: JsonValue) -> Entry:
    return Entry(kind, {"client": client, "target": target.to_json(), "reason": reason})


def _revoked(against: Sequence[Target]) -> tuple[FailedCheck, ...]:
    shown = ", ".join(f"{target.kind} {target.name}" for target in against)
    return (FailedCheck("release.revoked", "nothing revoked", shown),) if against else ()


def _key(client: ClientIdentity | None) -> tuple[str, str] | None:
    return None if client is None else (client.issuer, client.name)
