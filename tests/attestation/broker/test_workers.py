"""The threads behind a listener: no more than are allowed, answers and errors to whom they belong, an orderly end."""

import asyncio
import threading
from functools import partial

import pytest

from hermetic.attestation.broker.workers import Workers

MOST = 3
WAIT_S = 60


def test_answers_and_errors_come_to_who_asked() -> None:
    def fail() -> None:
        raise KeyError("mine")

    async def ask(workers: Workers) -> None:
        squares = await asyncio.gather(*(workers.run(partial(pow, n, 2)) for n in range(50)))
        assert squares == [n * n for n in range(50)]
        with pytest.raises(KeyError, match="mine"):
            await workers.run(fail)

    workers = Workers(MOST)
    asyncio.run(ask(workers))
    workers.close()


def test_no_more_threads_than_allowed() -> None:
    names: set[str] = set()
    full = threading.Barrier(MOST)

    def work() -> int:
        full.wait(WAIT_S)  # passes only where `MOST` work at once
        names.add(str(threading.get_ident()))
        return len(names)

    async def ask(workers: Workers) -> None:
        await asyncio.gather(*(workers.run(work) for _ in range(4 * MOST)))

    workers = Workers(MOST)
    asyncio.run(ask(workers))
    workers.close()
    assert len(names) == MOST


def test_one_after_the_other_is_one_thread() -> None:
    async def ask(workers: Workers) -> set[int]:
        return {await workers.run(threading.get_ident) for _ in range(10)}

    workers = Workers(MOST)
    assert len(asyncio.run(ask(workers))) == 1
    workers.close()


def test_work_that_has_begun_is_done_though_nobody_waits() -> None:
    begun, may_end, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(WAIT_S)
        done.set()

    async def ask(workers: Workers) -> None:
        waiting = asyncio.create_task(workers.run(work))
        await asyncio.to_thread(begun.wait, WAIT_S)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    workers = Workers(MOST)
    asyncio.run(ask(workers))
    may_end.set()
    workers.close()
    assert done.is_set()
