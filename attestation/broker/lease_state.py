"""What is leased to whom, what is revoked, and who is to be told: a state that the log's records add up to. Pure.

A lease is held until its length and grace are over; a revocation stands until it is taken back. What time it is, and
what is durable, is leases.py's.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, cast, get_args

from hermetic.attestation.claims import Claims, NvGpuClaims, SgxClaims, SnpClaims, TdxClaims, TpmClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.lease import LeaseTerms
from hermetic.errors import InvalidRequestError

TargetKind = Literal["model", "server", "chip"]

MAX_TARGET_NAME = 512
"""Longest name of what is revoked, in characters."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """What is revoked: a model (of one version, 0: of all), the server of a client identity's name, or a chip."""

    kind: TargetKind
    name: str
    version: int = 0

    @classmethod
    def parse(cls, members: Mapping[str, JsonValue]) -> "Target":
        """Read `{"model", "version"?}`, `{"server"}` or `{"chip"}`; raises `InvalidRequestError`."""
        kinds = [kind for kind in get_args(TargetKind) if kind in members]
        if len(kinds) != 1 or members.keys() - {kinds[0], "version"}:
            raise InvalidRequestError(f"expected one of model, server and chip, got {sorted(members)[:8]}")
        name, version = members[kinds[0]], members.get("version", 0)
        if not isinstance(name, str) or not 0 < len(name) <= MAX_TARGET_NAME or not name.isprintable():
            raise InvalidRequestError(f"{kinds[0]}: expected 1 to {MAX_TARGET_NAME} printable characters")
        if (
            not isinstance(version, int)
            or isinstance(version, bool)
            or version < 0
            or (version and kinds[0] != "model")
        ):
            raise InvalidRequestError(f"version: expected that of a model, at least 1, got {version!r:.40}")
        return cls(cast(TargetKind, kinds[0]), name, version)

    def to_json(self) -> dict[str, JsonValue]:
        """The target as `parse` reads it."""
        return {self.kind: self.name} | ({"version": self.version} if self.version else {})

    def concerns(self, holding: "Holding") -> bool:
        """Whether a lease is one of those that it ends."""
        if self.kind != "model":
            return self.concerns_host(holding.client_name, holding.terms.chips)
        return self.name == holding.terms.model.name and self.version in (0, holding.terms.model.version)

    def concerns_host(self, client_name: str | None, chips: Collection[str]) -> bool:
        """Whether it is the server of this name, or one of these chips."""
        return (self.kind == "server" and self.name == client_name) or (self.kind == "chip" and self.name in chips)


@dataclass(frozen=True, slots=True)
class Revoked:
    """Why something is revoked, and the index of the record that says so: the newest one counts."""

    reason: str
    record: int


@dataclass(frozen=True, slots=True)
class Holding:
    """One lease, and whose it is: the issuer's and the own name of the client's certificate, None without one."""

    terms: LeaseTerms
    resource: str
    client: tuple[str, str] | None

    @property
    def client_name(self) -> str | None:
        """The client's own name."""
        return None if self.client is None else self.client[1]

    @property
    def ends(self) -> datetime:
        """When length and grace are over."""
        return datetime.fromtimestamp(self.terms.iat, UTC) + timedelta(milliseconds=self.terms.whole_ms)


@dataclass(frozen=True, slots=True)
class Event:
    """A revocation, by its place in the log, and the leases that it ended."""

    cursor: int
    target: Target
    holdings: tuple[Holding, ...]

    @property
    def ends(self) -> datetime:
        """When none of its leases could be held any more."""
        return max(holding.ends for holding in self.holdings)

    def of(self, client: tuple[str, str]) -> list[JsonValue]:
        """The ids of the leases that are this client's."""
        return [holding.terms.jti for holding in self.holdings if holding.client == client]


