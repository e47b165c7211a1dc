"""Messages that a client has compressed (gzip, deflate), inflated within bounds, and a step at a time.

64 KiB of zeros become 64 MiB, and whoever inflates them does nothing else meanwhile. So a message is inflated in steps
of a tenth of a millisecond, a few in each turn of the loop, clients in turn; `Inflations` keeps those that take more
than one. What has been inflated counts as bytes in flight at once, not when all of it is there.

A gzip member says at its end how large it is: one that says too much is refused without being inflated, and one that
becomes larger than it says is broken off there. A client whose messages would be too much is refused its others before
any more of them is inflated.
"""

import time
import zlib
from collections import deque
from typing import Final, Protocol

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import HermeticError, InvalidRequestError, OverloadedError
from hermetic.server.config import Limits
from hermetic.server.limits import Accounts, Cancels, Usage

ALWAYS_ALLOWED: Final = 1 << 20  # bytes that any message may inflate to: zeros shrink to a thousandth
STEP_BYTES: Final = 64 * 1024  # most that one step takes in, and most that it makes of it: 0.1 ms
STEPS_PER_TURN: Final = 4  # of all clients together
BOMB_COST: Final = 50  # cancelled calls that a message counts as which inflates to too much: it costs us as much
_EITHER_HEADER: Final = 47  # zlib's wbits: gzip or zlib, the largest window
_GZIP: Final = b"\x1f\x8b"  # RFC 1952 section 2.3.1
_SIZE_BYTES: Final = 4  # ISIZE, the last field of a gzip member: what it inflates to, modulo 2**32


class Inflation:
    """One message between packed and plain. Pure."""

    __slots__ = ("_at", "_inflater", "_limit", "_packed", "_plain", "_tail", "done", "size")

    def __init__(self, packed: bytes, largest: int, ratio: int) -> None:
        """It may inflate to `largest` bytes, and to `ratio` times its size. `OverloadedError` where it says more."""
        self.size = 0  # bytes that it has become
        self.done = False
        self._packed = packed
        self._limit = min(largest, max(ALWAYS_ALLOWED, ratio * len(packed)))
        self._at = 0
        self._tail = b""  # taken, and not inflated yet
        self._plain: list[bytes] = []
        self._inflater = zlib.decompressobj(_EITHER_HEADER)
        if packed[:2] == _GZIP:
            said = int.from_bytes(packed[-_SIZE_BYTES:], "little")
            if said > self._limit:
                raise self._too_much(str(said))
            self._limit = said

    def step(self) -> int:
        """Go on; return how many bytes more there are now.

        `OverloadedError` where that is too much, `InvalidRequestError` where the message is broken.
        """
        inflater, tail = self._inflater, self._tail
        try:
            if tail:
                plain = inflater.decompress(tail, STEP_BYTES)
            else:
                start, self._at = self._at, min(self._at + STEP_BYTES, len(self._packed))
                plain = inflater.decompress(memoryview(self._packed)[start : self._at], STEP_BYTES)
        except zlib.error as error:
            raise InvalidRequestError(f"message: expected gzip or zlib, got {error}") from None
        self._tail = inflater.unconsumed_tail
        wipe_immutable_bytes_that_nobody_else_holds(tail)
        self._plain.append(plain)
        self.size += len(plain)
        if self.size > self._limit:
            raise self._too_much("more")
        self._look_at_end(len(plain))
        return len(plain)

    def take(self) -> bytes:
        """Return the whole message, which is there, and forget it."""
        plain = self._plain[0] if len(self._plain) == 1 else b"".join(self._plain)
        if len(self._plain) == 1:
            self._plain.clear()
        self.forget()
        return plain

    def forget(self) -> None:
        """Overwrite what is held."""
        for piece in (*self._plain, self._tail, self._packed):
            wipe_immutable_bytes_that_nobody_else_holds(piece)
        self._plain.clear()
        self._tail = self._packed = b""

    def _look_at_end(self, made: int) -> None:
        inflater = self._inflater
        over = self._at == len(self._packed) and not self._tail
        self.done = over and inflater.eof and not inflater.unused_data
        if not self.done and (inflater.eof or (over and made < STEP_BYTES)):
            raise InvalidRequestError("message: expected one whole gzip or zlib member, got a part or more")

    def _too_much(self, got: str) -> OverloadedError:
        return OverloadedError(
            f"message: expected {len(self._packed)} compressed bytes to inflate to at most {self._limit}, got {got}"
        )


