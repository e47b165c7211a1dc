"""Moves rows: into forming buffers, to the worker and back, and wipes them. The scheduler decides, this carries out.

A `Dispatcher` serves one model version, by any number of workers (worker_link.py). A worker is treated as hostile: what
it sends is decoded against limits, must answer a batch that is running there, and its outputs are checked before a byte
goes on. Whatever breaks the rules ends that worker's link, as if it had died.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from hermetic.enclave.batch_frames import MIXED, STATUS_OK, Done, decode_done, encode_batch
from hermetic.enclave.buffers import BufferLayout
from hermetic.enclave.channel import Channel
from hermetic.errors import (
    BorderClosedError,
    BorderError,
    HermeticError,
    LeaseEndedError,
    WorkerLostError,
    WorkerStoppedError,
)
from hermetic.server.batch_answers import Answers, failure
from hermetic.server.contents import Buffer
from hermetic.server.foreign import ForeignMemory
from hermetic.server.hidden import HiddenTensors, told
from hermetic.server.ordering import Order
from hermetic.server.outputs import Output
from hermetic.server.scheduling import Scheduling
from hermetic.server.shaping import Shaping
from hermetic.server.slots import Instance, Leaving, Removal, Slot
from hermetic.server.statistics import ModelStatistics
from hermetic.server.work import Work
from hermetic.server.worker_link import Running, WorkerLink

ROUNDS_OF_REARRANGING: Final = 2  # in one turn, beside one for each worker, which may be lent something
_log: Final = logging.getLogger(__name__)


class Dispatcher:
    """Carries out what the batcher of one model version decides. Owner's thread only."""

    def __init__(
        self,
        scheduler: Scheduling[Work],
        statistics: ModelStatistics,
        post: Callable[[Callable[[], None]], None],
        wake_at: Callable[[float, Callable[[], None]], None],
        *,
        shaping: Shaping,
        hidden: HiddenTensors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`post` and `wake_at` are the transport's."""
        self._scheduler = scheduler
        self._statistics = statistics
        self._post = post
        self._wake_at = wake_at
        self._shaping = shaping
        self._hidden = hidden
        self._clock = clock
        self._order = Order(self._deliver) if scheduler.ordered else None
        self._links: dict[Instance[Work], WorkerLink] = {}
        self._no_worker = "no worker"
        self._wiping: list[WorkerLink] = []  # cut, and not wiped yet
        self._leaving: dict[Answers, None] = {}  # batches that are not answered, or not wiped, as a whole
        self._sequence = 0
        self._tenants: dict[str, int] = {"": MIXED}  # numbers, by the order in which they came; no worker hears a name
        self._alarm = 0.0
        self._run_posted = False
        self._on_idle: Callable[[], None] | None = None
        self.on_link_lost: Callable[[WorkerLink, HermeticError], None] = lambda _link, _error: None
        self.on_executed: Callable[[Slot[Work], tuple[int, int, int]], None] | None = None
        """Hears of each batch and its nanoseconds (input, infer, output) before it is answered; None: nobody."""
        self.on_link_closed: Callable[[WorkerLink], None] = lambda _link: None  # just before it is closed

    @property
    def has_instances(self) -> bool:
        """Whether there is a worker to run anything."""
        return bool(self._links)

    @property
    def why_not(self) -> str:
        """Why nothing can be run now; "" where it can.

        No word of a worker is in it: callers of all tenants read it, and it could quote one of them to another.
        """
        return "" if self._links else self._no_worker

    @property
    def idle(self) -> bool:
        """Whether no request is waiting, forming or running."""
        return not self._scheduler.waiting and all(
            len(link.instance.free) == len(link.instance.slots) for link in self._links.values()
        )

    @property
    def pending(self) -> int:
        """How many requests wait or are in a forming buffer."""
        forming = sum(len(slot.entries) for link in self._links.values() for slot in link.instance.forming)
        return self._scheduler.waiting + forming

    def attach(self, channel: Channel, memory: ForeignMemory, layout: BufferLayout, in_flight: int) -> WorkerLink:
        """Take a worker in service."""
        instance = self._scheduler.add_instance(layout.buffers, in_flight)
        shaping = self._shaping
        link = WorkerLink(
            channel, memory, layout, instance, batched=shaping.batched, acts_on_outputs=shaping.acts_on_outputs
        )
        self._links[link.instance] = link
        self._fill_and_run()
        return link

    def when_idle(self, action: Callable[[], None]) -> None:
        """Run `action`, once, as soon as no request is waiting, forming or running."""
        self._on_idle = action
        self._fill_and_run()

    def submit(self, work: Work) -> None:
        """Take a request, or raise `InvalidRequestError` or `OverloadedError`.

        What can run is run after the calls that have arrived already: they fill the batch, which costs more than a row.
        """
        placed = self._scheduler.submit(work)
        if self._order is not None:
            self._order.entered(work)
        if placed:
            self._copy_in(work)
        elif not self._scheduler.rearranges:  # else it may have to be woken for what waits
            return
        if not self._run_posted:
            self._run_posted = True
            self._post(self._run_ready)

    def cancel(self, work: Work) -> None:
        """Let go of a request whose caller is gone: its place is wiped and free again, unless it is running."""
        removal = self._scheduler.cancel(work)
        if removal is not None:
            self._links[removal.slot.instance].close_gap(removal)
        if self._order is not None:
            self._order.left(work)
        self._fill_and_run()

    def received(self, link: WorkerLink, frame: bytes) -> None:
        """Take a frame from a worker. One that cannot be, or meets a fault of ours, ends its link."""
        if link.instance not in self._links:
            return
        try:
            done, running, outputs = self._judged(link, frame)
        except BorderError as error:
            self.lost(link, error)
            return
        except Exception as error:  # noqa: BLE001 - whoever finds such a frame must not keep its batch, and us, waiting
            _log.exception("a worker's frame met a fault")
            self.lost(link, BorderError(f"done frame: wanted one that can be judged, got {type(error).__name__}"))
            return
        del link.running[done.buffer]
        answers = Answers(link, running, done, outputs)
        try:
            self._begin(answers)
        finally:
            self._go_on(answers)

    def _go_on(self, answers: Answers) -> None:
        """Answer a portion of a batch, or wipe one; when all is wiped its buffer is used again."""
        if answers.link.instance not in self._links:  # lost meanwhile: all are answered, and its memory is wiped
            return
        try:
            self._answer_some(answers)
        finally:  # whatever comes of an answer
            if answers.left or not answers.wipe_some():
                self._leaving[answers] = None
                self._post(partial(self._go_on, answers))
            else:
                self._release(answers)
                self._fill_and_run()

    def _release(self, answers: Answers) -> None:
        self._leaving.pop(answers, None)
        self._scheduler.release(answers.slot)

    def _cut(self, link: WorkerLink) -> None:
        self.on_link_closed(link)
        link.cut()
        self._wiping.append(link)
        self._wipe_some(link)

    def _wipe_some(self, link: WorkerLink) -> None:
        """Go on wiping what was shared with a lost worker: it may have touched all of it, to keep us from others."""
        if link not in self._wiping:  # it was finished at our end
            return
        if link.wipe_some():
            self._wiping.remove(link)
        else:
            self._post(partial(self._wipe_some, link))

    def _judged(self, link: WorkerLink, frame: bytes) -> tuple[Done, Running, list[Output]]:
        """Return what a frame says, of which batch, and the outputs; `BorderError` where it cannot be."""
        done = decode_done(frame)
        running = link.running.get(done.buffer)
        if running is None or running.sequence != done.sequence:
            got = f"buffer {done.buffer}, sequence {done.sequence}"
            raise BorderError(f"done frame: wanted the answer to a running batch, got {got}")
        if done.status != STATUS_OK:
            return done, running, []
        outputs = link.outputs[running.slot.index]
        return done, running, self._shaping.outputs(running.slot, link.claims, outputs, done.outputs)

    def lost(self, link: WorkerLink, error: HermeticError) -> None:
        """Give up on a worker: what it was running fails, what was forming moves on, its memory is wiped."""
        if link.instance not in self._links:
            return
        lied = isinstance(error, BorderError) and not isinstance(error, BorderClosedError)
        self._no_worker = f"no worker: the last one {'broke the protocol' if lied else 'was lost'}"
        self._hasten(link)
        told = error if isinstance(error, WorkerStoppedError | LeaseEndedError) else WorkerLostError(str(error))
        leaving = self._scheduler.remove_instance(link.instance, told)
        self._carry_out(leaving)
        del self._links[link.instance]
        self._cut(link)
        self.on_link_lost(link, error)
        self._fill_and_run()

    def _hasten(self, link: WorkerLink) -> None:
        """Answer at once what is still to be answered of what a worker has done: its memory is about to be wiped."""
        for answers in [one for one in self._leaving if one.link is link]:
            while answers.left:
                self._answer_some(answers)
            answers.outputs = []  # they lie in that memory
            self._release(answers)

    def ended(self, link: WorkerLink, error: Exception) -> None:
        """Take word that nothing more can be read from a worker."""
        self.lost(link, error if isinstance(error, HermeticError) else WorkerLostError(f"worker: {error}"))

    def lose_stuck(self, now: float, limit_s: float) -> None:
        """Give up on workers that have had a batch for longer than `limit_s` seconds."""
        for link in list(self._links.values()):
            if any(now - sent > limit_s for _, _, sent in link.running.values()):
                self.lost(link, WorkerStoppedError(f"worker: wanted an answer within {limit_s:.0f} s, got none"))

    def close(self) -> None:
        """Wipe and close all workers' links, without a word to anyone who still waits."""
        closing = WorkerLostError("the model is closed")
        for link in self._links.values():
            self._scheduler.remove_instance(link.instance, closing)
            self._cut(link)
        self._links.clear()
        for link in self._wiping:
            while not link.wipe_some():
                pass
        self._wiping.clear()
        if self._order is not None:
            self._order.close()

    def _begin(self, answers: Answers) -> None:
        """Count a batch that was run, and look at what the model keeps for itself; or tell all that it failed."""
        slot, done = answers.slot, answers.done
        if done.status != STATUS_OK:
            answers.skip()
            self._fail_all(slot.entries, failure(done, mixed=not slot.key.tenant))
            return
        if self._hidden is not None:
            try:
                self._hidden.answered(slot, answers.outputs)
            except Exception as error:  # noqa: BLE001 - its requests are told, whatever it is
                answers.skip()
                self._fail_all(slot.entries, told(error))
                return
        now = self._clock()
        times = answers.times(now)
        rows = len(slot.entries) if self._scheduler.gathers else slot.rows  # empty rows are nobody's
        self._statistics.executed(rows, len(slot.entries), times, int(time.time() * 1000))
        self._statistics.cost(*answers.cost(now))
        if self.on_executed is not None:
            self.on_executed(slot, times)

    def _answer_some(self, answers: Answers) -> None:
        answer = self._deliver if self._order is None else self._order.answer
        for work in answers.take():
            answer(work, answers.outputs, answers.slot.rows, answers.sent)

    def _deliver(self, work: Work, outputs: Sequence[Output], rows: int, sent: float) -> None:
        try:
            work.answer(outputs, rows, sent)
        except Exception as error:  # noqa: BLE001 - one request's answer must not cost the others theirs
            _log.error("answer", exc_info=error)
            work.fail(HermeticError(f"answer: {error}"))

    def _fail_all(self, works: Sequence[Work], error: HermeticError) -> None:
        for work in works:
            work.fail(error)
            if self._order is not None:
                self._order.left(work)

    def _copy_in(self, work: Work) -> None:
        if work.slot is not None:
            self._links[work.slot.instance].copy_in(work)
            work.raw = ()
            work.copied()

    def _carry_out(self, leaving: Sequence[Leaving[Work]]) -> None:
        """Take requests out of their places: those with an error for good, the others into private memory.

        All bytes are moved before anyone is told: a caller that is told may cancel others, which moves bytes again.
        """
        failed: list[tuple[Work, HermeticError]] = []
        kept: list[Work] = []
        for work, removal, error in leaving:
            why = error
            if removal is not None:
                link = self._links[removal.slot.instance]
                if why is None:
                    why = self._copy_out(link, removal, work)
                link.close_gap(removal)
            if why is None:
                kept.append(work)
            else:
                failed.append((work, why))
        self._scheduler.requeue(kept)
        for work, why in failed:
            self._fail_all((work,), why)

    def _copy_out(self, link: WorkerLink, removal: Removal, work: Work) -> HermeticError | None:
        """Take a request's rows back from a worker's memory; returns what it fails with, where they are spoilt."""
        try:
            work.raw = list[Buffer](link.copy_out(removal, work))
        except BorderError as error:
            self._wake_at(self._clock(), partial(self.lost, link, error))
            return WorkerLostError("a worker changed the request while it waited")
        return None

    def _fill_and_run(self) -> None:
        if self._scheduler.waiting:
            self._place_waiting()
        self._run_ready()
        if self._on_idle is not None and self.idle:
            action, self._on_idle = self._on_idle, None
            action()

    def _place_waiting(self) -> None:
        for work in self._scheduler.place_waiting():
            if work.slot is None:
                continue
            self._links[work.slot.instance].copy_in(work)
            work.forget_rows()
            work.copied()

    def _run_ready(self) -> None:
        self._run_posted = False
        now = self._clock()
        if self._scheduler.rearranges:
            for _ in range(len(self._links) + ROUNDS_OF_REARRANGING):
                leaving = self._scheduler.rearrange(now)
                if not leaving:
                    break
                self._carry_out(leaving)
                self._place_waiting()
            if self._scheduler.gathers:
                self._place_waiting()
        for slot in self._scheduler.take_ready(now):
            self._send(slot, now)
        moment = self._scheduler.next_moment()
        if moment is not None and not now < self._alarm <= moment:
            self._alarm = moment
            self._wake_at(moment, self._fill_and_run)

    def _send(self, slot: Slot[Work], now: float) -> None:
        link = self._links[slot.instance]
        self._sequence += 1
        tensors = self._shaping.tensors(slot)
        if self._hidden is not None:
            try:
                hidden = self._hidden.write(slot, link.inputs[slot.index][len(tensors) :])
            except Exception as error:  # noqa: BLE001 - a batch that cannot be made must not hold its buffer for ever
                self._abandon(link, slot, told(error))
                return
            slot.filled = [*slot.filled, *(tensor.nbytes for tensor in hidden)]
            tensors += hidden
        link.turn_to(slot)
        tenant = self._tenants.setdefault(slot.key.tenant, len(self._tenants))
        link.running[slot.index] = Running(slot, self._sequence, now)
        try:
            link.channel.send(encode_batch(slot.index, self._sequence, tensors, tenant))
        except BorderClosedError:
            return  # its end is read, after what it said before and what its supervisor says of it
        except (BorderError, OSError) as error:  # a full socket too: an honest worker reads its few batches
            failure = WorkerLostError(f"worker: {error}")
            self._wake_at(now, lambda: self.lost(link, failure))

    def _abandon(self, link: WorkerLink, slot: Slot[Work], error: HermeticError) -> None:
        """Fail a batch that cannot be sent."""
        self._fail_all(slot.entries, error)
        for place in link.inputs[slot.index]:
            place.wipe()
        self._scheduler.release(slot)
        self._post(self._fill_and_run)
