"""Which requests of sequences run together, and when: Triton's strategies `direct` and `oldest`. Pure.

A sequence that has begun gets one of the places of an instance, and keeps it until it ends; without a free place it
waits in the backlog, in order. An instance runs one batch at a time, at most one request of each sequence: the next
needs the states of the one before. Whichever request has waited longest leads a batch; those that can be mixed with it
(tenant, shapes, shapes of states) go along.

- `direct`: a place is a row of the batch. Rows without a request are sent empty, and are not READY. A batch waits until
  `minimum_slot_utilization` of the rows are there, or the delay is over.
- `oldest`: an instance has `max_candidate_sequences` places; rows are given out anew for each batch, the oldest first.
  A batch waits for a preferred size, or until the delay is over.

An iterative request is a sequence of its own that runs again until it is finished; requests at different steps share
batches. It goes to the end of the line each time.
"""

from collections import deque
from collections.abc import Sequence as Many
from itertools import count
from math import prod
from typing import Final, NamedTuple

from hermetic.enclave.configuration import SequenceBatching
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import (
    CancelledError,
    HermeticError,
    InvalidRequestError,
    OverloadedError,
    QueueRefusedError,
    UnsupportedError,
)
from hermetic.server.sequence_tensors import SequenceTensors
from hermetic.server.sequences import Place, Sequence, Sequences, SequenceWork
from hermetic.server.slots import FORMING, FREE, NO_KEY, RUNNING, Instance, Leaving, Removal, Slot
from hermetic.server.work import Work

CROWDED_LOOK_S: Final = 0.005  # seconds between looks whether a caller has taken its answers
MICROSECONDS: Final = 1e6
_NO_STRING: Final = 4  # bytes of an empty element of BYTES


class Room(NamedTuple):
    """What fits into a batch: rows, bytes of each input that callers send, and requests that may wait."""

    inputs: tuple[TensorSpec, ...]
    capacities: tuple[int, ...]
    rows: int
    waiting: int


