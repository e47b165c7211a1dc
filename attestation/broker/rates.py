"""How many requests one client may make: a bucket per client, refilled steadily, in a table of bounded size."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from hermetic.attestation.broker.refusals import Refusal, Variant

MAX_CLIENTS: Final = 65536
"""Most buckets kept; the one unused for longest is forgotten first, which can only favour a client."""

_MINUTE_S: Final = 60.0


class Rates:
    """Buckets of `per_minute` requests. Thread-safe."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        """`clock` counts seconds and never goes back."""
        self._per_minute = per_minute
        self._clock = clock
        self._mutex = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str) -> None:
        """Take one request out of the client's bucket; raises `Refusal` when it is empty."""
        with self._mutex:
            now = self._clock()
            left, seen = self._buckets.pop(client, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - seen) * self._per_minute / _MINUTE_S)
            self._buckets[client] = (max(left - 1, 0) if left >= 1 else left, now)
            while len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        if left < 1:
            raise Refusal(Variant.TOO_MANY_REQUESTS, f"requests: expected at most {self._per_minute} in a minute")
