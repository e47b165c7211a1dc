"""What a client may cost beyond its requests: frames that bring none, and connections. Pure: time is an argument.

One client's connections share one allowance: whoever opens a hundred of them may not send a hundred times as much. Each
frame that brings no request takes from it, each request and time give to it. Where it is used up, the connection that
wants more is closed.
"""

from collections.abc import Hashable
from typing import Final

MOST: Final = 2000  # frames at once
PER_S: Final = 2000  # frames
PER_REQUEST: Final = 4  # frames that come with one: settings, windows, pings
OF_A_CONNECTION: Final = 20  # frames: what greeting it takes


class Allowance:
    """What one client has left, in frames. Moments are of time.monotonic()."""

    __slots__ = ("_refilled", "connections", "left")

    def __init__(self, now: float) -> None:
        self.left = MOST
        self._refilled = now
        self.connections = 0

    def refill(self, now: float) -> None:
        """Let time give to it."""
        self.left = min(MOST, self.left + int((now - self._refilled) * PER_S))
        self._refilled = now


class Allowances:
    """The allowances of all clients of a loop."""

    def __init__(self, connections: int) -> None:
        """`connections`: of one client, at a time."""
        self._most = connections
        self._of: dict[Hashable, Allowance] = {}

    def enter(self, holder: Hashable, now: float) -> Allowance | None:
        """Return the allowance of a client that has one more connection; None where it may have no more."""
        allowance = self._of.get(holder)
        if allowance is None:
            allowance = self._of[holder] = Allowance(now)
        allowance.left = max(allowance.left - OF_A_CONNECTION, -MOST)  # a debt is paid back within a second
        if allowance.connections >= self._most or allowance.left < 0:
            return None
        allowance.connections += 1
        return allowance

    def refill(self, now: float) -> None:
        """Let time give to all; forget clients that have no connection and everything left."""
        for holder, allowance in list(self._of.items()):
            allowance.refill(now)
            if not allowance.connections and allowance.left == MOST:
                del self._of[holder]
