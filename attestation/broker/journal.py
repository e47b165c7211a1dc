"""Decisions, one after the other, each durable before the broker acts on it (docs/spec/key-broker.md, section 7).

What they rest on is what the records before them add up to (standing.py), so a crash between record and act changes
nothing that was decided.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.broker.state.ledger import Ledger, LoggedRecord
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log.record import encode_record, timestamp
from hermetic.errors import HermeticError, LogError

MAX_BATCH: Final = 256
"""Most decisions that become durable together: as many as one frame of the log holds."""

T = TypeVar("T")
Act = Callable[[Standing], tuple[Entry, T]]
"""A decision: sees what every record before it adds up to, returns its own record, and what came of it. It is quick,
changes nothing else, and raises where there is to be no record."""


class Waiting(Generic[T]):
    """One caller's act in the queue, and what became of it."""

    def __init__(self, act: Act[T]) -> None:
        self.act = act
        self.drawn: tuple[int, T] | None = None
        self.error: Exception | None = None
        self.done = False


class Begun:
    """What was decided, and what makes it durable."""

    def __init__(self, batch: Sequence[Waiting[Any]], append: Callable[[], None]) -> None:
        """Hold them."""
        self.batch = batch
        self.append = append


class Journal:
    """The broker's decisions, one after the other, over all processes that share the ledger. Thread-safe.

    What many threads decide at once is made durable together: whoever has the turn commits what the others queued.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        """`ledger` is open for writing; what it holds is read and added up now. Raises `LogError`."""
        self._ledger = ledger
        self._clock = clock
        self._turn = threading.Lock()  # held while something becomes durable; whoever completes it lets go
        self._state = threading.Lock()  # held while the standing changes, never while a disk is waited for
        self._queue: deque[Waiting[Any]] = deque()
        self._standing = Standing()
        self._durable = 0  # records that are known to be durable, and stand
        self._next = 0  # where the record that is being drawn will stand
        self._told = -1  # cursor of the newest revocation that the watchers were told of
        self._stale = False  # what stands may hold records that are not durable
        self._watchers: set[Callable[[], None]] = set()
        self.refresh()
        with self._state:
            self._standing.forget_ended(clock())

    def decide(self, act: Act[T]) -> tuple[int, T]:
        """Run `act` on what stands, and make its record durable; returns the record's index and what came of it.

        Nothing is recorded between what the act saw and its record, by no process. Raises what the act raises, and
        `LogError` where the record is not durable: then the broker must not act.
        """
        return self.settle(self.submit(act))

    def submit(self, act: Act[T]) -> Waiting[T]:
        """Queue `act` for the next commit, whoever makes that; does not wait. `settle` must follow."""
        waiting = Waiting(act)
        self._queue.append(waiting)
        return waiting

    def settle(self, waiting: Waiting[T]) -> tuple[int, T]:
        """What `decide` returns or raises of an act that was submitted."""
        with self._turn:
            while not waiting.done:
                self._commit_queued()
        return self.outcome(waiting)

    def settle_queued(self) -> None:
        """Have everything that was submitted until now settled."""
        with self._turn:
            while self._queue:
                self._commit_queued()

    def begin(self) -> Begun | None:
        """Decide what is queued, at once; `complete` must follow, in any thread, and nothing is committed before it.

        None where that would wait: somebody else commits, or the ledger is to be read again, or shared.
        """
        if not self._turn.acquire(blocking=False):
            return None
        batch: list[Waiting[Any]] = []
        append: Callable[[], None] | None = None
        try:
            if not self._stale:
                append = self._ledger.begin(partial(self._draw_queued, batch))
        except HermeticError as error:
            _end(batch, error)
        except Exception as error:  # noqa: BLE001 - a bug: it rises where they wait, in its log
            interrupted = LogError("the commit was interrupted")
            interrupted.__cause__ = error
            _end(batch, interrupted)
        finally:
            if append is None:
                self._turn.release()
        return None if append is None else Begun(batch, append)

    def complete(self, begun: Begun) -> None:
        """Make durable what was begun; every caller in it learns what became of its act."""
        try:
            self._commit(begun.batch, begun.append)
        finally:
            self._turn.release()

    def outcome(self, waiting: Waiting[T]) -> tuple[int, T]:
        """What `decide` returns or raises of an act that is settled."""
        if waiting.error is not None:
            raise waiting.error
        if waiting.drawn is None:
            raise LogError("the commit was interrupted")
        return waiting.drawn

    def write(self, kind: str, fields: Mapping[str, JsonValue]) -> int:
        """Append one record that depends on nothing; its index, once it is durable. Raises `LogError`."""
        return self.decide(lambda _: (Entry(kind, fields), None))[0]

    def checkpoint(self) -> bytes:
        """A signed checkpoint that covers every record written so far."""
        return self._ledger.checkpoint()

    def refresh(self) -> None:
        """Take in what other processes have recorded; raises `LogError`."""
        with self._turn:
            self._begin_again_if_stale()
            self._take_in(self._ledger.news())
            self._stale = False
            self._tell()

    @contextmanager
    def standing(self) -> Iterator[tuple[Standing, int]]:
        """What stands as far as this process knows, and how many records of that are durable: to look at, briefly."""
        with self._state:
            yield self._standing, self._durable

    def watch(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, by whatever thread, after each revocation that is durable."""
        with self._state:
            self._watchers.add(tell)

    def forget(self, tell: Callable[[], None]) -> None:
        """Call it no more."""
        with self._state:
            self._watchers.discard(tell)

    def close(self) -> None:
        """Close the ledger."""
        with self._turn:
            self._ledger.close()

    def _commit_queued(self) -> None:
        """Decide and commit what is queued; every caller in it learns what became of its act."""
        batch = self._take_queued()  # before the ledger may fail: they learn of it

        def commit() -> None:
            self._begin_again_if_stale()
            self._ledger.commit(partial(self._draw_all, batch))

        self._commit(batch, commit)

    def _commit(self, batch: Sequence[Waiting[Any]], append: Callable[[], None]) -> None:
        try:
            append()
            with self._state:
                self._durable = self._next
            self._stale = False
        except HermeticError as error:
            _end(batch, error)
        except BaseException:  # a bug, or the end: it rises here, and nobody else takes his decision for durable
            _end(batch, LogError("the commit was interrupted"))
            raise
        finally:
            _end(batch, None)
        self._tell()

    def _draw_queued(self, batch: list[Waiting[Any]], news: Sequence[LoggedRecord], size: int) -> list[bytes]:
        """Decide what is queued, which is then the `batch`; returns the records."""
        batch += self._take_queued()
        return self._draw_all(batch, news, size)

    def _take_queued(self) -> list[Waiting[Any]]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]

    def _draw_all(self, batch: list[Waiting[Any]], news: Sequence[LoggedRecord], size: int) -> list[bytes]:
        self._take_in(news)
        with self._state:
            self._next = size
            return [entry for waiting in batch if (entry := self._draw(waiting)) is not None]

    def _begin_again_if_stale(self) -> None:
        """After a commit that failed nobody knows what is durable: add everything up anew."""
        if self._stale:
            self._ledger.rewind()
            with self._state:
                self._standing, self._durable = Standing(), 0

    def _take_in(self, news: Sequence[LoggedRecord]) -> None:
        self._stale = True
        with self._state:
            for record in news:
                self._standing.apply(record, self._durable)
                self._durable += 1

    def _tell(self) -> None:
        """Tell the watchers of a revocation that is durable, where there is a new one."""
        with self._state:
            events = self._standing.leases.events
            newest = events[-1].cursor if events else -1
            if newest <= self._told or newest >= self._durable:
                return
            self._told = newest
            watchers = tuple(self._watchers)
        for tell in watchers:
            tell()

    def _draw(self, waiting: Waiting[Any]) -> bytes | None:
        """The act's record, encoded, and added to what stands; None where it raised."""
        try:
            entry, value = waiting.act(self._standing)
            entry = replace(entry, time=timestamp(self._clock()))
            encoded = encode_record({"time": entry.time, "kind": entry.kind, "fields": dict(entry.fields)})
            self._standing.apply(entry, self._next)
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread whose act it was
            waiting.error = error
            return None
        waiting.drawn = (self._next, value)
        self._next += 1
        return encoded


def _end(batch: Iterable[Waiting[Any]], error: Exception | None) -> None:
    """Each is settled; with `error`, unless it has one of its own."""
    for waiting in batch:
        waiting.error = waiting.error or error
        waiting.done = True
