"""What the broker writes down, and what it reads back from that at its start (docs/spec/key-broker.md, section 7).

Every record is durable before the broker acts on it. Floors, leases and spent admin tokens have no other home than
the log: a crash between record and act changes nothing that was decided. No record holds a key, a token, a nonce or a
cookie.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.key_store import ModelFacts
from hermetic.attestation.broker.lease_state import Holding, LeaseState, Target
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.lease import LeaseTerms
from hermetic.errors import FailedCheck, HermeticError, LeaseRefusedError, LogError

STARTED: Final = "broker.started"
ATTEST: Final = "broker.attest"
RELEASE: Final = "broker.release"
SERVING_CERTIFICATE: Final = "broker.serving-certificate"
AK: Final = "broker.ak"
ADMIN: Final = "broker.admin"
UPLOAD: Final = "broker.upload"
FLOOR: Final = "broker.floor"
COLLATERAL: Final = "broker.collateral"
LEASE_REVOKED: Final = "broker.lease-revoked"
LEASE_RESTORED: Final = "broker.lease-restored"

MAX_REASONS: Final = 32
"""Most reasons that a record lists."""

MAX_REASON_LENGTH: Final = 500
"""Longest reason, in characters."""


class DecisionLog(Protocol):
    """What is needed of `hermetic.attestation.log.Log`."""

    def append(self, record: Mapping[str, object]) -> int:
        """Make `record` durable, then return its index; raises `LogError`."""

    def checkpoint(self) -> bytes:
        """The newest durable checkpoint, a signed note."""


class LoggedRecord(Protocol):
    """What is needed of `hermetic.attestation.log.Record`."""

    @property
    def kind(self) -> str:
        """The record's kind."""

    @property
    def fields(self) -> Mapping[str, JsonValue]:
        """Its fields."""


@dataclass(slots=True)
class Standing:
    """What the log's records add up to: floors by name, admin tokens spent with the time they end, and leases."""

    floors: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    leases: LeaseState = field(default_factory=LeaseState)


def replay(records: Iterable[LoggedRecord], now: datetime) -> Standing:
    """Add up the records of earlier runs; raises `LogError` for one that does not say what it must."""
    standing = Standing()
    for index, record in enumerate(records):
        if record.kind == FLOOR:
            standing.floors[_text(record, "name")] = _number(record, "to")
        elif record.kind == ADMIN and (ends := _number(record, "expires")) > now.timestamp():
            standing.spent[spent_key(_text(record, "issuer"), _text(record, "jti"))] = ends
        else:
            _replay_lease(standing.leases, record, index)
    standing.leases.forget_ended(now)
    return standing


def _replay_lease(leases: LeaseState, record: LoggedRecord, index: int) -> None:
    if record.kind == RELEASE and record.fields.get("lease") is not None:
        leases.enter(_holding(record))
    elif record.kind in (LEASE_REVOKED, LEASE_RESTORED):
        target = Target.parse(_object(record, "target"))
        if record.kind == LEASE_REVOKED:
            leases.revoke(target, _text(record, "reason"), index)
        else:
            leases.restore(target)


def lease_fields(holding: Holding | None) -> JsonValue:
    """A lease as the record of its release holds it."""
    return None if holding is None else holding.terms.model_dump(mode="json")


def _holding(record: LoggedRecord) -> Holding:
    client = record.fields.get("client")
    key = (str(client["issuer"]), str(client["name"])) if isinstance(client, Mapping) else None
    try:
        terms = LeaseTerms.parse(json.dumps(_object(record, "lease")).encode())
    except LeaseRefusedError as error:
        raise LogError(f"record {record.kind}: {error}") from error
    return Holding(terms, _text(record, "resource"), key)


def spent_key(issuer: str, token_id: str) -> str:
    """One name for a token id of an issuer."""
    return hashlib.sha256(f"{len(issuer)}:{issuer}{token_id}".encode()).hexdigest()


class Journal:
    """Appends the broker's records. Thread-safe as far as the log is; `write` orders nothing by itself."""

    def __init__(self, log: DecisionLog) -> None:
        """`log` is open for writing."""
        self._log = log

    def write(self, kind: str, fields: Mapping[str, JsonValue]) -> int:
        """Append one record; its index, once it is durable. Raises `LogError`: then the broker must not act."""
        return self._log.append({"kind": kind, "fields": dict(fields)})

    def checkpoint(self) -> bytes:
        """A signed checkpoint that covers every record written so far."""
        return self._log.checkpoint()


def client_fields(identity: ClientIdentity | None) -> JsonValue:
    """A client as a record holds it."""
    return None if identity is None else dict(identity.to_json())


def model_fields(model: ModelFacts | None) -> JsonValue:
    """A model as a record holds it."""
    return None if model is None else dict(model.to_json())


def reasons(failures: Iterable[FailedCheck]) -> list[JsonValue]:
    """Failed checks as a record lists them, within bounds."""
    return [str(failure)[:MAX_REASON_LENGTH] for failure in list(failures)[:MAX_REASONS]]


def reason(error: HermeticError) -> list[JsonValue]:
    """An error as the reasons of a record."""
    failures = getattr(error, "failures", None)
    return reasons(failures) if failures else [str(error)[:MAX_REASON_LENGTH]]


def _text(record: LoggedRecord, name: str) -> str:
    value = record.fields.get(name)
    if not isinstance(value, str):
        raise LogError(f"record {record.kind}: expected text in {name!r}, got {type(value).__name__}")
    return value


def _object(record: LoggedRecord, name: str) -> dict[str, JsonValue]:
    value = record.fields.get(name)
    if not isinstance(value, dict):
        raise LogError(f"record {record.kind}: expected an object in {name!r}, got {type(value).__name__}")
    return value


def _number(record: LoggedRecord, name: str) -> int:
    value = record.fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise LogError(f"record {record.kind}: expected a whole number in {name!r}, got {type(value).__name__}")
    return value
