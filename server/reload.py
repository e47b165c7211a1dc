"""The configuration read again while the server runs: one epoch that every front end applies, or none does.

    1  read       SIGHUP: server.toml is read again; what cannot change without a restart is refused by its key
    2  check      the supervisor itself puts the epoch together: what it finds wrong no front end sees
    3  stage      every front end gets the epoch, builds it, and answers; the document has one digest for all
    4  decide     all said yes: recorded, durably, then applied. One no, one that ends or stays silent: none applies it
    5  apply      each front end says when; one that stays silent is ended, and its successor starts with the epoch

A front end that starts meanwhile is asked like the others. Changes wait for each other. Numbers only rise, and one that
was refused is not used again. What an epoch holds is config.py's `Epoch`; what a front end does with it is epochs.py.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import ConfigurationError, HermeticError, NotReadyError, OperatorError, OverloadedError
from hermetic.server import documents
from hermetic.server.config import ServerConfig
from hermetic.server.epochs import checked
from hermetic.server.event_loop import EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.settings import Epoch
from hermetic.server.shared_messages import (
    ApplyEpoch,
    DropEpoch,
    EpochApplied,
    EpochStaged,
    StageEpoch,
)

STAGE_TIMEOUT_S: Final = 15  # for every front end to check an epoch; one that is starting first comes to listen
APPLY_TIMEOUT_S: Final = 5  # for a front end to apply what it has checked
CHANGES_WAITING: Final = 64  # changes that wait for their turn
REASON_LIMIT: Final = 1024  # characters of a reason in a record

Reply = Callable[[HermeticError | None], None]
Change = Callable[[ServerConfig, Epoch], tuple[ServerConfig, Epoch]]
"""Makes the next configuration and epoch (whatever its number) from the present ones; raises `HermeticError`."""
Recorder = Callable[[str, Mapping[str, JsonValue]], None]


@dataclass(slots=True)
class Current:
    """The configuration that holds; replaced as a whole, read from any thread."""

    config: ServerConfig


@dataclass(slots=True)
class _Pending:
    """A change on its way through the front ends."""

    why: Mapping[str, JsonValue]
    config: ServerConfig
    epoch: Epoch
    digest: str
    document: int
    reply: Reply
    deadline: float
    waiting: set[int] = field(default_factory=set)  # process ids that have not answered
    decided: bool = False


class Reloader:
    """The configuration and epoch that hold, and the change that is under way. Event loop's thread only."""

    def __init__(
        self,
        current: Current,
        epoch: Epoch,
        loop: EventLoop,
        front_ends: Mapping[int, FrontEnd],
        record: Recorder,
        on_applied: Callable[[ServerConfig, Epoch], None],
    ) -> None:
        """`front_ends` is the supervisor's own mapping. `on_applied` is told of what holds before any front end is."""
        self.current = current
        self.epoch = epoch
        self._loop = loop
        self._front_ends = front_ends
        self._record = record
        self._on_applied = on_applied
        self.refused = 0
        """How many changes were refused."""
        self._number = epoch.number
        self._queue: deque[tuple[Change, Mapping[str, JsonValue], Reply]] = deque()
        self._pending: _Pending | None = None
        self.check: Callable[[ServerConfig], None] = lambda _: None
        """Raises `HermeticError` where the rest of the server cannot live with a configuration; set by its owner."""

    def change(self, change: Change, why: Mapping[str, JsonValue], reply: Reply, *, first: bool = False) -> None:
        """Have every front end take a change, after those that came before; `reply` hears how it ended.

        `first`: it is the operator's own, and goes before all that wait: whoever is revoked could fill the queue.
        """
        if first:
            self._queue.appendleft((change, why, reply))
            self._next()
            return
        if len(self._queue) >= CHANGES_WAITING:
            reply(OverloadedError(f"changes waiting: wanted at most {CHANGES_WAITING}, got one more"))
            return
        self._queue.append((change, why, reply))
        self._next()

    def _next(self) -> None:
        while self._pending is None and self._queue:
            self._begin(*self._queue.popleft())

    def _begin(self, change: Change, why: Mapping[str, JsonValue], reply: Reply) -> None:
        """Steps 1 to 3."""
        self._number += 1
        try:
            config, epoch = change(self.current.config, self.epoch)
            epoch = epoch.model_copy(update={"number": self._number})
            checked(epoch)
            self.check(config)
            text = documents.encoded(epoch)
        except HermeticError as error:
            self._refused(why, self._number, error, reply)
            return
        deadline = time.monotonic() + STAGE_TIMEOUT_S
        digest, document = documents.digest(text), documents.in_memory(text)
        pending = self._pending = _Pending(why, config, epoch, digest, document, reply, deadline)
        for front_end in list(self._front_ends.values()):
            self.joined(front_end)
        self._loop.call_at(deadline, partial(self._out_of_time, pending))
        self._look()

    def joined(self, front_end: FrontEnd) -> None:
        """A front end has been started with the epoch that holds now: where another is being staged, ask it too."""
        pending = self._pending
        if pending is None:
            return
        number = pending.epoch.number
        pending.waiting.add(front_end.pid)
        front_end.send(StageEpoch(number=number, sha256=pending.digest), (pending.document,))
        if pending.decided:
            front_end.send(ApplyEpoch(number=number))

    def staged(self, front_end: FrontEnd, answer: EpochStaged) -> None:
        """A front end has checked an epoch; an answer that comes after the decision changes nothing."""
        pending = self._pending
        if pending is None or pending.decided or answer.number != pending.epoch.number:
            return
        if answer.error:
            self._abandon(ConfigurationError(f"front end {front_end.pid} refused the epoch: {answer.error}"))
            # Step 2 found the same document good: whoever says no to that may put a revocation off once, not for ever.
            self._record("front-end.replaced", {"pid": front_end.pid, "reason": "it refused a good epoch"})
            front_end.end()
            return
        pending.waiting.discard(front_end.pid)
        self._look()

    def applied(self, front_end: FrontEnd, answer: EpochApplied) -> None:
        """A front end judges calls by the new epoch."""
        pending = self._pending
        if pending is None or not pending.decided or answer.number != pending.epoch.number:
            return
        pending.waiting.discard(front_end.pid)
        self._look()

    def gone(self, front_end: FrontEnd) -> None:
        """A front end has ended. One that ends while it checks an epoch may have ended of it: that is a no."""
        pending = self._pending
        if pending is None or front_end.pid not in pending.waiting:
            return
        if not pending.decided:
            self._abandon(NotReadyError(f"front end {front_end.pid} ended while it checked the epoch"))
            return
        pending.waiting.discard(front_end.pid)
        self._look()

    def _look(self) -> None:
        """Go on where nobody is waited for any more."""
        pending = self._pending
        if pending is None or pending.waiting:
            return
        if pending.decided:
            self._finish(pending, None)
        else:
            self._decide(pending)

    def _decide(self, pending: _Pending) -> None:
        """Steps 4 and 5."""
        try:
            self.check(pending.config)  # models may have come meanwhile
        except HermeticError as error:
            self._abandon(error)
            return
        number = pending.epoch.number
        self._record("epoch.applied", {"epoch": number, "sha256": pending.digest, **pending.why})
        self.current.config, self.epoch, pending.decided = pending.config, pending.epoch, True
        self._on_applied(pending.config, pending.epoch)
        pending.waiting = set(self._front_ends)
        for front_end in list(self._front_ends.values()):
            front_end.send(ApplyEpoch(number=number))
        pending.deadline = time.monotonic() + APPLY_TIMEOUT_S
        self._loop.call_at(pending.deadline, partial(self._out_of_time, pending))
        self._look()

    def _out_of_time(self, pending: _Pending) -> None:
        if self._pending is not pending or time.monotonic() < pending.deadline:
            return
        if not pending.decided:
            silent = sorted(pending.waiting)
            self._abandon(
                OperatorError(f"wanted every front end's answer within {STAGE_TIMEOUT_S} s, none of {silent}")
            )
            self._end_stuck(pending)
            return
        self._end_stuck(pending)
        self._finish(pending, None)

    def _end_stuck(self, pending: _Pending) -> None:
        """End those that did not answer in time; their successors start with the epoch that holds."""
        for pid in pending.waiting & self._front_ends.keys():
            self._record("front-end.stuck", {"pid": pid, "epoch": pending.epoch.number})
            self._front_ends[pid].end()

    def _abandon(self, error: HermeticError) -> None:
        pending = self._pending
        if pending is None:
            return
        for front_end in list(self._front_ends.values()):
            front_end.send(DropEpoch(number=pending.epoch.number))
        self._refused(pending.why, pending.epoch.number, error, lambda _: None)
        self._finish(pending, error)

    def _finish(self, pending: _Pending, error: HermeticError | None) -> None:
        os.close(pending.document)
        self._pending = None
        pending.reply(error)
        self._next()

    def _refused(self, why: Mapping[str, JsonValue], number: int, error: HermeticError, reply: Reply) -> None:
        self.refused += 1
        reason = f"{type(error).__name__}: {error}"[:REASON_LIMIT]
        self._record("epoch.refused", {"epoch": number, "stays": self.epoch.number, "reason": reason, **why})
        reply(error)
