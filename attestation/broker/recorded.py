"""What a record of the log is about, read back: the first operators, a lease, what a change takes back."""

import json
from collections.abc import Mapping

from hermetic.attestation.broker.lease_state import Holding, Target
from hermetic.attestation.broker.record_fields import json_object, text
from hermetic.attestation.broker.state.ledger import LoggedRecord
from hermetic.attestation.governance import First, OfRevocation
from hermetic.attestation.lease import LeaseTerms
from hermetic.errors import InvalidRequestError, LeaseRefusedError, LogError

__all__ = ["first_set", "holding", "revoked_target"]


def revoked_target(subject: OfRevocation) -> Target:
    """What a change about a revocation is about, as leases have it."""
    return Target(subject.of, subject.name, subject.version)


def first_set(record: LoggedRecord) -> First:
    """The first operators; raises `LogError`."""
    try:
        return First.of_json(json_object(record, "first"))
    except InvalidRequestError as error:
        raise LogError(f"record {record.kind}: {error}") from error


def holding(record: LoggedRecord) -> Holding:
    """The lease of a release, and whose it is; raises `LogError`."""
    client = record.fields.get("client")
    key = (str(client["issuer"]), str(client["name"])) if isinstance(client, Mapping) else None
    try:
        terms = LeaseTerms.parse(json.dumps(json_object(record, "lease")).encode())
    except LeaseRefusedError as error:
        raise LogError(f"record {record.kind}: {error}") from error
    return Holding(terms, text(record, "resource"), key)