class Taker(Protocol):
    """A call that waits for its message."""

    def inflated(self, message: bytes) -> None:
        """Take the message."""

    def broken(self, error: HermeticError) -> None:
        """Answer with `error`: the message cannot be had."""


class _Job:
    """A message that waits for its first step (`inflation` is None), or its next. `held`: bytes counted for it."""

    __slots__ = ("held", "inflation", "packed", "taker")

    def __init__(self, taker: Taker, packed: bytes) -> None:
        self.taker = taker
        self.packed = packed
        self.inflation: Inflation | None = None
        self.held = 0


class Inflations:
    """All messages that are being inflated. Of each client one at a time, in order; clients take turns at steps."""

    def __init__(self, accounts: Accounts, cancels: Cancels, limits: Limits) -> None:
        """`accounts`: where bytes count; `cancels`: where a message counts that is too much."""
        self._accounts, self._cancels = accounts, cancels
        self._largest, self._ratio = limits.message_bytes, limits.inflation_ratio
        self._waiting: dict[Usage, deque[_Job]] = {}  # whoever had a step is the last to have the next
        self._steps = STEPS_PER_TURN  # that are left in this turn

    def begin(self, taker: Taker, usage: Usage, packed: bytes) -> None:
        """Inflate a message of `taker`, who hears of it: at once where that is little, else in turns."""
        job = _Job(taker, packed)
        waiting = self._waiting.get(usage)
        if waiting is not None:
            waiting.append(job)
            return
        self._waiting[usage] = waiting = deque([job])
        while self._steps and waiting and waiting[0] is job:
            self._step(usage)

    def forget(self, taker: Taker, usage: Usage) -> None:
        """Let go of the message of `taker`, if it has one here: its call has ended."""
        for job in self._waiting.get(usage, ()):
            if job.taker is taker:
                self._drop(usage, job)
                return

    def run(self) -> bool:
        """Do the steps of a turn, and let the next one begin; whether there is more to be done."""
        while self._steps and self._waiting:
            self._step(next(iter(self._waiting)))
        self._steps = STEPS_PER_TURN
        return bool(self._waiting)

    def _step(self, usage: Usage) -> None:
        """Do one step for the first message of one client."""
        self._steps -= 1
        waiting = self._waiting[usage] = self._waiting.pop(usage)
        job = waiting[0]
        try:
            inflation = self._go_on(usage, job)
        except HermeticError as error:
            self._drop(usage, job)
            job.taker.broken(error)
            return
        if inflation.done:
            message = inflation.take()
            self._drop(usage, job)
            job.taker.inflated(message)

    def _go_on(self, usage: Usage, job: _Job) -> Inflation:
        """Do a step, and count what it has made as bytes in flight."""
        if job.inflation is None:
            self._cancels.check(usage, time.monotonic())  # bombs before it may have been too many
        try:
            inflation = job.inflation
            if inflation is None:
                inflation = job.inflation = Inflation(job.packed, self._largest, self._ratio)
            more = inflation.step()
        except OverloadedError:
            self._cancels.count(usage, time.monotonic(), BOMB_COST)
            raise
        self._accounts.take(usage, more)
        job.held += more
        return inflation

    def _drop(self, usage: Usage, job: _Job) -> None:
        """Forget a message, and give back what it held: who takes it counts it."""
        waiting = self._waiting[usage]
        waiting.remove(job)
        if not waiting:
            del self._waiting[usage]
        self._accounts.give_back(usage, job.held)
        if job.inflation is None:
            wipe_immutable_bytes_that_nobody_else_holds(job.packed)
        else:
            job.inflation.forget()
