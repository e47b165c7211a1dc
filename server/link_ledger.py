"""Who is at fault when links between front ends and workers break while both live. Pure: moments are arguments.

Nobody can tell a worker that lies from a front end that says so: both may be hostile. So each has a bound. A link is
made anew, later each time; a worker whose links break too often is replaced. A front end is replaced only where it is
what broken links have in common, and nothing else is: on its word too many workers were replaced, of several models. So
one model, however it lies, costs no front end, and with it no caller of another model; it costs itself its workers. On
account of the same models a front end is replaced once.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["LinkLedger", "Verdict"]

RENEWAL_DELAYS_S: Final = (0.0, 1.0, 5.0)
"""Seconds before the first, second, ... renewal of a worker's links; one more failure, and the worker counts as bad."""

FORGET_S: Final = 600  # seconds after which a failure does not count any more
REPLACED_LIMIT: Final = 2  # workers replaced on the word of one front end; one more, and it may count as bad itself
MODELS_LEAST: Final = 2  # models that these workers must be of


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: make the link anew after `delay_s`, or replace who counts as bad."""

    act: Literal["renew", "replace worker", "replace front end"]
    delay_s: float = 0.0


@dataclass(slots=True)
class LinkLedger:
    """Failures of links by worker, and replaced workers by front end, both by process id; with their moments."""

    _failures: dict[int, list[float]] = field(default_factory=dict)
    _replaced: dict[int, list[tuple[float, Hashable]]] = field(default_factory=dict)
    _blamed: dict[Hashable, float] = field(default_factory=dict)  # when a front end was replaced on account of a model

    def failed(self, worker: int, front_end: int, model: Hashable, now: float) -> Verdict:
        """Take note that a link to a worker of `model` failed, and return what follows."""
        failures = self._failures[worker] = [at for at in self._failures.get(worker, ()) if now - at < FORGET_S]
        failures.append(now)
        if len(failures) <= len(RENEWAL_DELAYS_S):
            return Verdict("renew", RENEWAL_DELAYS_S[len(failures) - 1])
        replaced = [(at, of) for at, of in self._replaced.get(front_end, ()) if now - at < FORGET_S]
        replaced = self._replaced[front_end] = [*replaced, (now, model)]
        models = {of for _, of in replaced} - self._blamed_since(now - FORGET_S)
        if len(replaced) <= REPLACED_LIMIT or len(models) < MODELS_LEAST:
            return Verdict("replace worker")
        self._blamed |= dict.fromkeys(models, now)
        return Verdict("replace front end")

    def _blamed_since(self, moment: float) -> set[Hashable]:
        self._blamed = {model: at for model, at in self._blamed.items() if at > moment}
        return set(self._blamed)

    def forget(self, pid: int) -> None:
        """A worker or front end has ended."""
        self._failures.pop(pid, None)
        self._replaced.pop(pid, None)
