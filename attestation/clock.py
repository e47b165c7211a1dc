"""What time it is, for whoever must not be talked into another one: wall clocks are set, CLOCK_BOOTTIME is not.

    SteadyClock()       the wall clock as it was read once, and CLOCK_BOOTTIME since, suspend included
    SteadyClock.latest  the same, or the wall clock where that is ahead
    SetBack             by how much the wall clock is behind the first: for who reads that anyway, and often

The first is for what we issue and time ourselves: a clock that is moved changes no deadline, either way. The second
is for what others have dated: their certificates, tokens and collateral. Moved back, nothing that had ended is valid
again; moved forward, things end early, until it is right again. Neither notices a clock that was wrong when the process
began.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["Clock", "SetBack", "SteadyClock", "boottime"]

Clock = Callable[[], datetime]

_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # other systems than Linux have no such clock


def boottime() -> float:
    """Return the seconds since the machine's start, suspend included: what nobody sets."""
    return time.clock_gettime(_BOOTTIME)


def _wall() -> datetime:
    return datetime.now(UTC)


class SteadyClock:
    """Gives the time in UTC."""

    def __init__(self, wall: Clock = _wall, boottime: Callable[[], float] = boottime) -> None:
        """Read both clocks; `boottime` gives seconds."""
        self._wall = wall
        self._boottime = boottime
        self._begun = wall() - timedelta(seconds=boottime())

    def __call__(self) -> datetime:
        """Return the time by CLOCK_BOOTTIME."""
        return self._begun + timedelta(seconds=self._boottime())

    def latest(self) -> datetime:
        """Return that, or the wall clock's where it is later."""
        return max(self(), self._wall())


class SetBack:
    """The wall clock and `seconds` together are `SteadyClock.latest`, in seconds."""

    def __init__(self, wall: Callable[[], float] = time.time, boottime: Callable[[], float] = boottime) -> None:
        """Read both clocks; both give seconds."""
        self._wall = wall
        self._boottime = boottime
        self._begun = wall() - boottime()

    def seconds(self) -> float:
        """Return by how much the wall clock was set back since then; 0 where it was not."""
        return max(0.0, self._begun + self._boottime() - self._wall())
