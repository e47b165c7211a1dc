"""The book of leases: issues, renews, revokes, and tells clients what was revoked (docs/spec/leases.md).

A lease is entered before the record of its release is written, and the answer leaves after it: a revocation at any
moment between finds it. Revocations and their cursors are the log's. Thread-safe; what waits for events is told by
`watch`, and waits elsewhere (lease_feed.py).
"""

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hermetic.attestation.broker import journal
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.key_store import ModelFacts, ResourcePath
from hermetic.attestation.broker.lease_state import Holding, LeaseState, Target, chips, facts
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.sessions import Attested
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.lease import LeasedModel, LeaseSigner, LeaseTerms
from hermetic.errors import FailedCheck

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
    """Every lease of this broker that has not ended."""

    def __init__(
        self,
        state: LeaseState,
        log: Journal,
        signer: LeaseSigner,
        limits: LeaseLimits,
        *,
        issuer: str,
        clock: Callable[[], datetime],
    ) -> None:
        """`state` is what the log's records add up to (`journal.replay`)."""
        self.signer: Final = signer
        self._state = state
        self._log = log
        self._limits = limits
        self._issuer = issuer
        self._clock = clock
        self._mutex = threading.Lock()
        self._watchers: set[Callable[[], None]] = set()

    def draw_up(self, asker: Asker, lengths: LeaseLengths) -> Holding:
        """Return a new lease, which nobody has yet."""
        model = asker.model
        terms = LeaseTerms.of(
            LeasedModel(name=model.name, version=model.version, manifest_digest=model.manifest_digest),
            asker.attested.tee_key.thumbprint(),
            iss=self._issuer,
            jti=uuid.uuid4().hex,
            iat=int(self._clock().timestamp()),
            length_ms=lengths.length_ms,
            grace_ms=lengths.grace_ms,
            client=None if asker.client is None else asker.client.name,
            chips=chips(asker.attested.claims),
        )
        return Holding(terms, str(asker.resource), _key(asker.client))

    def enter(self, holding: Holding) -> tuple[FailedCheck, ...]:
        """Enter a lease, unless something that it comes under is revoked: then say what. Raises `Refusal`."""
        with self._mutex:
            self._state.forget_ended(self._clock())
            if against := self._state.against(holding):
                return _revoked(against)
            held = self._state.holdings.values()
            if len(held) >= self._limits.most:
                raise Refusal(Variant.TOO_MANY_REQUESTS, f"leases: expected at most {self._limits.most} held")
            if sum(one.client == holding.client for one in held) >= self._limits.most_per_client:
                most = self._limits.most_per_client
                raise Refusal(Variant.TOO_MANY_REQUESTS, f"leases: expected at most {most} held by one client")
            self._state.enter(holding)
        return ()

    def against_host(self, attested: Attested, client: ClientIdentity | None) -> tuple[FailedCheck, ...]:
        """Say what is revoked of the host of a session: it gets nothing, with a lease or without."""
        with self._mutex:
            return _revoked(self._state.against_host(None if client is None else client.name, chips(attested.claims)))

    def strike(self, holding: Holding) -> None:
        """The lease never left: its record could not be written."""
        with self._mutex:
            self._state.holdings.pop(holding.terms.jti, None)

    def revoke(self, target: Target, reason: str, client: JsonValue) -> int:
        """End every lease under `target`, and issue no other; returns how many were ended. Durable first."""
        with self._mutex:
            self._state.forget_ended(self._clock())
            cursor = self._write(journal.LEASE_REVOKED, target, reason, client)
            event = self._state.revoke(target, reason, cursor)
            for tell in self._watchers:
                tell()
        return len(event.holdings)

    def restore(self, target: Target, reason: str, client: JsonValue) -> None:
        """Take a revocation back; raises `Refusal` where there is none. What it ended stays ended."""
        with self._mutex:
            if target not in self._state.revoked:
                raise Refusal(Variant.INVALID_REQUEST, f"{target.kind} {target.name}: expected a revoked one")
            self._write(journal.LEASE_RESTORED, target, reason, client)
            self._state.restore(target)

    def overview(self) -> dict[str, JsonValue]:
        """What is held, and what is revoked."""
        with self._mutex:
            self._state.forget_ended(self._clock())
            revoked: list[JsonValue] = [
                {**target.to_json(), "reason": reason} for target, reason in sorted(self._state.revoked.items())
            ]
            return {"leases": facts(self._state.holdings.values()), "revoked": revoked}

    def events(self, client: ClientIdentity, after: int) -> list[JsonValue]:
        """What was revoked after the cursor `after` that ended leases of this client, oldest first."""
        with self._mutex:
            self._state.forget_ended(self._clock())
            mine = [(event, event.of((client.issuer, client.name))) for event in self._state.events]
        found: list[JsonValue] = [
            {"cursor": event.cursor, "revoked": event.target.kind, "leases": ids}
            for event, ids in mine
            if ids and event.cursor > after
        ]
        return found[:MAX_EVENTS]

    def watch(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, by whatever thread, after each revocation."""
        with self._mutex:
            self._watchers.add(tell)

    def forget(self, tell: Callable[[], None]) -> None:
        """Call it no more."""
        with self._mutex:
            self._watchers.discard(tell)

    def _write(self, kind: str, target: Target, reason: str, client: JsonValue) -> int:
        fields: Mapping[str, JsonValue] = {"client": client, "target": target.to_json(), "reason": reason}
        return self._log.write(kind, fields)


def _revoked(against: Sequence[Target]) -> tuple[FailedCheck, ...]:
    shown = ", ".join(f"{target.kind} {target.name}" for target in against)
    return (FailedCheck("release.revoked", "nothing revoked", shown),) if against else ()


def _key(client: ClientIdentity | None) -> tuple[str, str] | None:
    return None if client is None else (client.issuer, client.name)
