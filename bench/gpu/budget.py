"""How much time is left? All of it together is held to some minutes: what does not fit is left out, and named."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Budget", "ended_after"]

GRACE_S: Final = 20.0
"""Beyond its time, for a part that stops by itself between two turns."""


class Budget:
    """So many seconds from now on. `now`: the clock."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds

    @property
    def left_s(self) -> float:
        """What is left, in seconds; below 0 where more was taken."""
        return self._end - self._now()

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.left_s <= 0

    def share(self, parts: int, reserved_s: float = 0.0) -> "Budget":
        """Return an equal share for the next of `parts` parts, when `reserved_s` stay for what comes after them."""
        return Budget(max(0.0, self.left_s - reserved_s) / max(1, parts), self._now)


@contextmanager
def ended_after(pid: int, budget: Budget) -> Iterator[None]:
    """Kill a child of ours that goes on long after its time: it hangs. Whoever talks to it sees it end."""

    def end() -> None:
        os.kill(pid, signal.SIGKILL)  # it is not reaped before the `with` is left: nobody else has its number

    timer = threading.Timer(max(0.0, budget.left_s) + GRACE_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
