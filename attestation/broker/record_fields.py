"""Fields of records that the broker reads back: each of the type that it must have, or an error that names it."""

from datetime import datetime

from hermetic.attestation.broker.state.ledger import LoggedRecord
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import LogError


def text(record: LoggedRecord, name: str) -> str:
    """Return the text in field `name`; raises `LogError`."""
    value = record.fields.get(name)
    if not isinstance(value, str):
        raise LogError(f"record {record.kind}: expected text in {name!r}, got {type(value).__name__}")
    return value


def json_object(record: LoggedRecord, name: str) -> dict[str, JsonValue]:
    """Return the object in field `name`; raises `LogError`."""
    value = record.fields.get(name)
    if not isinstance(value, dict):
        raise LogError(f"record {record.kind}: expected an object in {name!r}, got {type(value).__name__}")
    return value


def moment(record: LoggedRecord, name: str) -> datetime:
    """Return the moment, with its time zone, in field `name`; raises `LogError`."""
    try:
        found = datetime.fromisoformat(text(record, name))
    except ValueError as error:
        raise LogError(f"record {record.kind}: expected a moment in {name!r}, got {error}") from error
    if found.tzinfo is None:
        raise LogError(f"record {record.kind}: expected a moment with its time zone in {name!r}")
    return found


def number(record: LoggedRecord, name: str) -> int:
    """Return the whole number in field `name`; raises `LogError`."""
    value = record.fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise LogError(f"record {record.kind}: expected a whole number in {name!r}, got {type(value).__name__}")
    return value