class SequenceScheduler:
    """Places and backlog of one model's sequences: a `Scheduling`."""

    rearranges = True
    gathers = True
    ordered = False

    def __init__(self, options: SequenceBatching, room: Room, sequences: Sequences, tensors: SequenceTensors) -> None:
        self._options = options
        self._room = room
        self._sequences = sequences
        self._tensors = tensors
        self._direct = options.strategy == "direct"
        self._delay = options.max_queue_delay_us / MICROSECONDS
        self._idle = options.max_idle_us / MICROSECONDS
        self._places = room.rows if self._direct else options.max_candidate_sequences
        self._placed: dict[Instance[Work], dict[int, Sequence]] = {}
        self._backlog: deque[Sequence] = deque()
        self._expiries: dict[Sequence, float] = {}  # of sequences in the backlog whose requests have a timeout
        self._leaving: list[Leaving[Work]] = []
        self._finished: list[Sequence] = []  # nothing of them waits or runs, since the latest `rearrange`
        self._due: dict[Instance[Work], float] = {}  # when a batch that waits for more is to run
        self._crowded = False
        self._turns = count()
        self._now = 0.0
        self.waiting = 0

    def add_instance(self, buffers: int, in_flight: int) -> Instance[Work]:  # noqa: ARG002 - one batch at a time
        """Return a new instance; sequences of the backlog get its places."""
        instance: Instance[Work] = Instance(buffers, 1, len(self._room.inputs))
        self._placed[instance] = {}
        for row in range(min(self._places, len(self._backlog))):  # a publisher may have given it billions of places
            self._fill_place(Place(instance, row))
        return instance

    def remove_instance(self, instance: Instance[Work], error: HermeticError) -> list[Leaving[Work]]:
        """Forget `instance` and end its sequences; with the last instance, those of the backlog too."""
        lost = list(self._placed.pop(instance).values())
        if not self._placed:
            lost += self._backlog
            self._backlog.clear()
        leaving: list[Leaving[Work]] = []
        for sequence in lost:
            if sequence.running is not None:
                leaving.append(Leaving(sequence.running, None, error))
            leaving += self._drop(sequence, error)
            self._expiries.pop(sequence, None)
            self._sequences.end(sequence)
        return leaving

    def submit(self, entry: Work) -> bool:
        """Keep `entry` for its sequence, and return False: places are given out when a batch is put together.

        Raises `InvalidRequestError` where it never fits or has no sequence, `OverloadedError` where there are too many.
        """
        work = _sequence_work(entry)
        for length, capacity in zip(work.lengths, self._room.capacities, strict=True):
            if length > capacity:
                raise InvalidRequestError(f"input: expected at most {capacity} bytes, got {length}")
        if self.waiting >= self._room.waiting:
            raise OverloadedError(
                f"requests waiting for this model: wanted at most {self._room.waiting}, got {self.waiting + 1}"
            )
        sequence = self._sequences.of(work, own=self._options.iterative)
        work.sequence = sequence
        work.queued, work.turn = work.arrived, next(self._turns)
        sequence.queue.append(work)
        self.waiting += 1
        if sequence.place is None:
            self._find_place(sequence, work)
        return False

    def place_waiting(self) -> list[Work]:
        """Put together a batch for each instance that runs none; return its requests."""
        placed: list[Work] = []
        self._crowded = False
        for instance in self._placed:
            if not instance.running and not instance.forming and instance.free:
                placed += self._form(instance)
        return placed

    def rearrange(self, now: float) -> list[Leaving[Work]]:
        """End what has been idle for too long; take out what waits for a place for too long, and what was cancelled."""
        self._now = now
        for sequence in self._finished:
            if sequence.idle:
                self._sequences.rests(sequence, now)
        self._finished.clear()
        for sequence in self._sequences.idle_since(now - self._idle):
            self._end(sequence)
        for sequence in [one for one, expiry in self._expiries.items() if expiry <= now]:
            expired = QueueRefusedError("timeout of the corresponding sequence has been expired")
            self._backlog.remove(sequence)
            self._leaving += self._drop(sequence, expired)
            self._end(sequence)
        leaving, self._leaving = self._leaving, []
        return leaving

    def requeue(self, entries: Many[Work]) -> None:
        """Nothing: rows are copied when a batch is about to run, and leave with it."""

    def take_ready(self, now: float) -> list[Slot[Work]]:  # noqa: ARG002 - the protocol's
        """Return the buffers that were put together."""
        ready = []
        for instance in self._placed:
            for slot in instance.forming:
                slot.state = RUNNING
                instance.running += 1
                ready.append(slot)
            instance.forming.clear()
        return ready

    def next_moment(self) -> float | None:
        """Return when a delay, a timeout or a sequence's idle time will be over."""
        moments = [*self._due.values(), *self._expiries.values()]
        idle = self._sequences.longest_idle()
        if idle is not None:
            moments.append(idle + self._idle)
        if self._leaving:  # found while a batch was put together
            moments.append(self._now)
        if self._crowded:
            moments.append(self._now + CROWDED_LOOK_S)
        return min(moments, default=None)

    def release(self, slot: Slot[Work]) -> None:
        """Take a running buffer back; requests that are not finished wait again."""
        for entry in slot.entries:
            work = _sequence_work(entry)
            sequence = work.sequence
            if sequence is None:
                continue
            sequence.running = None
            work.begun = True
            if not work.finished:
                work.slot = None
                work.queued, work.turn = self._now, next(self._turns)
                sequence.queue.appendleft(work)
                self.waiting += 1
            elif not sequence.queue:
                if sequence.open:
                    self._finished.append(sequence)
                else:
                    self._end(sequence)
        slot.instance.running -= 1
        slot.state, slot.key, slot.rows, slot.entries = FREE, NO_KEY, 0, []
        slot.filled = [0] * len(self._room.inputs)
        slot.instance.free.append(slot)

    def cancel(self, entry: Work) -> Removal | None:
        """Take `entry` out, where it waits: its sequence ends before it, and what waits behind it fails (as in Triton).

        One that is running stays, and so does its sequence.
        """
        work = _sequence_work(entry)
        sequence = work.sequence
        if sequence is None or work not in sequence.queue:
            return None
        self._sequences.close(sequence)
        behind = []
        while (last := sequence.queue.pop()) is not work:
            behind.append(last)
        self.waiting -= 1 + len(behind)
        gone = CancelledError("an earlier request of this sequence was cancelled")
        self._leaving += [Leaving(one, None, gone) for one in reversed(behind)]
        if sequence.idle:
            if sequence.place is None:
                self._backlog.remove(sequence)
            self._end(sequence)
        return None

    def _find_place(self, sequence: Sequence, work: SequenceWork) -> None:
        free = [instance for instance, placed in self._placed.items() if len(placed) < self._places]
        if free and not self._backlog:
            instance = min(free, key=lambda one: len(self._placed[one]))
            row = next(row for row in range(self._places) if row not in self._placed[instance])
            self._put(sequence, Place(instance, row))
            return
        if len(sequence.queue) == 1:
            self._backlog.append(sequence)
        if work.wishes.timeout_us:
            expiry = work.arrived + work.wishes.timeout_us / MICROSECONDS
            self._expiries[sequence] = min(expiry, self._expiries.get(sequence, expiry))

    def _put(self, sequence: Sequence, place: Place) -> None:
        sequence.place = place
        self._placed[place.instance][place.row] = sequence
        self._expiries.pop(sequence, None)

    def _fill_place(self, place: Place) -> None:
        if self._backlog:
            self._put(self._backlog.popleft(), place)

    def _end(self, sequence: Sequence) -> None:
        """Forget a sequence; its place goes to the first of the backlog."""
        self._sequences.end(sequence)
        self._expiries.pop(sequence, None)
        place, sequence.place = sequence.place, None
        if place is not None and place.instance in self._placed:
            del self._placed[place.instance][place.row]
            self._fill_place(place)

    def _drop(self, sequence: Sequence, error: HermeticError) -> list[Leaving[Work]]:
        """Empty the queue of a sequence."""
        leaving: list[Leaving[Work]] = [Leaving(work, None, error) for work in sequence.queue]
        self.waiting -= len(sequence.queue)
        sequence.queue.clear()
        return leaving

    def _form(self, instance: Instance[Work]) -> list[Work]:
        """Put together the next batch of `instance`; nothing where there is none, or it is to wait for more."""
        self._due.pop(instance, None)
        works = [
            sequence.queue[0]
            for sequence in self._placed[instance].values()
            if sequence.queue and sequence.running is None
        ]
        ready = [work for work in works if not work.crowded]
        self._crowded = self._crowded or len(ready) < len(works)
        if not ready:
            return []
        ready.sort(key=lambda work: work.turn)
        size = self._how_many(ready)
        if not size:
            self._due[instance] = ready[0].queued + self._delay
            return []
        return self._fill(instance, self._alike(ready)[:size])

    def _alike(self, ready: list[SequenceWork]) -> list[SequenceWork]:
        """Return the requests that can be mixed with the first, in their order."""
        kind = self._kind(ready[0])
        alike = []
        for work in ready:
            if self._kind(work) == kind:
                alike.append(work)
            elif self._options.preserve_ordering:  # what came later must not be answered before it
                break
        return alike

    def _kind(self, work: SequenceWork) -> object:
        return work.key, self._tensors.shapes(_sequence(work), work)

    def _how_many(self, ready: list[SequenceWork]) -> int:
        """Return how many requests are to run now; 0: none yet."""
        most = len(ready) if self._direct else min(len(self._alike(ready)), self._room.rows)
        if not self._delay or self._now - ready[0].queued >= self._delay:
            return most
        if self._direct:
            return most if most / self._room.rows >= self._options.minimum_slot_utilization else 0
        if most == self._room.rows:
            return most
        return max((size for size in self._options.preferred_batch_sizes if size <= most), default=0)

    def _fill(self, instance: Instance[Work], works: list[SequenceWork]) -> list[Work]:
        """Lay out a batch of as many of `works` as have room; the first may find none at all, and fails."""
        while works:
            chosen = {self._row(work, at): work for at, work in enumerate(works)}
            rows = max(chosen) + 1
            offsets, filled = self._offsets(chosen, rows)
            if self._fits(filled) and self._tensors.fit(chosen, rows):
                return self._take(instance, chosen, rows, offsets, filled)
            last = works.pop()
        self._refuse(last)
        return self._form(instance)

    def _row(self, work: SequenceWork, at: int) -> int:
        place = _sequence(work).place
        return place.row if self._direct and place is not None else at

    def _offsets(self, chosen: dict[int, SequenceWork], rows: int) -> tuple[dict[int, list[int]], list[int]]:
        """Return, by row, where each input's bytes begin, and where the last ends. Empty rows have zeros."""
        shapes = next(iter(chosen.values())).key.row_shapes
        empty = [
            (ELEMENT_BYTES[spec.datatype] or _NO_STRING) * prod(shape)
            for spec, shape in zip(self._room.inputs, shapes, strict=True)
        ]
        filled = [0] * len(empty)
        offsets = {}
        for row in range(rows):
            offsets[row] = filled
            lengths = chosen[row].lengths if row in chosen else empty
            filled = [start + length for start, length in zip(filled, lengths, strict=True)]
        return offsets, filled

    def _fits(self, filled: list[int]) -> bool:
        return all(end <= capacity for end, capacity in zip(filled, self._room.capacities, strict=True))

    def _take(
        self,
        instance: Instance[Work],
        chosen: dict[int, SequenceWork],
        rows: int,
        offsets: dict[int, list[int]],
        filled: list[int],
    ) -> list[Work]:
        slot = instance.free.pop()
        slot.state, slot.rows, slot.filled = FORMING, rows, filled
        slot.key = next(iter(chosen.values())).key
        for row, work in chosen.items():
            sequence = _sequence(work)
            sequence.queue.popleft()
            sequence.running = work
            if work.starts:
                self._tensors.begin(sequence)
            work.slot, work.row, work.offsets = slot, row, offsets[row]
        self.waiting -= len(chosen)
        slot.entries = list(chosen.values())
        instance.forming.append(slot)
        return slot.entries

    def _refuse(self, work: SequenceWork) -> None:
        sequence = _sequence(work)
        sequence.queue.popleft()
        self.waiting -= 1
        room = InvalidRequestError("input: expected it to fit into a batch beside the empty rows before it, got more")
        self._leaving.append(Leaving(work, None, room))
        if not sequence.queue:
            self._end(sequence)


def _sequence_work(entry: Work) -> SequenceWork:
    if not isinstance(entry, SequenceWork):
        raise UnsupportedError("a model of sequences answers calls of its own only; it is no step of an ensemble")
    return entry


def _sequence(work: SequenceWork) -> Sequence:
    if work.sequence is None:
        raise TypeError("wanted a request that was submitted, got another")
    return work.sequence
