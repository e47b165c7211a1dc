"""Below which version of a name nothing is released any more.

A floor rises by an operator's recorded act, and falls only by another one. `newest_settled` is the other way to rise:
a policy's `rollback = "latest-only"`, computed from the keys and the time, so there is nothing to record.
"""

import threading
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from hermetic.attestation.broker import journal
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.key_store import StoredKey
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.evidence import JsonValue


class Floors:
    """The floor of every name that has one. Thread-safe; each change is durable in the log before it is in force."""

    def __init__(self, replayed: Mapping[str, int], log: Journal) -> None:
        """`replayed` is what the log's records add up to."""
        self._floors = dict(replayed)
        self._log = log
        self._mutex = threading.Lock()

    def of(self, name: str) -> int:
        """The floor of `name`; 0 where there is none, which every version is above."""
        return self._floors.get(name, 0)

    def all(self) -> dict[str, int]:
        """Every name's floor."""
        return dict(sorted(self._floors.items()))

    def raise_to(self, name: str, below: int, client: JsonValue, reason: str = "") -> int:
        """Raise the floor; raises `Refusal` if that would lower it."""
        with self._mutex:
            if below < self.of(name):
                raise Refusal(
                    Variant.INVALID_REQUEST, f"floor of {name}: expected at least {self.of(name)}, got {below}"
                )
            return self._set(name, below, client, reason)

    def lower_to(self, name: str, below: int, client: JsonValue, reason: str) -> int:
        """Lower the floor; raises `Refusal` if that would raise it."""
        with self._mutex:
            if below >= self.of(name):
                raise Refusal(Variant.INVALID_REQUEST, f"floor of {name}: expected below {self.of(name)}, got {below}")
            return self._set(name, below, client, reason)

    def _set(self, name: str, to: int, client: JsonValue, reason: str) -> int:
        fields = {"client": client, "name": name, "from": self.of(name), "to": to, "reason": reason}
        self._log.write(journal.FLOOR, fields)
        self._floors[name] = to
        return to


def newest_settled(keys: Iterable[StoredKey], name: str, now: datetime, roll_over: timedelta) -> int:
    """The newest version of `name` whose key was uploaded at least `roll_over` ago; 0 where there is none."""
    return max(
        (
            key.model.version
            for key in keys
            if key.model is not None and key.model.name == name and key.created + roll_over <= now
        ),
        default=0,
    )
