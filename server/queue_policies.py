"""Dynamic batching with everything that Triton's configuration can say of the queue. Pure, like batcher.py.

Chosen only for models that configure any of it; a plain model does not pay for it. Beyond batcher.py:

- *Priorities*: 1 is the most urgent. A request without one, or with one above the levels, has the default level. More
  urgent requests are placed first, and buffers that hold one run first; a buffer may mix levels.
- *Time-outs*: a request that is not running `default_timeout_us` after its arrival is refused, or moved behind all
  others of its level (DELAY). A request may ask for less, where the policy allows it, never for more.
- *Queue sizes*: what is waiting or forming counts.
- *Preferred sizes*: a buffer runs as soon as it has one of them, and is cut to the largest one that it has reached; the
  rest goes back to the head of the queue. When the delay is over it runs as it is. None is larger than the largest.

A *rank* orders requests by level and, within it, puts delayed ones last.
"""

import heapq
from collections.abc import Sequence
from itertools import count
from typing import Final

from hermetic.enclave.configuration import DynamicBatching, QueuePolicy
from hermetic.errors import HermeticError, QueueRefusedError
from hermetic.server.batcher import Batcher
from hermetic.server.slots import FORMING, RUNNING, Entry, EntryT, Instance, Leaving, Removal, Slot
from hermetic.server.waiting import Ranked, by_key, by_tenant

EXPIRED: Final = "Request timeout expired"
FULL: Final = "Exceeds maximum queue size"
_US: Final = 1e-6  # seconds
_SETTLED_KEPT: Final = 256  # time-outs of requests that do not wait any more
_DELAYED: Final = 1  # added to a rank; ranks of levels are even


