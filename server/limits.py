"""What one client, and all together, may take of this process: bytes in flight and cancelled calls. Pure accounting.

Bytes count from the moment a message is in our memory until its answer has left it. How many requests may wait for a
model is the batcher's own bound. Connections, streams and message sizes are bounded by gRPC (tls.py, loop.py).
"""

from typing import Final

from hermetic.errors import OverloadedError
from hermetic.server.config import Limits
from hermetic.server.identity import Identity

CANCELS_LIMIT: Final = 2000  # cancelled calls of one identity in one window
CANCELS_WINDOW_S: Final = 10.0  # seconds


class Usage:
    """What one identity holds at the moment."""

    __slots__ = ("bytes_in_flight", "cancels", "requests", "window_started")

    def __init__(self) -> None:
        self.bytes_in_flight = 0
        self.requests = 0
        self.cancels = 0
        self.window_started = 0.0


class Accounts:
    """One `Usage` per identity, and the sum of all. Identities come from the access table, so there are few."""

    def __init__(self, limits: Limits) -> None:
        self._per_client = limits.bytes_in_flight_per_client
        self._all = limits.bytes_in_flight
        self._usages: dict[Identity, Usage] = {}
        self.bytes_in_flight = 0

    def usage(self, identity: Identity) -> Usage:
        """Return the account of `identity`."""
        usage = self._usages.get(identity)
        if usage is None:
            usage = self._usages[identity] = Usage()
        return usage

    def take(self, usage: Usage, size: int) -> None:
        """Count `size` more bytes in flight, or raise `OverloadedError` and count nothing."""
        if usage.bytes_in_flight + size > self._per_client:
            raise OverloadedError(
                f"bytes in flight of this client: wanted at most {self._per_client}, got {usage.bytes_in_flight + size}"
            )
        if self.bytes_in_flight + size > self._all:
            raise OverloadedError(
                f"bytes in flight of all clients: wanted at most {self._all}, got {self.bytes_in_flight + size}"
            )
        self.add(usage, size)

    def has_room(self, usage: Usage, size: int) -> bool:
        """Whether waiting would help a message of `size` bytes no more: it would be taken, or it never will be."""
        return (usage.bytes_in_flight + size <= self._per_client or size > self._per_client) and (
            self.bytes_in_flight + size <= self._all or size > self._all
        )

    def add(self, usage: Usage, size: int) -> None:
        """Count `size` more bytes in flight whatever the limit: an answer that is ready is worth sending."""
        usage.bytes_in_flight += size
        self.bytes_in_flight += size

    def give_back(self, usage: Usage, size: int) -> None:
        """Count `size` bytes less in flight."""
        usage.bytes_in_flight -= size
        self.bytes_in_flight -= size


def count_cancel(usage: Usage, now: float) -> None:
    """Count one cancelled call at `now` (monotonic seconds)."""
    if now - usage.window_started >= CANCELS_WINDOW_S:
        usage.window_started, usage.cancels = now, 0
    usage.cancels += 1


def check_cancels(usage: Usage, now: float) -> None:
    """Raise `OverloadedError` while an identity has cancelled too many calls.

    Opening and resetting streams is free for an attacker and costs us 60 us each (CVE-2023-44487).
    """
    if usage.cancels > CANCELS_LIMIT and now - usage.window_started < CANCELS_WINDOW_S:
        raise OverloadedError(
            f"cancelled calls: wanted at most {CANCELS_LIMIT} in {CANCELS_WINDOW_S:.0f} s, got {usage.cancels}"
        )
