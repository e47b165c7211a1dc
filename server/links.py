"""The links between front ends and workers: a data channel and shared memory for each pair, made, lost and made anew.

A worker that is busy answers only after its batch, so it is asked in a thread of its own; what comes of it is an event
in the supervisor's loop, which alone owns the state.
"""

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from hermetic.enclave.batch_frames import DATA_FRAME_LIMIT, largest_data_frame
from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import data_channel, shared_memory
from hermetic.enclave.supervisor import Worker
from hermetic.errors import ConfigurationError, HermeticError, WorkerLostError
from hermetic.server.cpu_plan import UNPLANNED
from hermetic.server.event_loop import Event
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import Generation, Instance
from hermetic.server.link_ledger import LinkLedger
from hermetic.server.messages import ANSWER_WITHIN_S, LinkLost, ModelReady
from hermetic.server.surroundings import Surroundings

LARGEST_NUMBER: Final = 2**63  # of an instance, a link or a generation: longer in a frame than any that there will be
BROKEN_LINKS: Final = "it was replaced, as its links to front ends broke again and again"
ANSWER_MARGIN_S: Final = 15  # beyond what a worker may take over all batches that it has: the watchdog comes first


@dataclass(frozen=True, slots=True)
class _Made:
    """What came of one attempt: the front end's descriptors (data channel, memory), or why there are none."""

    front_end: FrontEnd
    descriptors: tuple[int, int] | None
    error: HermeticError | None = None

    def close(self) -> None:
        for descriptor in self.descriptors or ():
            os.close(descriptor)


class Links:
    """Makes links."""

    def __init__(self, around: Surroundings, on_worker_lost: Callable[[Generation, Instance, Worker], None]) -> None:
        """`on_worker_lost` is told of a worker that has ended, in the loop."""
        self._loop = around.loop
        self._front_ends = around.front_ends
        self._record = around.record
        self._on_worker_lost = on_worker_lost
        self._ledger = LinkLedger()

    def connect(
        self, generation: Generation, instance: Instance, front_ends: Sequence[FrontEnd], then: Event = lambda: None
    ) -> None:
        """Begin to link a worker with these front ends; `then` runs when each is linked, or has failed."""
        worker = instance.worker
        if worker is None or not front_ends:
            then()
            return
        self._loop.in_thread(partial(self._attach_in_thread, generation, instance, worker, tuple(front_ends), then))

    def lost(self, generation: Generation, front_end: FrontEnd, frame: LinkLost) -> None:
        """A front end has given up a link. Word of one that it does not have, or of a dead worker, changes nothing."""
        if frame.instance >= len(generation.instances):
            return
        instance = generation.instances[frame.instance]
        if instance.links.get(front_end.pid) != frame.link or instance.worker is None:
            return
        del instance.links[front_end.pid]
        about = {**generation.names(), "instance": instance.number, "front-end": front_end.pid}
        self._record("link.lost", {**about, "reason": frame.reason})
        if not _has_ended(instance.worker):  # else its end is an event that follows
            self._failed(generation, instance, front_end)

    def forget(self, pid: int) -> None:
        """A worker or front end has ended."""
        self._ledger.forget(pid)

    def _attach_in_thread(
        self,
        generation: Generation,
        instance: Instance,
        worker: Worker,
        front_ends: Sequence[FrontEnd],
        then: Event,
    ) -> Event:
        made: list[_Made] = []
        within_s = answer_within_s(generation, instance, len(self._front_ends))
        for front_end in front_ends:
            made.append(_attach(generation, worker, front_end, within_s))
            if isinstance(made[-1].error, WorkerLostError):
                break
        return partial(self._attached, generation, instance, worker, made, then)

    def _attached(
        self, generation: Generation, instance: Instance, worker: Worker, made: Sequence[_Made], then: Event
    ) -> None:
        for one in made:
            alive = self._front_ends.get(one.front_end.pid) is one.front_end
            if instance.worker is worker and generation.takes_links and alive:
                self._hand_over(generation, instance, worker, one)
            one.close()
        then()

    def _hand_over(self, generation: Generation, instance: Instance, worker: Worker, made: _Made) -> None:
        front_end = made.front_end
        if made.descriptors is not None:
            instance.links_made += 1
            instance.links[front_end.pid] = instance.links_made
            within_s = answer_within_s(generation, instance, len(self._front_ends))
            front_end.send(ready_frame(generation, instance, within_s), made.descriptors)
            return
        about = {**generation.names(), "instance": instance.number, "front-end": front_end.pid}
        self._record("model.not-connected", {**about, "text": str(made.error)})
        if isinstance(made.error, WorkerLostError):
            self._on_worker_lost(generation, instance, worker)
        else:  # it lives, and serves its other front ends
            self._failed(generation, instance, front_end)

    def _failed(self, generation: Generation, instance: Instance, front_end: FrontEnd) -> None:
        """A link is not there, and both sides live: make it anew, or replace who counts as bad."""
        worker = instance.worker
        if worker is None or not generation.takes_links:
            return
        verdict = self._ledger.failed(worker.pid, front_end.pid, generation.key[0], time.monotonic())
        if verdict.act == "renew":
            again = partial(self._renew, generation, instance, worker, front_end)
            self._loop.call_at(time.monotonic() + verdict.delay_s, again)
        elif verdict.act == "replace worker":
            self._record("worker.replaced", {**generation.names(), "instance": instance.number, "pid": worker.pid})
            instance.fault = BROKEN_LINKS
            worker.end()  # its end is an event that follows, and another is started
        else:
            self._record(
                "front-end.replaced",
                {"pid": front_end.pid, "reason": "workers of several models lost links to it"},
            )
            front_end.end()

    def _renew(self, generation: Generation, instance: Instance, worker: Worker, front_end: FrontEnd) -> None:
        alive = self._front_ends.get(front_end.pid) is front_end
        if alive and instance.worker is worker and generation.takes_links and front_end.pid not in instance.links:
            self.connect(generation, instance, [front_end])


