"""Our own event log: what Hermetic has extended into one static PCR since boot (docs/spec/event-log.md).

Here: the log as JSON and as values, what an event extends, the replay. Not here: which PCR is acceptable
(verifiers/tpm.py), the extending itself (attesters/tpm.py), the audit log of a service (log/), another thing.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

from hermetic.attestation.abi.tpm import Alg, extended
from hermetic.attestation.evidence import JsonValue, canonical
from hermetic.errors import InvalidRequestError

FORMAT: Final = "hermetic-event-log/1"
MAX_EVENTS: Final = 4096  # in one boot; a machine that rolls models faster than that needs a reboot
ZEROS: Final = bytes(32)
"""The value of a static PCR after a reset, SHA-256 bank."""

_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was measured: the SHA-256 digest of a model's manifest."""

    digest: bytes
    type: Literal["manifest"] = "manifest"

    def to_json(self) -> dict[str, JsonValue]:
        """As it stands in the log."""
        return {"digest": self.digest.hex(), "type": self.type}

    def measured(self) -> bytes:
        """What is extended: SHA-256 over the canonical JSON, so that no other software's digest passes for it."""
        return hashlib.sha256(canonical(self.to_json())).digest()


@dataclass(frozen=True, slots=True)
class EventLog:
    """The events of this boot, in the order in which they were extended into `pcr` (SHA-256 bank)."""

    pcr: int
    events: tuple[Event, ...] = field(default=())

    @classmethod
    def parse(cls, value: JsonValue) -> Self:
        """Read the log's JSON; raises `InvalidRequestError` for a member that is missing, unknown or malformed."""
        if not isinstance(value, Mapping) or set(value) != {"format", "pcr", "events"}:
            raise InvalidRequestError("event log: expected the members format, pcr and events, got others")
        pcr, events = value["pcr"], value["events"]
        if value["format"] != FORMAT:
            raise InvalidRequestError(f"event log: expected format {FORMAT!r}, got {value['format']!r}")
        if type(pcr) is not int or not isinstance(events, list) or len(events) > MAX_EVENTS:
            raise InvalidRequestError(f"event log: expected an integer PCR and at most {MAX_EVENTS} events, got others")
        return cls(pcr, tuple(map(_event, events)))

    def to_json(self) -> dict[str, JsonValue]:
        """As it travels beside a quote."""
        return {"format": FORMAT, "pcr": self.pcr, "events": [event.to_json() for event in self.events]}

    def replay(self, base: bytes = ZEROS) -> bytes:
        """The value of the PCR after these events; `base` is its value before the first (boot loaders use some)."""
        value = base
        for event in self.events:
            value = extended(Alg.SHA256, value, event.measured())
        return value

    def with_event(self, event: Event) -> Self:
        """This log with `event` at its end."""
        return replace(self, events=(*self.events, event))


def _event(value: JsonValue) -> Event:
    if not isinstance(value, Mapping) or set(value) != {"digest", "type"} or value["type"] != "manifest":
        raise InvalidRequestError("event log: expected an event of type 'manifest' with a digest, got another")
    digest = value["digest"]
    if not isinstance(digest, str) or not _HEX_DIGEST.fullmatch(digest):
        raise InvalidRequestError("event log: expected a digest of 64 lower-case hex digits, got another")
    return Event(bytes.fromhex(digest))
