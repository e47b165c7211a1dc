"""Who is at fault when links between front ends and workers break while both live. Pure: moments are arguments.

Nobody can tell a worker that lies from a front end that says so: both may be hostile. So each has a bound. A link is
made anew, later each time; a worker whose links break too often is replaced; a front end on whose word too many workers
were replaced is what they have in common, and is replaced itself. Workers of one model have the model in common too: on
its account a front end is replaced once, and then the model is what ails.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["LinkLedger", "Verdict"]

RENEWAL_DELAYS_S: Final = (0.0, 1.0, 5.0)
"""Seconds before the first, second, ... renewal of a worker's links; one more failure, and the worker counts as bad."""

FORGET_S: Final = 600  # seconds after which a failure does not count any more
REPLACED_LIMIT: Final = 2  # workers replaced on the word of one front end; one more, and it counts as bad itself


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: make the link anew after `delay_s`, or replace who counts as bad."""

    act: Literal["renew", "replace worker", "replace front end"]
    delay_s: float = 0.0


@dataclass(slots=True)
class LinkLedger:
    """Failures of links by worker, and replaced workers by front end; both by process id."""

    _failures: dict[int, list[float]] = field(default_factory=dict)
    _replaced: dict[int, list[float]] = field(default_factory=dict)
    _blamed: dict[Hashable, list[float]] = field(default_factory=dict)  # front ends replaced on account of a model

    def failed(self, worker: int, front_end: int, model: Hashable, now: float) -> Verdict:
        """Take note that a link to a worker of `model` failed, and return what follows."""
        failures = _recent(self._failures.setdefault(worker, []), now)
        failures.append(now)
        if len(failures) <= len(RENEWAL_DELAYS_S):
            return Verdict("renew", RENEWAL_DELAYS_S[len(failures) - 1])
        replaced = _recent(self._replaced.setdefault(front_end, []), now)
        replaced.append(now)
        if len(replaced) <= REPLACED_LIMIT:
            return Verdict("replace worker")
        blamed = _recent(self._blamed.setdefault(model, []), now)
        if blamed:
            return Verdict("replace worker")
        blamed.append(now)
        return Verdict("replace front end")

    def forget(self, pid: int) -> None:
        """A worker or front end has ended."""
        self._failures.pop(pid, None)
        self._replaced.pop(pid, None)


def _recent(moments: list[float], now: float) -> list[float]:
    """Take out of `moments` what is too old to count; return it."""
    moments[:] = [moment for moment in moments if now - moment < FORGET_S]
    return moments
