"""What one client, and all together, may take of this process: bytes in flight and cancelled calls. Pure accounting.

Bytes count from the moment a message is announced (intake.py) until its answer has left us. How many requests may wait
for a model is the batcher's own bound. Connections, streams and frames are bounded by the transport (http2/).
"""

from typing import Any, Final

from hermetic.errors import OverloadedError
from hermetic.server.config import Limits
from hermetic.server.identity import Identity

REFUSALS_TOLD: Final = 100  # calls beyond the limit of cancelled calls that are refused in words
DEAF_S: Final = 1.0  # seconds for which the calls that follow are dropped
GOES_ON: Final = 20  # dropped calls after which that time begins anew


class Usage:
    """What one identity holds at the moment. `waiting`: its calls without room for a message, and for what."""

    __slots__ = ("bytes_in_flight", "cancels", "requests", "waiting", "window_started")

    def __init__(self) -> None:
        self.bytes_in_flight = 0
        self.requests = 0
        self.cancels = 0
        self.window_started = 0.0
        self.waiting: dict[Any, Any] = {}  # in order

    def count_cancel(self, now: float, window: float, calls: int = 1) -> None:
        """Count cancelled calls at `now`; a window is so many seconds."""
        if now - self.window_started >= window:
            self.window_started, self.cancels = now, 0
        self.cancels += calls

    def recent_cancels(self, now: float, window: float) -> int:
        """Return how many calls were cancelled in the window that `now` lies in."""
        return self.cancels if now - self.window_started < window else 0


class Accounts:
    """One `Usage` per identity, and the sum of all. Identities come from the access table, so there are few.

    Where several front ends share limits, theirs are `counters.SharedAccounts`.
    """

    def __init__(self, limits: Limits) -> None:
        self.limit(limits)
        self._usages: dict[Identity, Usage] = {}
        self.bytes_in_flight = 0

    def limit(self, limits: Limits) -> None:
        """Hold to these limits from now on."""
        self._per_client = limits.bytes_in_flight_per_client
        self._all = limits.bytes_in_flight

    def usage(self, identity: Identity) -> Usage:
        """Return the account of `identity`."""
        usage = self._usages.get(identity)
        if usage is None:
            usage = self._usages[identity] = self._new_usage(identity)
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
        self._check(usage.bytes_in_flight + size, self.bytes_in_flight + size)
        self.add(usage, size)

    def has_room(self, usage: Usage, size: int) -> bool:
        """Whether waiting would help a message of `size` bytes no more: it would be taken, or it never will be."""
        return self._fits(size, usage.bytes_in_flight, self.bytes_in_flight)

    def add(self, usage: Usage, size: int) -> None:
        """Count `size` more bytes in flight whatever the limit: an answer that is ready is worth sending."""
        usage.bytes_in_flight += size
        self.bytes_in_flight += size

    def give_back(self, usage: Usage, size: int) -> None:
        """Count `size` bytes less in flight."""
        usage.bytes_in_flight -= size
        self.bytes_in_flight -= size

    def _new_usage(self, identity: Identity) -> Usage:  # noqa: ARG002 - where it lies may depend on who it is
        return Usage()

    def _check(self, client: int, everyone: int) -> None:
        """Raise `OverloadedError` where a client, or all together, would hold more bytes than they may."""
        if client > self._per_client:
            raise OverloadedError(f"bytes in flight of this client: wanted at most {self._per_client}, got {client}")
        if everyone > self._all:
            raise OverloadedError(f"bytes in flight of all clients: wanted at most {self._all}, got {everyone}")

    def _fits(self, size: int, client: int, everyone: int) -> bool:
        return (client + size <= self._per_client or size > self._per_client) and (
            everyone + size <= self._all or size > self._all
        )


class Cancels:
    """Cancelled calls of one identity in one window: opening and resetting streams is free for an attacker.

    These are calls that the application has heard of (CVE-2023-44487); others cost from their connection's allowance
    (http2/connection.py). The calls that follow are refused until the window ends.
    """

    def __init__(self, limits: Limits) -> None:
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        """Hold to these limits from now on."""
        self._most = limits.cancels_per_client
        self._window = limits.cancels_window_s

    def count(self, usage: Usage, now: float, calls: int = 1) -> None:
        """Count cancelled calls, or what costs us as much as so many, at `now` (monotonic seconds)."""
        usage.count_cancel(now, self._window, calls)

    def check(self, usage: Usage, now: float) -> None:
        """Raise `OverloadedError` while the identity has cancelled too many calls."""
        if (recent := usage.recent_cancels(now, self._window)) > self._most:
            raise OverloadedError(f"cancelled calls: wanted at most {self._most} in {self._window} s, got {recent}")


class Deafness:
    """Whether we still answer a caller that cancels too many calls. Times in seconds of one clock.

    The first calls beyond the limit are refused in words, and recorded one by one. Whoever goes on is ignored, since
    words cost more: for `DEAF_S` at a time its calls are dropped and counted, and its connections are cut.
    """

    __slots__ = ("_dropped", "_lately", "_told", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self._told = 0
        self._dropped = 0
        self._lately = 0

    def refused(self, now: float) -> None:
        """Take note that a call was refused for the calls cancelled before it."""
        self._told += 1
        if self._told >= REFUSALS_TOLD:
            self._told, self.until = 0, now + DEAF_S

    def drop(self, now: float) -> None:
        """Count a call that is dropped; whoever goes on is not listened to any sooner."""
        self._dropped += 1
        self._lately += 1
        if self._lately >= GOES_ON:
            self._lately, self.until = 0, now + DEAF_S

    def take_dropped(self) -> int:
        """Return how many calls were dropped since this was last asked."""
        dropped, self._dropped = self._dropped, 0
        return dropped
