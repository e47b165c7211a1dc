"""`Committer`: what the requests of one event loop decide becomes durable: decided in the loop, synced in a thread.

Two threads that both compute take the interpreter from each other at every call that lets go of it. So the thread does
next to nothing but wait for the disk; what is decided meanwhile goes with the next sync (docs/adr/0242).
"""

import asyncio
from functools import partial
from typing import Any

from hermetic.attestation.broker.journal import Act, Journal, Waiting
from hermetic.attestation.broker.workers import Workers


class Committer:
    """For one event loop, and a journal that others may use too."""

    def __init__(self, journal: Journal, syncing: Workers) -> None:
        """`syncing` is one thread that does nothing else: else what was begun would wait, and everybody for that."""
        self._journal = journal
        self._syncing = syncing
        self._busy = False
        self._hoping: list[tuple[Waiting[Any], asyncio.Future[None]]] = []

    async def settled(self, act: Act[Any]) -> Waiting[Any]:
        """The act, submitted and settled: `Journal.outcome` says what became of it."""
        waiting = self._journal.submit(act)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hoping.append((waiting, answer))
        if not self._busy:
            self._begin()
        await answer
        return waiting

    def _begin(self) -> None:
        begun = self._journal.begin()
        call = self._journal.settle_queued if begun is None else partial(self._journal.complete, begun)
        self._busy = True
        self._syncing.begin(call).add_done_callback(self._ended)

    def _ended(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled():
            done.exception()  # those who wait have been told theirs
        self._busy = False
        still = []
        for waiting, answer in self._hoping:
            if not waiting.done:
                still.append((waiting, answer))
            elif not answer.done():
                answer.set_result(None)
        self._hoping = still
        if still:
            self._begin()
