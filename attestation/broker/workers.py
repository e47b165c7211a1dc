"""`Workers`: the threads that do a listener's blocking work, so many and no more.

Lighter than an executor behind an event loop: one queue, one future, one call back for each piece of work. A thread
starts when more is to be done than there are threads, and ends at `close`. Work that has begun is done, whoever has
stopped waiting for it.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Work(Generic[T]):
    """A call, who waits for it, and where."""

    def __init__(
        self,
        call: "Callable[[], T | Onward[T]]",
        answer: asyncio.Future[T],
        settled: Callable[[asyncio.Future[T], T | None, BaseException | None], None],
    ) -> None:
        """Hold them."""
        self.call = call
        self.answer = answer
        self.settled = settled

    def do(self) -> None:
        """Do it, and tell, or have it go on elsewhere."""
        value: T | None = None
        error: BaseException | None = None
        try:
            done = self.call()
            if isinstance(done, Onward):
                done.workers.take(_Work(done.call, self.answer, self.settled))
                return
            value = done
        except BaseException as raised:  # noqa: BLE001 - it is raised again where somebody waits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self.answer.get_loop().call_soon_threadsafe(self.settled, self.answer, value, error)


class Onward(Generic[T]):
    """What a call returns whose answer is what `call` returns in a thread of `workers`: nobody else need be woken."""

    def __init__(self, workers: "Workers", call: Callable[[], T]) -> None:
        """Say where, and what."""
        self.workers = workers
        self.call = call


class Workers:
    """At most `most` threads; `run` is for one event loop."""

    def __init__(self, most: int) -> None:
        """Start none yet."""
        self._most = most
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._asked = 0  # pieces of work that are queued or being done; only the loop's thread counts

    async def run(self, call: Callable[[], T | Onward[T]]) -> T:
        """What `call` returns or raises, in a thread."""
        return await self.begin(call)

    def begin(self, call: Callable[[], T | Onward[T]]) -> asyncio.Future[T]:
        """Begin it, without waiting."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked += 1
        if len(self._threads) < min(self._asked, self._most):
            self.start_one()
        self._queue.put(_Work(call, answer, self._settle))
        return answer

    def start_one(self) -> None:
        """Start a thread, for those who `take` work before anybody runs some."""
        thread = threading.Thread(target=self._work, name="broker work", daemon=True)
        thread.start()
        self._threads.append(thread)

    def take(self, work: _Work[Any]) -> None:
        """Take over what other workers have begun; from any thread."""
        self._queue.put(work)

    def close(self) -> None:
        """End the threads once they have done what they began; the loop has ended."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work.do()
            del work  # what it was called with may be secret, and the next piece of work may be long in coming

    def _settle(self, answer: asyncio.Future[T], value: T | None, error: BaseException | None) -> None:
        """In the loop's thread."""
        self._asked -= 1
        if answer.done():
            return  # whoever waited is gone
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]
