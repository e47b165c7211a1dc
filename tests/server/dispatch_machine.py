"""A dispatcher with real shared memory, and workers, clock and callers in the hands of a test.

The workers echo: what they are sent is what they answer. Every request has bytes of its own, so that an answer tells
whose rows it was cut from. `check` looks at every byte of every buffer.
"""

import mmap
from collections.abc import Callable, Sequence
from typing import Any

from hermetic.enclave.batch_frames import STATUS_FAILED, Batch, decode_batch, encode_done, encode_not_done
from hermetic.enclave.buffers import BufferLayout, layout
from hermetic.enclave.channel import Channel
from hermetic.enclave.configuration import ModelConfiguration
from hermetic.errors import HermeticError, WorkerLostError
from hermetic.server.dispatch import Dispatcher
from hermetic.server.foreign import ForeignMemory
from hermetic.server.messages import ModelReady
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.scheduling import new_scheduler
from hermetic.server.shaping import Shaping
from hermetic.server.slots import FORMING, FREE, RUNNING, Key, Slot, Wishes
from hermetic.server.statistics import ModelStatistics
from hermetic.server.work import Work
from hermetic.server.worker_link import WorkerLink
from tests.server.far_side import description

MAX_ROWS = 4
WAITING = 6
VARIABLE_BYTES = 60


class Request(Work):
    """A request: each byte of its rows is `serial`."""

    def __init__(self, serial: int, key: Key, rows: int, arrived: float, wishes: Wishes) -> None:
        width = key.row_shapes[0][0]
        super().__init__(key, rows, [bytes([serial] * (4 * rows * width)), bytes([serial] * rows)], arrived, wishes)
        self.serial = serial
        self.outcomes: list[Any] = []
        self.wiped = False
        self.ended = False  # the caller is gone
        self.on_end: Callable[[Request], None] = lambda _: None
        self.on_failure: Callable[[Request], None] = lambda _: None

    def forget_rows(self) -> None:
        copies = [data for data in self.raw if isinstance(data, bytearray)]
        super().forget_rows()
        assert not any(map(any, copies))

    def copied(self) -> None:
        self.wiped = True

    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        if self.ended:
            return
        self.outcomes.append([bytes(cut_rows(output, self.row, self.rows, total_rows)[1]) for output in outputs])
        self.on_end(self)

    def fail(self, error: HermeticError) -> None:
        if not self.ended:
            self.outcomes.append(error)
            self.on_failure(self)
        self.forget_rows()
        self.copied()


class Wire(Channel):
    """The front end's end of a data socket: what was sent and not answered yet, in order."""

    def __init__(self) -> None:
        self.sent: list[Batch] = []

    def send(self, frame: bytes, _descriptors: Sequence[int] = ()) -> None:
        self.sent.append(decode_batch(frame))

    def close(self) -> None:
        self.sent.clear()


