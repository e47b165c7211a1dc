"""Whether it pays to wait for a worker's answer, rather than for whatever comes first. Pure.

With few callers there is nothing to be done between a batch and its answer, and waiting for the worker's socket itself
saves two changes of threads. With many, the next requests come in meanwhile.
"""

from typing import Final

FEW_REQUESTS: Final = 2  # requests with workers: above, others are likely to come meanwhile
SOON_S: Final = 0.002  # seconds: an answer that takes longer is not waited for


class Awaited:
    """The requests that are with workers, of all models, and how long the last batch took."""

    def __init__(self) -> None:
        self._requests = 0
        self._last_s = SOON_S
        self._sent = 0.0

    def sent(self, requests: int, now: float) -> None:
        """A batch of so many requests is with a worker, since `now` (monotonic seconds)."""
        self._requests += requests
        self._sent = now

    def answered(self, took_s: float, requests: int) -> None:
        """It is back, after so many seconds."""
        self._requests -= requests
        self._last_s = took_s

    def lost(self, requests: int) -> None:
        """It will not be back."""
        self._requests -= requests

    def patience_s(self, now: float) -> float:
        """Return how long to wait for an answer and nothing else; 0: not at all.

        No longer than `SOON_S` after the last batch was sent: a model that takes long, or hangs, delays nobody else's.
        """
        if 0 < self._requests <= FEW_REQUESTS and self._last_s < SOON_S:
            return max(0.0, min(SOON_S, self._sent + SOON_S - now))
        return 0.0
