"""Which request goes into which buffer, and when a buffer is run. Pure decisions: no I/O, no clock, no bytes.

Rules:

- Requests share a buffer only under the same key: tenant (unless the model is shared) and shape of a row.
- A buffer never holds more rows than the model's largest batch, nor more bytes per input than its region. Where the
  model does not batch, it holds one request.
- Requests of one key are placed in the order of their arrival. What finds no place waits (waiting.py); so many may
  wait, the next is refused. Where others' requests fill the queue, a tenant may still have some wait: twice as many in
  all.
- A new buffer is opened at the instance that is least busy.
- A forming buffer runs as soon as its instance has room: at once without a queue delay, else when it is full or its
  oldest request has waited for the delay (Triton's dynamic batching).
- Where several instances share the work, and nothing is to be waited for, a batch takes its share of it (share.py).
- No instance is idle while another has more than it can run: the idle one gets a buffer that no more requests fit into,
  or half of one that is still open (docs/adr/0144).
- A cancelled request leaves a forming buffer, and the rows behind it move up. One that is running stays till the end.
- When an instance is lost, what it was running fails; what was forming there goes back to the head of its queue, for
  another instance. Without another one everything fails.

Moments are monotonic seconds. Priorities, time-outs and preferred sizes are queue_policies.py's.
"""

from collections.abc import Sequence
from typing import Final, Generic

from mypy_extensions import mypyc_attr

from hermetic.errors import HermeticError, InvalidRequestError, OverloadedError
from hermetic.server.share import Share
from hermetic.server.slots import (
    FORMING,
    FREE,
    NO_KEY,
    RUNNING,
    EntryT,
    Instance,
    Key,
    Leaving,
    Removal,
    Slot,
)
from hermetic.server.waiting import Waiting

TENANTS_SHARE: Final = 8  # such a part of the places in a full queue each tenant may have beyond it


