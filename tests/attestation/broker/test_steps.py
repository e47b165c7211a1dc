"""Requests in steps: what many decide is committed together, failures come to who waits, and where a step is done."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.state.ledger import Draw, LoggedRecord
from hermetic.attestation.broker.steps import Pace, Steps
from hermetic.attestation.broker.workers import Workers
from hermetic.errors import LogError

WAIT_S = 60
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Disk:
    """A ledger in memory whose commits wait while it is held."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.entered, self.free = threading.Event(), threading.Event()
        self.free.set()
        self.full = False
        self.rewound = 0

    def commit(self, draw: Draw) -> None:
        entries = draw((), sum(self.commits))
        self.entered.set()
        self.free.wait(WAIT_S)
        if self.full:
            raise LogError("no space left on device")
        self.commits.append(len(entries))

    def begin(self, draw: Draw) -> Callable[[], None]:
        entries = draw((), sum(self.commits))
        return lambda: self.commit(lambda _, __: entries)

    def news(self) -> Sequence[LoggedRecord]:
        return ()

    def rewind(self) -> None:
        self.rewound += 1

    def checkpoint(self) -> bytes:
        return b""

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def paced(disk: Disk, *, quick: bool = True, journal: Journal | None = None) -> Iterator[Pace]:
    work = Workers(2)
    pace = Pace(journal or Journal(disk, lambda: NOW), work, quick=quick)
    yield pace
    pace.close()
    work.close()


def asked(name: str) -> Steps[tuple[int, str]]:
    """A request that records its name."""
    index, value = yield lambda _: (Entry("test.asked", {"name": name}), name)
    return index, value


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_what_many_decide_while_one_commits_is_committed_together() -> None:
    disk = Disk()
    disk.free.clear()

    async def main() -> None:
        first = asyncio.create_task(pace.follow(asked("first")))
        await asyncio.to_thread(disk.entered.wait, WAIT_S)
        others = [asyncio.create_task(pace.follow(asked(str(n)))) for n in range(20)]
        await asyncio.sleep(0)  # each has begun, and waits
        disk.free.set()
        assert await first == (0, "first")
        assert await asyncio.gather(*others) == [(1 + n, str(n)) for n in range(20)]

    with paced(disk) as pace:
        run(main)
    assert disk.commits == [1, 20]


def test_a_commit_that_fails_is_raised_where_the_request_waits() -> None:
    disk, said = Disk(), list[str]()
    disk.full = True

    def careful() -> Steps[None]:
        try:
            yield from asked("lost")
        except LogError as error:
            said.append(str(error))
            raise

    async def main() -> None:
        with pytest.raises(LogError, match="no space"):
            await pace.follow(careful())
        disk.full = False
        assert await pace.follow(asked("next")) == (0, "next")
        assert disk.rewound == 1  # nobody knew what it holds
        assert await pace.follow(asked("last")) == (1, "last")
        assert disk.rewound == 1

    with paced(disk) as pace:
        run(main)
    assert said == ["no space left on device"]


def test_an_act_that_raises_is_its_own_requests_failure() -> None:
    def refused() -> Steps[None]:
        def act(_: object) -> tuple[Entry, None]:
            raise KeyError("mine")

        yield act

    async def main() -> None:
        found = await asyncio.gather(pace.follow(asked("a")), pace.follow(refused()), return_exceptions=True)
        assert found[0] == (0, "a")
        assert isinstance(found[1], KeyError)

    with paced(Disk()) as pace:
        run(main)


@pytest.mark.parametrize(
    ("quick", "long", "in_loop"),
    [(True, False, [True, True]), (True, True, [False, True]), (False, False, [False, False])],
)
def test_a_step_is_done_in_the_loop_where_it_is_quick_and_short(
    *, quick: bool, long: bool, in_loop: list[bool]
) -> None:
    """What comes after a long request's decision is short."""
    threads: list[int] = []

    def watched() -> Steps[None]:
        threads.append(threading.get_ident())
        yield from asked("watched")
        threads.append(threading.get_ident())

    async def main() -> None:
        await pace.follow(watched(), long=long)
        assert [thread == threading.get_ident() for thread in threads] == in_loop

    with paced(Disk(), quick=quick) as pace:
        run(main)


def test_what_was_handed_in_is_recorded_though_nobody_waits() -> None:
    disk = Disk()
    disk.free.clear()

    async def main() -> None:
        waiting = asyncio.create_task(pace.follow(asked("gone")))
        await asyncio.to_thread(disk.entered.wait, WAIT_S)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        disk.free.set()

    with paced(disk) as pace:
        run(main)
    assert disk.commits == [1]


def test_what_another_thread_decides_meanwhile_waits_for_its_turn() -> None:
    """An operator's request decides in a thread of its own, while the loop's decision is on its way to the disk."""
    disk = Disk()
    journal = Journal(disk, lambda: NOW)
    disk.free.clear()

    async def main() -> None:
        first = asyncio.create_task(pace.follow(asked("loop")))
        await asyncio.to_thread(disk.entered.wait, WAIT_S)
        other = asyncio.create_task(asyncio.to_thread(journal.write, "test.admin", {}))
        more = [asyncio.create_task(pace.follow(asked(str(n)), long=n % 2 == 0)) for n in range(6)]
        await asyncio.sleep(0)
        disk.free.set()
        indexes = [await other, *(index for index, _ in await asyncio.gather(first, *more))]
        assert sorted(indexes) == list(range(8))

    with paced(disk, journal=journal) as pace:
        run(main)
    assert sum(disk.commits) == 8


def test_the_loop_does_not_stand_still_while_another_thread_commits() -> None:
    disk = Disk()
    journal = Journal(disk, lambda: NOW)
    disk.free.clear()

    async def main() -> None:
        other = asyncio.create_task(asyncio.to_thread(journal.write, "test.admin", {}))
        await asyncio.to_thread(disk.entered.wait, WAIT_S)
        mine = asyncio.create_task(pace.follow(asked("mine")))
        for _ in range(10):
            await asyncio.sleep(0)  # it would never come here
        assert not mine.done()
        disk.free.set()
        assert (await other, await mine) == (0, (1, "mine"))

    with paced(disk, journal=journal) as pace:
        run(main)


def test_nothing_is_answered_before_the_disk_has_it() -> None:
    disk = Disk()
    disk.free.clear()

    async def main() -> None:
        answer = asyncio.create_task(pace.follow(asked("early")))
        await asyncio.to_thread(disk.entered.wait, WAIT_S)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not answer.done()
        disk.free.set()
        await answer

    with paced(disk) as pace:
        run(main)


def test_a_fault_while_deciding_reaches_all_who_wait_and_nobody_after() -> None:
    """Not one act's: a bug of the ledger's, say. The turn is given back."""
    disk = Disk()
    journal = Journal(disk, lambda: NOW)
    whole = disk.begin

    def faulty(draw: Draw) -> Callable[[], None]:
        draw((), 0)
        raise RuntimeError("a bug")

    async def main() -> None:
        disk.begin = faulty  # type: ignore[method-assign]
        found = await asyncio.gather(pace.follow(asked("a")), return_exceptions=True)
        assert isinstance(found[0], LogError)
        disk.begin = whole  # type: ignore[method-assign]
        assert await pace.follow(asked("b")) == (0, "b")

    with paced(disk, journal=journal) as pace:
        run(main)
