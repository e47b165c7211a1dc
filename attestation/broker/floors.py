"""Below which version of a name nothing is released any more.

A floor rises by an operator's recorded act, and falls only by another one. `newest_settled` is the other way to rise:
a policy's `rollback = "latest-only"`, computed from the keys and the time, so there is nothing to record.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.key_store import StoredKey
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.evidence import JsonValue


class Floors:
    """The floor of every name that has one, as the log has them. Thread-safe."""

    def __init__(self, log: Journal) -> None:
        """`log` adds them up."""
        self._log = log

    def all(self) -> dict[str, int]:
        """Every name's floor."""
        with self._log.standing() as (standing, _):
            return dict(sorted(standing.floors.items()))

    def raise_to(self, name: str, below: int, client: JsonValue, reason: str = "") -> int:
        """Raise the floor; raises `Refusal` if that would lower it."""

        def check(floor: int) -> None:
            if below < floor:
                raise Refusal(Variant.INVALID_REQUEST, f"floor of {name}: expected at least {floor}, got {below}")

        return self._set(name, below, check, {"client": client, "reason": reason})

    def lower_to(self, name: str, below: int, client: JsonValue, reason: str) -> int:
        """Lower the floor; raises `Refusal` if that would raise it."""

        def check(floor: int) -> None:
            if below >= floor:
                raise Refusal(Variant.INVALID_REQUEST, f"floor of {name}: expected below {floor}, got {below}")

        return self._set(name, below, check, {"client": client, "reason": reason})

    def _set(self, name: str, to: int, check: Callable[[int], None], who: Mapping[str, JsonValue]) -> int:
        def act(standing: Standing) -> tuple[Entry, int]:
            floor = standing.floor(name)
            check(floor)
            return Entry(entries.FLOOR, {"name": name, "from": floor, "to": to, **who}), to

        return self._log.decide(act)[1]


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