def check_can_be_linked(generation: Generation, front_ends: int, front_end_memory: int) -> None:
    """Raise what would fail only when a worker that took long to load meets its front ends.

    `BorderError` where the description is too large to be told to one, whatever is counted; `ConfigurationError` where
    a batch's frame is, or the shared memory for the worker, for `front_ends` of them, or for one, which may map
    `front_end_memory` bytes.
    """
    most = {"instance": LARGEST_NUMBER, "link": LARGEST_NUMBER, "generation": LARGEST_NUMBER}
    ready_frame(generation).model_copy(update=most).encode()
    if generation.is_ensemble:
        return
    description, settings = generation.description(), generation.file.settings
    frame = largest_data_frame(description)
    if frame > DATA_FRAME_LIMIT:
        raise ConfigurationError(
            f"model {description.name}: wanted tensors that a frame of {DATA_FRAME_LIMIT} bytes can describe, "
            f"got {frame} bytes: fewer inputs and outputs, or of fewer dimensions"
        )
    size = layout(description, settings.buffers, settings.variable_tensor_bytes).size
    what = f"model {description.name}: wanted shared memory of at most"
    if front_ends * size > settings.memory_limit_bytes:
        raise ConfigurationError(
            f"{what} memory_limit_bytes ({settings.memory_limit_bytes}), got {front_ends} x {size} bytes: "
            "raise it, or lower max_batch_size or buffers"
        )
    if size > front_end_memory:
        raise ConfigurationError(
            f"{what} limits.front_end_memory_bytes ({front_end_memory}), got {size} bytes: "
            "raise it, or lower max_batch_size or buffers"
        )


def answer_within_s(generation: Generation, instance: Instance | None, front_ends: int) -> float:
    """Return after how many seconds nobody waits for a worker any more: all batches that it may have take their limit.

    Where the worker is slow the watchdog ends it before that; what is left is one that takes batches and says nothing.
    """
    place = UNPLANNED if instance is None or instance.place is None else instance.place
    batches = place.batches_in_flight * max(1, front_ends)
    return (batches + 1) * generation.file.settings.batch_timeout_s + ANSWER_MARGIN_S


def _attach(generation: Generation, worker: Worker, front_end: FrontEnd, within_s: float) -> _Made:
    """Ask a worker to serve a front end; blocks while it is busy."""
    settings = generation.file.settings
    try:
        size = layout(worker.description, settings.buffers, settings.variable_tensor_bytes).size
        memory = shared_memory(size)
    except (HermeticError, OSError) as error:
        return _Made(front_end, None, ConfigurationError(f"shared memory: {error}"))
    try:
        front_end_side, worker_side = data_channel()
    except OSError as error:
        os.close(memory)
        return _Made(front_end, None, ConfigurationError(f"data channel: {error}"))
    made = _Made(front_end, (front_end_side, memory))
    try:
        worker.attach(
            worker_side,
            memory,
            front_end=front_end.pid,
            buffers=settings.buffers,
            variable_tensor_bytes=settings.variable_tensor_bytes,
            timeout_s=within_s,
        )
    except HermeticError as error:
        made.close()
        return _Made(front_end, None, error)
    finally:
        os.close(worker_side)
    return made


def ready_frame(
    generation: Generation, instance: Instance | None = None, within_s: float = ANSWER_WITHIN_S
) -> ModelReady:
    """Return what a front end is told of one instance of a model; of an ensemble, which has none, alone."""
    settings = generation.file.settings
    place = instance.place if instance is not None and instance.place is not None else UNPLANNED
    return ModelReady(
        description=generation.description(),
        generation=generation.number,
        instance=0 if instance is None else instance.number,
        link=0 if instance is None else instance.links_made,
        buffers=settings.buffers,
        batches_in_flight=place.batches_in_flight,
        variable_tensor_bytes=settings.variable_tensor_bytes,
        max_queue_delay_us=settings.max_queue_delay_us,
        requests_waiting=settings.requests_waiting,
        answer_within_s=within_s,
    )


def _has_ended(worker: Worker) -> bool:
    waiting = select.poll()
    waiting.register(worker.pidfd, select.POLLIN)
    return bool(waiting.poll(0))
