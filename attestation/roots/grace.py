"""How much longer than it says itself collateral is believed, by kind; nothing, unless an operator wrote it.

The kinds and the rule are those of docs/spec/collateral-bundle.md, "Windows". Why it travels with what is trusted and
not with the time: decision 0179.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from hermetic.attestation.checks import Checks


@dataclass(frozen=True, slots=True)
class Grace:
    """Grace by kind of collateral; a kind that is not named has none."""

    periods: Mapping[str, timedelta] = field(default_factory=dict)

    def judged_at(self, kind: str, end: datetime, time: datetime) -> datetime:
        """The moment as of which an item of `kind` that ends at `end` is judged: `time`, or its end while in grace."""
        return end if end < time <= end + self._of(kind) else time

    def check(self, checks: Checks, name: str, kind: str, period: tuple[datetime, datetime], time: datetime) -> None:
        """Check that `time` lies in `period` or in the grace behind it; that it was grace is a check of its own."""
        start, end = period
        judged = self.judged_at(kind, end, time)
        checks.demand(name, start <= judged <= end, time, f"{start} to {end}")
        self.say(checks, name, kind, end, time)

    def say(self, checks: Checks, name: str, kind: str, end: datetime, time: datetime) -> None:
        """Record `<name>.grace` where an item of `kind` is judged as of another moment than `time`."""
        if self.judged_at(kind, end, time) != time:
            until = end + self._of(kind)
            checks.demand(f"{name}.grace", True, f"{kind} in its time, or until {until}", f"it ended at {end}")  # noqa: FBT003

    def _of(self, kind: str) -> timedelta:
        return self.periods.get(kind, timedelta(0))


NO_GRACE: Final = Grace()
