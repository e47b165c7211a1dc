"""What one client, and all together, may take of this process: bytes in flight and cancelled calls. Pure accounting.

Bytes count from the moment a message is asked for (intake.py: then as many as it could have) until its answer has left
us. How many requests may wait for a model is the batcher's own bound. Connections, streams and message sizes are
bounded by gRPC (tls.py).
"""

from collections import OrderedDict
from typing import Any

from hermetic.errors import OverloadedError
from hermetic.server.config import Limits
from hermetic.server.identity import Identity


class Usage:
    """What one identity holds at the moment. `waiting`: its calls without room for a message, and until when."""

    __slots__ = ("bytes_in_flight", "cancels", "requests", "waiting", "window_started")

    def __init__(self) -> None:
        self.bytes_in_flight = 0
        self.requests = 0
        self.cancels = 0
        self.window_started = 0.0
        self.waiting: OrderedDict[Any, float] = OrderedDict()


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

    def reserve(self, usage: Usage, size: int) -> bool:
        """Count `size` more bytes in flight and return True, or False and count nothing."""
        if usage.bytes_in_flight + size > self._per_client or self.bytes_in_flight + size > self._all:
            return False
        usage.bytes_in_flight += size
        self.bytes_in_flight += size
        return True

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


class Cancels:
    """Cancelled calls of one identity in one window: opening and resetting streams is free for an attacker.

    Each costs us some 60 us (CVE-2023-44487). gRPC gives no way to close a connection, so the calls that follow are
    refused until the window ends.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.cancels_per_client
        self._window = limits.cancels_window_s

    def count(self, usage: Usage, now: float) -> None:
        """Count one cancelled call at `now` (monotonic seconds)."""
        if now - usage.window_started >= self._window:
            usage.window_started, usage.cancels = now, 0
        usage.cancels += 1

    def check(self, usage: Usage, now: float) -> None:
        """Raise `OverloadedError` while the identity has cancelled too many calls."""
        if usage.cancels > self._most and now - usage.window_started < self._window:
            raise OverloadedError(
                f"cancelled calls: wanted at most {self._most} in {self._window} s, got {usage.cancels}"
            )
