"""Moves rows: into forming buffers, to the worker and back, and wipes them. The batcher decides, this carries out.

A `Dispatcher` serves one model version; a `WorkerLink` is one of its workers: a data socket and the shared memory
behind it. The worker is treated as hostile: what it sends is decoded against limits, must answer a batch that is
running there, and its outputs are checked before a byte goes on. Whatever breaks the rules ends that worker's link, and
its requests fail as for a worker that died.
"""

import contextlib
import logging
import mmap
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

from hermetic.enclave.buffers import BufferLayout, Region
from hermetic.enclave.channel import Channel
from hermetic.enclave.messages import STATUS_OK, STATUS_REFUSED, Done, Tensor, decode_done, encode_batch
from hermetic.errors import BorderError, HermeticError, InvalidRequestError, WorkerLostError
from hermetic.server.batcher import Batcher, Entry, Instance, Key, Removal, Slot
from hermetic.server.contents import Buffer
from hermetic.server.outputs import Output, checked_outputs
from hermetic.server.statistics import ModelStatistics
from hermetic.server.wiping import wipe

BATCH_LIMIT_S: Final = 300.0  # seconds after which a batch without an answer counts as a lost worker

_log: Final = logging.getLogger(__name__)


class Work(Entry):
    """A request as the dispatcher sees it: rows to copy in, and someone who waits for the answer."""

    __slots__ = ("raw",)

    def __init__(self, key: Key, rows: int, raw: Sequence[Buffer], arrived: float) -> None:
        super().__init__(key, rows, [len(data) for data in raw], arrived)
        self.raw = raw

    @abstractmethod
    def copied(self) -> None:
        """Take note that the rows are in shared memory: the request's own bytes are not needed any more."""

    @abstractmethod
    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Answer from the outputs of the whole batch; this request's rows start at `row`."""

    @abstractmethod
    def fail(self, error: HermeticError) -> None:
        """Answer with `error`."""


class WorkerLink:
    """One worker of a model: its socket, its shared memory cut into views, and the batches it has."""

    def __init__(
        self, channel: Channel, memory: mmap.mmap, layout: BufferLayout, batcher: Batcher[Work], in_flight: int
    ) -> None:
        self.channel = channel
        self.layout = layout
        self.instance = batcher.add_instance(layout.buffers, in_flight)
        self.running: dict[int, tuple[Slot[Work], int, float]] = {}  # by buffer: slot, sequence, when it was sent
        self._memory = memory
        whole = memoryview(memory)
        self.inputs = [
            [_view(whole, layout, index, region) for region in layout.inputs] for index in range(layout.buffers)
        ]
        self.outputs = [
            [_view(whole, layout, index, region) for region in layout.outputs] for index in range(layout.buffers)
        ]

    def wipe(self) -> None:
        """Zero every buffer."""
        for views in (*self.inputs, *self.outputs):
            for view in views:
                wipe(view)

    def close(self) -> None:
        """Wipe, unmap and close; nothing may use the link afterwards."""
        self.wipe()
        self.inputs = self.outputs = []
        with contextlib.suppress(BufferError):  # a view that an exception still holds: unmapped when that is gone
            self._memory.close()
        self.channel.close()


def _view(whole: memoryview, layout: BufferLayout, index: int, region: Region) -> memoryview:
    start = index * layout.stride + region.offset
    return whole[start : start + region.capacity]