class Stage:
    """The dispatcher under test, with everything around it."""

    def __init__(self, configuration: ModelConfiguration, *, delay_us: int | None = None) -> None:
        inputs = (("INPUT0", "FP32", (-1,)), ("INPUT1", "UINT8", (1,)))
        self.ready = ModelReady(
            description=description("m", inputs=inputs, max_batch_size=MAX_ROWS, configuration=configuration),
            instance=0,
            buffers=3,
            batches_in_flight=2,
            variable_tensor_bytes=VARIABLE_BYTES,
            max_queue_delay_us=delay_us,
            requests_waiting=WAITING,
        )
        self.place: BufferLayout = layout(self.ready.description, self.ready.buffers, VARIABLE_BYTES)
        self.now = 1.0
        self.in_flight = 2  # batches of one worker
        self.posted: list[Callable[[], None]] = []
        self.alarms: list[tuple[float, Callable[[], None]]] = []
        self.statistics = ModelStatistics()
        self.scheduler = new_scheduler(self.ready, self.place)
        self.dispatcher = Dispatcher(
            self.scheduler,
            self.statistics,
            self.posted.append,
            lambda moment, action: self.alarms.append((moment, action)),
            shaping=Shaping(batched=True),
            clock=lambda: self.now,
        )
        self.links: list[tuple[WorkerLink, Wire, mmap.mmap]] = []
        self.requests: list[Request] = []
        self.answered: list[Request] = []
        self.sent: list[Request] = []
        self.cancelled: set[Request] = set()

    def attach(self) -> None:
        """A new worker."""
        wire, memory = Wire(), mmap.mmap(-1, self.place.size)
        link = self.dispatcher.attach(wire, ForeignMemory(memory), self.place, self.in_flight)
        self.links.append((link, wire, memory))
        self.settle()

    def kill(self, at: int) -> None:
        """A worker dies."""
        link, _, memory = self.links.pop(at)
        self.dispatcher.lost(link, WorkerLostError("killed"))
        assert memory.closed
        self.settle()

    def submit(self, tenant: str, width: int, rows: int, priority: int = 0, timeout_us: int = 0) -> Request:
        """A caller's request; whatever refuses it raises."""
        serial = 1 + len(self.requests) % 255
        key = Key(tenant, ((width,), (1,)))
        request = Request(serial, key, rows, self.now + 1e-9 * len(self.requests), Wishes(priority, timeout_us))
        request.on_end = self.answered.append
        self.dispatcher.submit(request)
        self.requests.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """The caller goes away, as Inference.cancel does it."""
        self.cancelled.add(request)
        request.ended = True
        self.dispatcher.cancel(request)
        if not request.wiped or request.raw:
            request.forget_rows()
            request.copied()
        self.settle()

    def wait(self, seconds: float) -> None:
        """Time passes; what is due is done."""
        end = self.now + seconds
        while due := [each for each in self.alarms if each[0] <= end]:
            first = min(due, key=lambda each: each[0])
            self.alarms.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
            self.settle()
        self.now = end

    def settle(self) -> None:
        """Run what was posted."""
        while self.posted:
            self.posted.pop(0)()

    def answer(self, at: int, which: int = 0, *, failed: bool = False, settle: bool = True) -> None:
        """A worker answers one of its batches; without `settle` the rest of what follows is for `step`."""
        link, wire, memory = self.links[at]
        batch = wire.sent.pop(which)
        view = memoryview(memory)[batch.buffer * self.place.stride :]
        for source, target, tensor in zip(self.place.inputs, self.place.outputs, batch.inputs, strict=True):
            data = view[source.offset : source.offset + tensor.nbytes]
            view[target.offset : target.offset + tensor.nbytes] = data
        view.release()
        if failed:
            frame = encode_not_done(batch.buffer, batch.sequence, STATUS_FAILED, "broken")
        else:
            frame = encode_done(batch.buffer, batch.sequence, batch.inputs, 1, 1, 1)
        self.dispatcher.received(link, frame)
        if settle:
            self.settle()

    def step(self) -> None:
        """Run what was posted first: one turn's part of it."""
        self.posted.pop(0)()

    def finish(self) -> None:
        """Answer everything, with at least one worker."""
        self.settle()
        if not self.links:
            self.attach()
        self.wait(1000.0)
        for _ in range(10 * len(self.requests) + 10):
            for at, (_, wire, _) in enumerate(self.links):
                while wire.sent:
                    self.answer(at)
            self.wait(1000.0)
        assert self.dispatcher.idle

    def check(self) -> None:
        """Look at everything that must always hold."""
        placed: list[Request] = []
        for link, wire, memory in self.links:
            instance = link.instance
            states = [slot.state for slot in instance.slots]
            assert states.count(RUNNING) == instance.running == len(wire.sent) <= instance.in_flight
            assert states.count(FORMING) == len(instance.forming)
            assert states.count(FREE) == len(instance.free)
            for slot in instance.slots:
                self._check_slot(slot, memory)
                placed += [entry for entry in slot.entries if isinstance(entry, Request)]
        assert len(placed) == len(set(placed))
        self._check_nobody_is_idle()
        live = [each for each in self.requests if not each.outcomes and each not in self.cancelled]
        waits = [each for each in live if each.slot is None]
        early = [each for each in live if each.slot is not None and each not in placed]  # answered, not its turn yet
        assert len(waits) == self.scheduler.waiting
        assert all(each.wiped for each in early)
        assert not early or self.scheduler.ordered
        for each in self.requests:
            assert len(each.outcomes) <= 1
            if each.outcomes and isinstance(each.outcomes[0], list):
                assert each.outcomes[0][0] == bytes([each.serial] * len(each.outcomes[0][0]))
                assert [len(data) for data in each.outcomes[0]] == list(each.lengths)
            if each.outcomes or each in self.cancelled:
                assert each.wiped
                assert not each.raw

    def _check_nobody_is_idle(self) -> None:
        """No worker has nothing to do while another has more than it can run."""
        if self.posted:
            return
        instances = [link.instance for link, _, _ in self.links]
        room = [one for one in instances if one.running < one.in_flight]
        due = [slot for one in instances if one not in room for slot in one.forming if self._is_due(slot)]
        assert not due or all(one.forming or not one.free for one in room)

    def _is_due(self, slot: Slot[Any]) -> bool:
        delay_s = (self.ready.max_queue_delay_us or 0) / 1e6
        return slot.closed or not delay_s or self.now >= slot.opened + delay_s

    def _check_slot(self, slot: Slot[Any], memory: mmap.mmap) -> None:
        assert slot.rows == sum(entry.rows for entry in slot.entries) <= MAX_ROWS
        assert {entry.key for entry in slot.entries} <= {slot.key}
        start = slot.index * self.place.stride
        expected = bytearray(self.place.stride)
        row = 0
        for entry in slot.entries:
            assert entry.row == row
            row += entry.rows
            for region, offset, length in zip(self.place.inputs, entry.offsets, entry.lengths, strict=True):
                at = region.offset + offset
                assert offset + length <= region.capacity
                assert not any(expected[at : at + length])
                expected[at : at + length] = bytes([entry.serial] * length)
        assert memory[start : start + self.place.stride] == expected  # nothing of anyone else anywhere
