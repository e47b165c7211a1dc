"""What is to be done later: a heap of moments, kept by the owner's thread. Pure: time is an argument."""

import heapq
from collections.abc import Callable
from itertools import count


class Timers:
    """Actions by moment, in seconds of one monotonic clock; actions due at the same moment run in order of entry."""

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._entries = count()

    def add(self, moment: float, action: Callable[[], None]) -> None:
        """Have `take_due` return `action` from `moment` on."""
        heapq.heappush(self._heap, (moment, next(self._entries), action))

    def next_moment(self) -> float | None:
        """Return when the next action is due, or None."""
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> list[Callable[[], None]]:
        """Remove and return the actions whose moment has come."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due
