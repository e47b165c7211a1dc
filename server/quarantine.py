"""Which model versions are out of service because their workers had to be ended too often. Pure: moments are arguments.

A version whose workers take too long again and again is given up: each restart would cost a load, a core for as long
as its limits allow, and its callers an error each. It stays out until an operator loads it, its file changes, or the
server starts anew; time alone does not bring it back.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Quarantine"]

FORGET_S: Final = (
    3600.0  # seconds, beside the time that the stops themselves take, after which one does not count any more
)


@dataclass(slots=True)
class Quarantine:
    """Stops of workers by what they ran; whoever has too many of them is in."""

    _stops: dict[Hashable, list[float]] = field(default_factory=dict)
    _inside: set[Hashable] = field(default_factory=set)

    def stopped(self, what: Hashable, now: float, *, allowed: int, takes_s: float) -> bool:
        """Take note that a worker of `what` was ended, which takes `takes_s` each time; whether it is in now."""
        stops = self._stops.setdefault(what, [])
        stops.append(now)
        stops[:] = [moment for moment in stops if now - moment < FORGET_S + (allowed + 1) * takes_s]
        if len(stops) > allowed:
            self._inside.add(what)
        return what in self._inside

    def holds(self, what: Hashable) -> bool:
        """Whether `what` is out of service."""
        return what in self._inside

    def lift(self, what: Hashable) -> None:
        """Forget every stop of `what`: somebody who may has decided."""
        self._inside.discard(what)
        self._stops.pop(what, None)
