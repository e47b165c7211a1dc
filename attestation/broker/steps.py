"""`Steps`: a request that stops where its decision must become durable, and `Pace`, which takes it through.

A request is a generator. It yields an act of the journal, gets back what came of it once that is durable (or has the
failure raised in it), and returns its answer. So no thread waits for the disk but the one that commits, and what many
requests decide meanwhile is committed together.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from hermetic.attestation.broker.journal import Act, Journal
from hermetic.attestation.broker.workers import Workers

T = TypeVar("T")

Steps = Generator[Act[Any], tuple[int, Any], T]
"""A request: yields acts, is sent the index and the value of each, returns a `T`."""

QUICK_BYTES: Final = 64 * 1024
"""A request of more bytes goes to a thread, wherever the others are done: to read it alone takes long."""


@dataclass(frozen=True, slots=True)
class _Ended(Generic[T]):
    """What a request has come to."""

    answer: T


class Pace:
    """Takes requests from step to step, for one event loop."""

    def __init__(self, journal: Journal, work: Workers, *, quick: bool) -> None:
        """`quick`: a step waits for nothing (no other machine, no database) and needs no thread of `work`."""
        self.quick: Final = quick
        self._journal = journal
        self._work = work
        self._commits = Workers(1)

    def close(self) -> None:
        """Commit what was handed in, and end; the loop has ended."""
        self._commits.close()

    async def follow(self, steps: Steps[T], length: int = 0) -> T:
        """What `steps` return or raise; `length` is how long the request is, in bytes."""
        is_quick = self.quick and length <= QUICK_BYTES
        go_on: Callable[[], Act[Any] | _Ended[T]] = partial(_begin, steps)
        while True:
            step = go_on() if is_quick else await self._work.run(go_on)
            if isinstance(step, _Ended):
                return step.answer
            # Queued before anybody waits: whoever commits next takes it along.
            settle = partial(self._journal.settle, self._journal.submit(step))
            try:
                go_on = partial(_send, steps, await self._commits.run(settle))
            except Exception as error:  # noqa: BLE001 - it is the request's to answer
                go_on = partial(_throw, steps, error)


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
