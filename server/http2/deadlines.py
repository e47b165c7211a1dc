"""Calls by the moment at which their clients stop waiting. Pure: time is an argument.

Most calls end long before. So a call is kept in a set for its slice of time, which costs nothing to leave, rather than
in a heap, which would hold it until then.
"""

import heapq
import math
from typing import Final, Protocol

SLICE_S: Final = 0.016  # seconds: so much late a deadline may be noticed
LEFT_OVER: Final = 64  # entries of the heap for each slice: those of slices that are gone stay until they are the first


class Due(Protocol):
    """A call: its deadline, in seconds of time.time(), and whether it has ended."""

    deadline: float

    def expire(self) -> None:
        """Take note that the deadline has passed."""


class Deadlines:
    """What is due when. Moments are time.time()'s, as deadlines are."""

    __slots__ = ("_order", "_slices")

    def __init__(self) -> None:
        self._slices: dict[int, set[Due]] = {}
        self._order: list[int] = []

    def add(self, call: Due) -> None:
        """Keep `call` until `remove`, or until `take` returns it."""
        number = math.ceil(call.deadline / SLICE_S)
        calls = self._slices.get(number)
        if calls is None:
            calls = self._slices[number] = set()
            heapq.heappush(self._order, number)
            if len(self._order) > LEFT_OVER * len(self._slices) + LEFT_OVER:
                self._order = sorted(self._slices)
        calls.add(call)

    def remove(self, call: Due) -> None:
        """Forget `call`, if it is here."""
        number = math.ceil(call.deadline / SLICE_S)
        calls = self._slices.get(number)
        if calls is not None:
            calls.discard(call)
            if not calls:
                del self._slices[number]

    def next_moment(self) -> float | None:
        """Return when the next slice is over, or None."""
        while self._order and self._order[0] not in self._slices:
            heapq.heappop(self._order)
        return self._order[0] * SLICE_S if self._order else None

    def take(self, now: float) -> list[Due]:
        """Remove and return the calls whose deadline has passed."""
        due: list[Due] = []
        while self._order and self._order[0] * SLICE_S <= now:
            due.extend(self._slices.pop(heapq.heappop(self._order), ()))
        return due
