"""`Steps`: a request that stops where its decision must become durable, and `Pace`, which takes it through.

A request is a generator. It yields an act of the journal, gets back what came of it once that is durable (or has the
failure raised in it), and returns its answer. So no thread waits for the disk but the one that commits, and what many
requests decide meanwhile is committed together.
"""

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, Generic, TypeVar

from hermetic.attestation.broker.committing import Committer
from hermetic.attestation.broker.journal import Act, Journal, Waiting
from hermetic.attestation.broker.workers import Onward, Workers

T = TypeVar("T")

Steps = Generator[Act[Any], tuple[int, Any], T]
"""A request: yields acts, is sent the index and the value of each, returns a `T`."""


class _Ended(Generic[T]):
    """What a request has come to."""

    def __init__(self, answer: T) -> None:
        """Hold it."""
        self.answer = answer


_GoOn = Callable[[], Act[Any] | _Ended[T]]
"""The next step of a request."""
_Next = _GoOn[T] | _Ended[T]


class Pace:
    """Takes requests from step to step, for one event loop."""

    def __init__(self, journal: Journal, work: Workers, *, quick: bool) -> None:
        """`quick`: no step waits for anything (another machine, a database), and only long ones need a thread."""
        self.quick: Final = quick
        self._journal = journal
        self._work = work
        self._commits = Workers(1)
        self._committer = Committer(journal, self._commits)
        self._commits.start_one()

    def close(self) -> None:
        """Commit what was handed in, and end; the loop has ended."""
        self._commits.close()

    async def follow(self, steps: Steps[T], *, long: bool = False) -> T:
        """What `steps` return or raise. `long` ones compute too long for the loop to stand still meanwhile."""
        return await (self._here(steps, long=long) if self.quick else self._in_threads(steps))

    async def _here(self, steps: Steps[T], *, long: bool) -> T:
        """Step by step in the loop, but for a first step that is long."""
        go_on: _GoOn[T] = partial(_begin, steps)
        step: Act[Any] | _Ended[T] = await self._work.run(go_on) if long else go_on()
        while not isinstance(step, _Ended):
            waiting = await self._committer.settled(step)
            step = self._after(steps, waiting)()
        return step.answer

    async def _in_threads(self, steps: Steps[T]) -> T:
        go_on: _GoOn[T] = partial(_begin, steps)
        while True:
            done: _Next[T] = await self._work.run(partial(self._queued, steps, go_on))
            if isinstance(done, _Ended):
                return done.answer
            go_on = done

    def _queued(self, steps: Steps[T], go_on: _GoOn[T]) -> _Ended[T] | Onward[_Next[T]]:
        """Take one step. What it decides is queued before anybody waits: whoever commits next takes it along."""
        step = go_on()
        if isinstance(step, _Ended):
            return step
        return Onward(self._commits, partial(self._settled, steps, self._journal.submit(step)))

    def _settled(self, steps: Steps[T], waiting: Waiting[Any]) -> _Next[T]:
        """Wait until a decision is durable; returns how the request goes on with what came of it."""
        with contextlib.suppress(Exception):  # it is the request's to answer
            self._journal.settle(waiting)
        return self._after(steps, waiting)

    def _after(self, steps: Steps[T], waiting: Waiting[Any]) -> _GoOn[T]:
        """How a request goes on with what came of its act."""
        try:
            return partial(_send, steps, self._journal.outcome(waiting))
        except Exception as error:  # noqa: BLE001 - it is the request's to answer
            return partial(_throw, steps, error)


def _begin(steps: Steps[T]) -> Act[Any] | _Ended[T]:
    try:
        return next(steps)
    except StopIteration as end:
        return _Ended(end.value)


def _send(steps: Steps[T], drawn: tuple[int, Any]) -> Act[Any] | _Ended[T]:
    try:
        return steps.send(drawn)
    except StopIteration as end:
        return _Ended(end.value)


def _throw(steps: Steps[T], error: Exception) -> Act[Any] | _Ended[T]:
    try:
        return steps.throw(error)
    except StopIteration as end:
        return _Ended(end.value)