@mypyc_attr(allow_interpreted_subclasses=True)
class Batcher(Generic[EntryT]):
    """Buffers and waiting requests of one model version, over all of its instances."""

    ordered = False
    gathers = False

    def __init__(
        self,
        max_rows: int,
        capacities: Sequence[int],
        delay_s: float,
        waiting_limit: int,
        *,
        full_rows: int | None = None,
        fixed: bool = False,
        shared_out: bool = False,
        queue: Waiting[EntryT] | None = None,
    ) -> None:
        """`full_rows`: with so many a buffer takes no further request; 1 where each is a batch of its own.

        `fixed`: every row takes the same bytes, so what fits by its rows fits by its bytes. `shared_out`: several
        instances share what is at hand, so that a buffer may take less than `full_rows`.
        """
        self._max_rows = max_rows
        self._full_rows = max_rows if full_rows is None else full_rows
        self._inputs = len(capacities)
        self._capacities = () if fixed else tuple(capacities)  # what is to be compared with
        self._delay = delay_s
        self._waiting_limit = waiting_limit
        self._instances: list[Instance[EntryT]] = []
        self._open: dict[Key, Slot[EntryT]] = {}  # the buffer that takes further requests of a key
        self._queue = Waiting[EntryT]() if queue is None else queue
        self._share = Share() if shared_out else None
        self.waiting = 0
        self.rearranges = False

    def add_instance(self, buffers: int, in_flight: int) -> Instance[EntryT]:
        """Return a new instance, all of whose buffers are free."""
        instance: Instance[EntryT] = Instance(buffers, in_flight, self._inputs)
        self._instances.append(instance)
        self.rearranges = self.rearranges or len(self._instances) > 1
        return instance

    def remove_instance(self, instance: Instance[EntryT], error: HermeticError) -> list[Leaving[EntryT]]:
        """Forget `instance`; return what was in its buffers and, with the last instance, all that wait.

        What leaves without an error is to be copied out and given to `requeue`.
        """
        self._instances.remove(instance)
        leaving: list[Leaving[EntryT]] = []
        for slot in instance.slots:
            movable = slot.state == FORMING and bool(self._instances)
            leaving += [self._leaving(slot, entry, None if movable else error) for entry in slot.entries]
            self._forget(slot)
        if not self._instances:
            waiting = list(self._queue)
            leaving += [Leaving(entry, None, error) for entry in waiting]
            for entry in waiting:
                self._queue.discard(entry)
            self.waiting = 0
        return leaving

    def requeue(self, entries: Sequence[EntryT]) -> None:
        """Take requests back that were copied out: they wait before all others of their key, however many wait."""
        if entries:
            self._queue.put_back(sorted(entries, key=lambda entry: entry.arrived))
            self.waiting += len(entries)

    def submit(self, entry: EntryT) -> bool:
        """Place `entry` and return True, or keep it waiting and return False.

        Raises `InvalidRequestError` where it never fits, `OverloadedError` where too many wait already.
        """
        self._check_fits_at_all(entry)
        if not (self.waiting and self._queue.is_behind_others(entry)) and self._place(entry):
            return True
        if self.waiting >= self._waiting_limit and not self._is_let_in(entry):
            raise OverloadedError(
                f"requests waiting for this model: wanted at most {self._waiting_limit}, got {self.waiting + 1}"
            )
        self._queue.add(entry)
        self.waiting += 1
        return False

    def _is_let_in(self, entry: EntryT) -> bool:
        """Whether `entry` may wait although the queue is full: one tenant's requests must not lock out another's."""
        share = max(1, self._waiting_limit // TENANTS_SHARE)
        return self.waiting < 2 * self._waiting_limit and self._queue.of_tenant(entry.key.tenant) < share

    def place_waiting(self) -> list[EntryT]:
        """Place as many waiting requests as there is room for, keys in turn; return them."""
        placed = self._queue.place(self._place)
        self.waiting -= len(placed)
        return placed

    def rearrange(self, now: float) -> list[Leaving[EntryT]]:
        """Take requests from an instance that is busy, where another is idle: `place_waiting` gives them to that."""
        if not any(map(_is_idle, self._instances)):
            return []
        busy = [one for one in self._instances if one.forming and one.running >= one.in_flight]
        due = [slot for one in busy for slot in one.forming if self._is_due(slot, now)]
        return self._lend(min(due, key=self._urgency)) if due else []

    def take_ready(self, now: float) -> list[Slot[EntryT]]:
        """Return the buffers to run now, oldest first; they count as running until `release`."""
        ready: list[Slot[EntryT]] = []
        for instance in self._instances:
            if instance.forming and instance.running < instance.in_flight:
                self._take_from(instance, now, ready)
        return ready

    def _take_from(self, instance: Instance[EntryT], now: float, ready: list[Slot[EntryT]]) -> None:
        for slot in instance.forming[:]:
            if self._is_due(slot, now):
                instance.forming.remove(slot)
                if not slot.closed:
                    self._close(slot)
                slot.state = RUNNING
                instance.running += 1
                ready.append(slot)
                if instance.running == instance.in_flight:
                    return

    def _is_due(self, slot: Slot[EntryT], now: float) -> bool:
        return slot.closed or not self._delay or now >= slot.opened + self._delay

    def _urgency(self, slot: Slot[EntryT]) -> tuple[int, float]:
        """Return what is least for the forming buffer that runs first."""
        return 0, slot.opened

    def _lend(self, slot: Slot[EntryT]) -> list[Leaving[EntryT]]:
        """Take all requests out of a closed buffer, or the later half of an open one, so that both have some to run."""
        keep = 0 if slot.closed else len(slot.entries) // 2
        self._close(self._open.get(slot.key, slot))  # what is taken out must not join what waits for a busy one
        return [Leaving(entry, self._remove(slot, entry), None) for entry in reversed(slot.entries[keep:])]

    def next_moment(self) -> float | None:
        """Return when the next forming buffer will have waited long enough, where only time is wanting."""
        if not self._delay:
            return None
        lent = self.rearranges and any(map(_is_idle, self._instances))
        moments = [
            slot.opened + self._delay
            for instance in self._instances
            if lent or instance.running < instance.in_flight
            for slot in instance.forming
        ]
        return min(moments, default=None)

    def release(self, slot: Slot[EntryT]) -> None:
        """Take a running buffer back: it is wiped and free."""
        slot.instance.running -= 1
        if self._share is not None:
            self._share.ran(len(self._instances))
        self._forget(slot)
        slot.instance.free.append(slot)

    def cancel(self, entry: EntryT) -> Removal | None:
        """Take `entry` out; None where it was waiting, or is running and stays."""
        slot = entry.slot
        if slot is None:
            self.waiting -= self._queue.discard(entry)
            return None
        if slot.state != FORMING or entry not in slot.entries:
            return None
        return self._remove(slot, entry)

    def _leaving(self, slot: Slot[EntryT], entry: EntryT, error: HermeticError | None) -> Leaving[EntryT]:
        if error is not None:
            return Leaving(entry, None, error)
        entry.slot = None
        gaps = [(start, length, start + length) for start, length in zip(entry.offsets, entry.lengths, strict=True)]
        return Leaving(entry, Removal(slot, gaps), None)

    def _remove(self, slot: Slot[EntryT], entry: EntryT) -> Removal:
        at = slot.entries.index(entry)
        gaps = [
            (start, length, end) for start, length, end in zip(entry.offsets, entry.lengths, slot.filled, strict=True)
        ]
        del slot.entries[at]
        for later in slot.entries[at:]:
            later.row -= entry.rows
            later.offsets = [offset - length for offset, length in zip(later.offsets, entry.lengths, strict=True)]
        slot.filled = [filled - length for filled, length in zip(slot.filled, entry.lengths, strict=True)]
        slot.rows -= entry.rows
        entry.slot = None
        if slot.entries:
            slot.opened = slot.entries[0].arrived
        else:
            slot.instance.forming.remove(slot)
            self._forget(slot)
            slot.instance.free.append(slot)
        return Removal(slot, gaps)

    def _place(self, entry: EntryT) -> bool:
        slot = self._open.get(entry.key)
        if slot is not None and not self._fits(slot, entry):
            self._close(slot)
            slot = None
        if slot is None:
            slot = self._open_slot(entry)
            if slot is None:
                return False
        entry.slot = slot
        entry.row = slot.rows
        entry.offsets = slot.filled
        slot.filled = [filled + length for filled, length in zip(slot.filled, entry.lengths, strict=True)]
        slot.rows += entry.rows
        slot.entries.append(entry)
        if slot.rows >= self._full_rows or self._has_its_share(slot):
            self._close(slot)
        return True

    def _has_its_share(self, slot: Slot[EntryT]) -> bool:
        if self._share is None or len(self._instances) == 1:
            return False
        rows, batches = self.waiting, 0  # a request that waits counts as a row
        for instance in self._instances:
            batches += instance.in_flight + 1
            for each in instance.slots:
                rows += each.rows
        self._share.saw(rows)
        return slot.rows >= self._share.rows(batches)

    def _open_slot(self, entry: EntryT) -> Slot[EntryT] | None:
        idle = [instance for instance in self._instances if instance.free]
        if not idle:
            return None
        instance = idle[0] if len(idle) == 1 else min(idle, key=_load)
        slot = instance.free.pop()
        slot.state = FORMING
        slot.key = entry.key
        slot.opened = entry.arrived
        instance.forming.append(slot)
        self._open[entry.key] = slot
        return slot

    def _fits(self, slot: Slot[EntryT], entry: EntryT) -> bool:
        if slot.rows + entry.rows > self._full_rows:
            return False
        return not self._capacities or all(
            filled + length <= capacity
            for filled, length, capacity in zip(slot.filled, entry.lengths, self._capacities, strict=True)
        )

    def _check_fits_at_all(self, entry: EntryT) -> None:
        if entry.rows > self._max_rows:
            raise InvalidRequestError(
                f"inference request batch-size: expected at most {self._max_rows}, got {entry.rows}"
            )
        if self._capacities:
            for length, capacity in zip(entry.lengths, self._capacities, strict=True):
                if length > capacity:
                    raise InvalidRequestError(f"input: expected at most {capacity} bytes, got {length}")

    def _close(self, slot: Slot[EntryT]) -> None:
        slot.closed = True
        if self._open.get(slot.key) is slot:
            del self._open[slot.key]

    def _forget(self, slot: Slot[EntryT]) -> None:
        self._close(slot)
        slot.state, slot.closed, slot.key, slot.rows = FREE, False, NO_KEY, 0
        slot.entries = []
        slot.filled = [0] * self._inputs


def _load(instance: Instance[EntryT]) -> tuple[bool, int]:
    """Return what is least for the instance that will run a new buffer first."""
    return instance.running >= instance.in_flight, instance.running + len(instance.forming)


def _is_idle(instance: Instance[EntryT]) -> bool:
    return bool(instance.free) and not instance.forming and instance.running < instance.in_flight
