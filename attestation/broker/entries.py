"""The broker's records before they are written: their kinds, and what their fields say of clients, models and reasons.

docs/spec/key-broker.md, section 7, has them all. No record holds a key, a token, a nonce or a cookie.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.key_store import ModelFacts
from hermetic.attestation.broker.lease_state import Holding
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import FailedCheck, HermeticError

STARTED: Final = "broker.started"
ATTEST: Final = "broker.attest"
RELEASE: Final = "broker.release"
RELEASE_FAILED: Final = "broker.release-failed"
SERVING_CERTIFICATE: Final = "broker.serving-certificate"
AK: Final = "broker.ak"
ADMIN: Final = "broker.admin"
UPLOAD: Final = "broker.upload"
FLOOR: Final = "broker.floor"
COLLATERAL: Final = "broker.collateral"
LEASE_REVOKED: Final = "broker.lease-revoked"
LEASE_RESTORED: Final = "broker.lease-restored"
GOVERNANCE: Final = "broker.governance"
CHANGE: Final = "broker.change"
CHANGE_REFUSED: Final = "broker.change-refused"
RESTORED: Final = "broker.restored"

MAX_REASONS: Final = 32
"""Most reasons that a record lists."""

MAX_REASON_LENGTH: Final = 500
"""Longest reason, in characters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that is to be written; its `time` is set when it is."""

    kind: str
    fields: Mapping[str, JsonValue]
    time: str = ""


def lease_fields(holding: Holding | None) -> JsonValue:
    """A lease as the record of its release holds it."""
    return None if holding is None else holding.terms.model_dump(mode="json")


def failed_fields(decision: int, resource: str, holding: Holding | None, error: Exception) -> dict[str, JsonValue]:
    """A release that was decided, and whose key could not be handed out: its lease (by its id) is ended."""
    why = reason(error) if isinstance(error, HermeticError) else [type(error).__name__]
    lease = None if holding is None else holding.terms.jti
    return {"decision": decision, "resource": resource, "lease": lease, "reasons": why}


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