class Dispatcher:
    """Carries out what the batcher of one model version decides. Owner's thread only."""

    def __init__(
        self,
        batcher: Batcher[Work],
        statistics: ModelStatistics,
        post: Callable[[Callable[[], None]], None],
        wake_at: Callable[[float, Callable[[], None]], None],
        *,
        batched: bool,
    ) -> None:
        """`post` and `wake_at` are the transport's; `batched`: the first dimension of every tensor is the row."""
        self._batcher = batcher
        self._statistics = statistics
        self._post = post
        self._wake_at = wake_at
        self._batched = batched
        self._links: dict[Instance[Work], WorkerLink] = {}
        self._sequence = 0
        self._alarm = 0.0
        self._run_posted = False
        self._on_idle: Callable[[], None] | None = None
        self.on_link_lost: Callable[[WorkerLink, HermeticError], None] = lambda _link, _error: None
        self.on_link_closed: Callable[[WorkerLink], None] = lambda _link: None  # just before it is closed

    @property
    def has_instances(self) -> bool:
        """Whether there is a worker to run anything."""
        return bool(self._links)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting, forming or running."""
        return not self._batcher.waiting and all(
            len(link.instance.free) == len(link.instance.slots) for link in self._links.values()
        )

    @property
    def pending(self) -> int:
        """How many requests wait or are in a forming buffer."""
        forming = sum(len(slot.entries) for link in self._links.values() for slot in link.instance.forming)
        return self._batcher.waiting + forming

    def attach(self, channel: Channel, memory: mmap.mmap, layout: BufferLayout, in_flight: int) -> WorkerLink:
        """Take a worker in service."""
        link = WorkerLink(channel, memory, layout, self._batcher, in_flight)
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
        if self._batcher.submit(work):
            self._copy_in(work)
            if not self._run_posted:
                self._run_posted = True
                self._post(self._run_ready)

    def cancel(self, work: Work) -> None:
        """Let go of a request whose caller is gone: its place is wiped and free again, unless it is running."""
        removal = self._batcher.cancel(work)
        if removal is not None:
            self._close_gap(removal)
        self._fill_and_run()

    def received(self, link: WorkerLink, frame: bytes) -> None:
        """Take a frame from a worker."""
        if link.instance not in self._links:
            return
        try:
            done = decode_done(frame)
            running = link.running.get(done.buffer)
            if running is None or running[1] != done.sequence:
                got = f"buffer {done.buffer}, sequence {done.sequence}"
                raise BorderError(f"done frame: wanted the answer to a running batch, got {got}")
            outputs = self._outputs(link, running[0], done)
        except BorderError as error:
            self.lost(link, error)
            return
        del link.running[done.buffer]
        self._answer(running[0], done, outputs, running[2])
        del outputs
        self._wipe(link, running[0], done)
        self._batcher.release(running[0])
        self._fill_and_run()

    def lost(self, link: WorkerLink, error: HermeticError) -> None:
        """Give up on a worker: its requests fail, its memory is wiped."""
        if link.instance not in self._links:
            return
        del self._links[link.instance]
        failure = WorkerLostError(str(error))
        for work in self._batcher.remove_instance(link.instance):
            work.fail(failure)
        self.on_link_closed(link)
        link.close()
        self.on_link_lost(link, error)
        self._fill_and_run()

    def lose_stuck(self, now: float) -> None:
        """Give up on workers that have had a batch for longer than `BATCH_LIMIT_S`."""
        for link in list(self._links.values()):
            if any(now - sent > BATCH_LIMIT_S for _, _, sent in link.running.values()):
                self.lost(link, WorkerLostError(f"worker: wanted an answer within {BATCH_LIMIT_S:.0f} s, got none"))

    def close(self) -> None:
        """Wipe and close all workers' links, without a word to anyone who still waits."""
        for link in self._links.values():
            self._batcher.remove_instance(link.instance)
            self.on_link_closed(link)
            link.close()
        self._links.clear()

    def _outputs(self, link: WorkerLink, slot: Slot[Work], done: Done) -> list[Output]:
        if done.status != STATUS_OK:
            return []
        return checked_outputs(
            link.layout.outputs, link.outputs[slot.index], done.outputs, slot.rows, batched=self._batched
        )

    def _answer(self, slot: Slot[Work], done: Done, outputs: list[Output], sent: float) -> None:
        if done.status == STATUS_OK:
            most = int((time.monotonic() - sent) * 1e9)
            times = (min(done.input_ns, most), min(done.infer_ns, most), min(done.output_ns, most))
            self._statistics.executed(slot.rows, len(slot.entries), times, int(time.time() * 1000))
            for work in slot.entries:
                try:
                    work.answer(outputs, slot.rows, sent)
                except Exception as error:  # noqa: BLE001 - one request's answer must not cost the others theirs
                    _log.error("answer", exc_info=error)
                    work.fail(HermeticError(f"answer: {error}"))
            return
        failure = _failure(done, mixed=not slot.key.tenant)
        for work in slot.entries:
            work.fail(failure)

    def _wipe(self, link: WorkerLink, slot: Slot[Work], done: Done) -> None:
        for view, filled in zip(link.inputs[slot.index], slot.filled, strict=True):
            wipe(view[:filled])
        if done.status == STATUS_OK:
            for view, tensor in zip(link.outputs[slot.index], done.outputs, strict=True):
                wipe(view[: tensor.nbytes])
        else:  # it may have written anywhere before it failed
            for view in link.outputs[slot.index]:
                wipe(view)

    def _copy_in(self, work: Work) -> None:
        slot = work.slot
        if slot is None:
            return
        link = self._links[slot.instance]
        for view, offset, data in zip(link.inputs[slot.index], work.offsets, work.raw, strict=True):
            view[offset : offset + len(data)] = data
        work.raw = ()
        work.copied()

    def _close_gap(self, removal: Removal) -> None:
        link = self._links[removal.slot.instance]
        for view, (start, length, end) in zip(link.inputs[removal.slot.index], removal.gaps, strict=True):
            view[start : end - length] = view[start + length : end]
            wipe(view[end - length : end])

    def _fill_and_run(self) -> None:
        if self._batcher.waiting:
            for work in self._batcher.place_waiting():
                self._copy_in(work)
        self._run_ready()
        if self._on_idle is not None and self.idle:
            action, self._on_idle = self._on_idle, None
            action()

    def _run_ready(self) -> None:
        self._run_posted = False
        now = time.monotonic()
        for slot in self._batcher.take_ready(now):
            self._send(slot, now)
        moment = self._batcher.next_moment()
        if moment is not None and not now < self._alarm <= moment:
            self._alarm = moment
            self._wake_at(moment, self._fill_and_run)

    def _send(self, slot: Slot[Work], now: float) -> None:
        link = self._links[slot.instance]
        self._sequence += 1
        rows = (slot.rows,) if self._batched else ()
        tensors = [Tensor(filled, rows + shape) for filled, shape in zip(slot.filled, slot.key.row_shapes, strict=True)]
        link.running[slot.index] = (slot, self._sequence, now)
        try:
            link.channel.send(encode_batch(slot.index, self._sequence, tensors))
        except (BorderError, OSError) as error:  # a full socket too: an honest worker reads its few batches
            failure = WorkerLostError(f"worker: {error}")
            self._wake_at(now, lambda: self.lost(link, failure))


def _failure(done: Done, *, mixed: bool) -> HermeticError:
    """Return what the requests of a batch that failed are told.

    The worker's words may quote any row of the batch, so a caller hears them only where all rows are its own tenant's,
    and no record has them.
    """
    if done.status != STATUS_REFUSED:
        return HermeticError("the model failed on this batch")
    return InvalidRequestError("the model refused the input" if mixed else f"the model refused the input: {done.text}")
