"""How much is answered: requests of one client by each process, handshakes over all processes of a broker.

Requests: a bucket per client, refilled steadily, in a table of bounded size; no other process is asked.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.state.cells import Budget

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
            wait_s = (1 - left) * _MINUTE_S / self._per_minute
            text = f"requests: expected at most {self._per_minute} in a minute"
            raise Refusal(Variant.TOO_MANY_REQUESTS, text, wait_s)


@dataclass(frozen=True, slots=True)
class Handshakes:
    """How often a handshake may begin, over all processes of the broker: of one client a minute, in all a second.

    Of one client a whole minute's may come at once, in all a whole second's.
    """

    per_minute_per_client: int
    per_second: int

    def budgets(self, client: str) -> tuple[Budget, ...]:
        """What a new session spends."""
        mine, all_of_us = self.per_minute_per_client, self.per_second
        return (
            Budget(f"handshakes of {client}", f"handshakes: {mine} a minute", _MINUTE_S / mine, mine),
            Budget("handshakes", f"handshakes in all: {all_of_us} a second", 1 / all_of_us, all_of_us),
        )
