"""Our log entries: JCS JSON (RFC 8785) objects of three members, `time`, `kind` and `fields`, of bounded size.

Which kinds there are and what their fields mean is the business of whoever writes them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import rfc8785

from hermetic.attestation import jcs
from hermetic.errors import LogError

MAX_RECORD_SIZE: Final = 65_535  # bytes; entry bundles carry lengths of 16 bits
MAX_KIND_SIZE: Final = 64  # characters

_KIND: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z")
_MEMBERS: Final = frozenset({"time", "kind", "fields"})


@dataclass(frozen=True, slots=True)
class Record:
    """One entry read back: `time` is RFC 3339 in UTC, `kind` a dotted lower-case name, `fields` a JSON object."""

    time: str
    kind: str
    fields: Mapping[str, Any]


def encode_record(record: Mapping[str, object], now: datetime | None = None) -> bytes:
    """The canonical bytes of `record`; a record without `time` gets `now`. Raises `LogError` by name of the member."""
    members = record if now is None else {"time": timestamp(now), **record}
    _check_members(members)
    try:
        data = jcs.dumps(dict(members))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise LogError(f"record of kind {members['kind']} is not canonical JSON: {error}") from error
    if len(data) > MAX_RECORD_SIZE:
        raise LogError(f"record of kind {members['kind']} is oversize: {len(data)} bytes, at most {MAX_RECORD_SIZE}")
    return data


def parse_record(entry: bytes) -> Record:
    """Read an entry; raises `LogError` unless it is the canonical form of a record."""
    try:
        members = json.loads(entry)
        canonical = jcs.dumps(members)
    except (ValueError, RecursionError) as error:
        raise LogError(f"a log entry is not JSON: {error}") from error
    if canonical != entry or not isinstance(members, dict):
        raise LogError("a log entry is not a canonical JSON object")
    _check_members(members)
    return Record(members["time"], members["kind"], members["fields"])


def timestamp(moment: datetime) -> str:
    """`moment` as RFC 3339 in UTC with microseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _check_members(members: Mapping[str, object]) -> None:
    if members.keys() != _MEMBERS:
        raise LogError(f"expected a record of {sorted(_MEMBERS)}, got {sorted(map(str, members))}")
    kind, time, fields = members["kind"], members["time"], members["fields"]
    if not isinstance(kind, str) or len(kind) > MAX_KIND_SIZE or not _KIND.fullmatch(kind):
        raise LogError(f"expected a record's kind as a dotted lower-case name, got {str(kind)[:80]!r}")
    if not isinstance(time, str) or not _TIME.fullmatch(time):
        raise LogError(f"expected a record's time as RFC 3339 in UTC, got {str(time)[:80]!r}")
    if not isinstance(fields, Mapping):
        raise LogError(f"expected a record's fields as a JSON object, got {type(fields).__name__}")