@dataclass(slots=True)
class LeaseState:
    """Leases by id, in the order of their issue; what is revoked, and by what; events that somebody may not know."""

    holdings: dict[str, Holding] = field(default_factory=dict)
    revoked: dict[Target, Revoked] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    _held: Counter[tuple[str, str] | None] = field(default_factory=Counter)
    _ends: list[tuple[datetime, str]] = field(default_factory=list)  # a heap, also of ids that are gone

    def enter(self, holding: Holding) -> None:
        """A lease is issued."""
        self.holdings[holding.terms.jti] = holding
        self._held[holding.client] += 1
        heapq.heappush(self._ends, (holding.ends, holding.terms.jti))

    def end(self, name: str) -> None:
        """A lease that nobody got is over."""
        self._remove(name)

    def held_by(self, client: tuple[str, str] | None) -> int:
        """How many leases a client holds."""
        return self._held[client]

    def under(self, target: Target) -> tuple[Holding, ...]:
        """The leases that a revocation of `target` ends."""
        return tuple(holding for holding in self.holdings.values() if target.concerns(holding))

    def revoke(self, target: Target, reason: str, cursor: int) -> Event:
        """Something is revoked, by the record at `cursor`; the leases that it ends are gone."""
        ended = self.under(target)
        for holding in ended:
            self._remove(holding.terms.jti)
        self.revoked[target] = Revoked(reason, cursor)
        event = Event(cursor, target, ended)
        if ended:
            self.events.append(event)
        return event

    def restore(self, target: Target) -> None:
        """A revocation is taken back: what it ended stays ended."""
        self.revoked.pop(target, None)

    def restore_recorded(self, target: Target, record: int) -> None:
        """Take back the revocation that the record at `record` made, and no later one of the same target."""
        found = self.revoked.get(target)
        if found is not None and found.record == record:
            self.restore(target)

    def against(self, holding: Holding) -> list[Target]:
        """What is revoked that a new lease would come under."""
        return sorted(target for target in self.revoked if target.concerns(holding))

    def against_host(self, client_name: str | None, chips: Collection[str]) -> list[Target]:
        """What is revoked of a host, whatever it asks for."""
        return sorted(target for target in self.revoked if target.concerns_host(client_name, chips))

    def forget_ended(self, now: datetime) -> None:
        """Forget leases that are over, and events that concern none that might still be held."""
        while self._ends and self._ends[0][0] <= now:
            self._remove(heapq.heappop(self._ends)[1])
        if self.events:
            self.events = [event for event in self.events if event.ends > now]

    def _remove(self, name: str) -> None:
        holding = self.holdings.pop(name, None)
        if holding is None:
            return
        self._held[holding.client] -= 1
        if not self._held[holding.client]:
            del self._held[holding.client]


def chips(claims: Claims) -> tuple[str, ...]:
    """Return the names of the chips that evidence is from, as leases and revocations have them, sorted."""
    found: set[str] = set()
    for kind in claims.kinds:
        if isinstance(kind, TpmClaims):
            found.add(f"tpm-ak:{kind.ak_spki}" if kind.ek is None else f"tpm-ek:{kind.ek}")
        elif isinstance(kind, SnpClaims) and kind.chip_id is not None:
            found.add(f"snp-chip:{kind.chip_id}")
        elif isinstance(kind, TdxClaims | SgxClaims):
            found |= {f"intel-ppid:{kind.platform.ppid}"}
        elif isinstance(kind, NvGpuClaims):
            found |= {f"nvidia:{device.device}" for device in kind.devices}
    return tuple(sorted(found))


def facts(holdings: Iterable[Holding]) -> list[JsonValue]:
    """Leases as operators see them."""
    return [
        {
            "id": one.terms.jti,
            "client": one.client_name,
            "model": one.terms.model.name,
            "version": one.terms.model.version,
            "resource": one.resource,
            "chips": list(one.terms.chips),
            "key": one.terms.cnf.jkt,
            "issued": datetime.fromtimestamp(one.terms.iat, UTC).isoformat(),
            "ends": one.ends.isoformat(),
        }
        for one in holdings
    ]