class PolicyBatcher(Batcher[EntryT]):
    """Dynamic batching by `options`; `delay_s` and `waiting_limit` are the operator's or the model's, as for all."""

    gathers = False

    def __init__(
        self,
        max_rows: int,
        capacities: Sequence[int],
        delay_s: float,
        waiting_limit: int,
        options: DynamicBatching,
    ) -> None:
        largest = max(options.preferred_batch_sizes, default=max_rows)
        queue = Ranked[EntryT](by_tenant if options.preserve_ordering else by_key)
        super().__init__(max_rows, capacities, delay_s, waiting_limit, full_rows=largest, queue=queue)
        self.rearranges = True
        self.ordered = options.preserve_ordering
        self._preferred = frozenset(options.preferred_batch_sizes)
        self._levels = options.priority_levels
        self._default_level = options.default_priority_level
        own = {each.level: each.policy for each in options.priority_queue_policies}
        self._policies = [own.get(level, options.default_queue_policy) for level in range(options.priority_levels + 1)]
        self._queued: list[dict[EntryT, None]] = [{} for _ in self._policies]  # not running yet, by level
        self._timeouts: list[tuple[float, int, EntryT]] = []  # a heap
        self._serial = count()

    def submit(self, entry: EntryT) -> bool:
        """Place `entry` and return True, or keep it waiting and return False; `QueueRefusedError` by its policy."""
        wanted = entry.wishes.priority
        level = entry.level = wanted if 0 < wanted <= self._levels else self._default_level
        policy = self._policies[level]
        queued = self._queued[level]
        if policy.max_queue_size and len(queued) >= policy.max_queue_size:
            raise QueueRefusedError(FULL)
        entry.rank = 2 * level
        placed = super().submit(entry)
        queued[entry] = None
        timeout_us = _timeout_us(policy, entry)
        if timeout_us:
            heapq.heappush(self._timeouts, (entry.arrived + timeout_us * _US, next(self._serial), entry))
            if len(self._timeouts) > 2 * sum(map(len, self._queued)) + _SETTLED_KEPT:
                self._forget_settled()
        return placed

    def _forget_settled(self) -> None:
        """Let go of requests that run or are over: behind one that waits long they would be held until its time-out."""
        self._timeouts = [timeout for timeout in self._timeouts if timeout[2] in self._queued[timeout[2].level]]
        heapq.heapify(self._timeouts)

    def cancel(self, entry: EntryT) -> Removal | None:
        """Take `entry` out; None where it was waiting, or is running and stays."""
        self._queued[entry.level].pop(entry, None)
        return super().cancel(entry)

    def remove_instance(self, instance: Instance[EntryT], error: HermeticError) -> list[Leaving[EntryT]]:
        """Forget `instance`; return what was in its buffers and, with the last instance, all that wait."""
        leaving = super().remove_instance(instance, error)
        for entry, _, failure in leaving:
            if failure is not None:
                self._queued[entry.level].pop(entry, None)
        return leaving

    def rearrange(self, now: float) -> list[Leaving[EntryT]]:
        """Take out what has waited too long, what a buffer holds beyond a preferred size, and what is lent."""
        leaving = []
        while self._timeouts and self._timeouts[0][0] <= now:
            entry = heapq.heappop(self._timeouts)[2]
            if entry in self._queued[entry.level]:
                leaving += self._expire(entry)
        if self._preferred:
            for instance in self._instances:
                leaving += self._cut(instance, now)
        return leaving or super().rearrange(now)

    def next_moment(self) -> float | None:
        """Return when a delay or a time-out is over next, where only time is wanting."""
        while self._timeouts and self._timeouts[0][2] not in self._queued[self._timeouts[0][2].level]:
            heapq.heappop(self._timeouts)
        delay = super().next_moment()
        if not self._timeouts:
            return delay
        timeout = self._timeouts[0][0]
        return timeout if delay is None else min(delay, timeout)

    def take_ready(self, now: float) -> list[Slot[EntryT]]:
        """Return the buffers to run now, most urgent first; they count as running until `release`."""
        ready: list[Slot[EntryT]] = []
        for instance in self._instances:
            for slot in self._due(instance, now):
                self._start(slot)
                ready.append(slot)
        for slot in ready:
            for entry in slot.entries:
                self._queued[entry.level].pop(entry, None)
        return ready

    def _start(self, slot: Slot[EntryT]) -> None:
        slot.instance.forming.remove(slot)
        self._close(slot)
        slot.state = RUNNING
        slot.instance.running += 1

    def _due(self, instance: Instance[EntryT], now: float) -> list[Slot[EntryT]]:
        """Return the forming buffers that an instance has room for now, most urgent first."""
        room = instance.in_flight - instance.running
        if not room or not instance.forming:
            return []
        due = [slot for slot in instance.forming if self._is_due(slot, now)]
        due.sort(key=self._urgency)
        return due[:room]

    def _is_due(self, slot: Slot[EntryT], now: float) -> bool:
        if slot.closed or not self._delay or now >= slot.opened + self._delay:
            return True
        return bool(self._preferred) and self._preferred_entries(slot) > 0

    def _urgency(self, slot: Slot[EntryT]) -> tuple[int, float]:
        return min(entry.rank for entry in slot.entries), slot.opened

    def _preferred_entries(self, slot: Slot[EntryT]) -> int:
        """Return how many of its requests make up the largest preferred size that `slot` has reached; 0: none."""
        rows = most = 0
        for number, entry in enumerate(slot.entries, 1):
            rows += entry.rows
            if rows in self._preferred:
                most = number
        return most

    def _cut(self, instance: Instance[EntryT], now: float) -> list[Leaving[EntryT]]:
        leaving: list[Leaving[EntryT]] = []
        for slot in self._due(instance, now):
            keep = self._preferred_entries(slot)
            if 0 < keep < len(slot.entries) and not (self._delay and now >= slot.opened + self._delay):
                self._close(slot)  # what is taken out must not come back into it
                leaving += [Leaving(entry, self._remove(slot, entry), None) for entry in reversed(slot.entries[keep:])]
        return leaving

    def _expire(self, entry: EntryT) -> list[Leaving[EntryT]]:
        if self._policies[entry.level].timeout_action == "REJECT":
            return [Leaving(entry, self.cancel(entry), QueueRefusedError(EXPIRED))]
        waits = entry.slot is None
        if waits and not self._queue.discard(entry):
            return []
        entry.rank += _DELAYED
        if waits:
            self._queue.add(entry)
            return []
        if entry.slot is None or entry.slot.state != FORMING:
            return []
        return [Leaving(entry, self._remove(entry.slot, entry), None)]


def _timeout_us(policy: QueuePolicy, entry: Entry) -> int:
    wanted = entry.wishes.timeout_us if policy.allow_timeout_override else 0
    return wanted if 0 < wanted < policy.default_timeout_us else policy.default_timeout_us
