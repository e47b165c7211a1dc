"""Ends generations of models: front ends let go of one first, then its workers wipe themselves and end.

A generation comes here to stop, or because it could not be loaded whole; whoever waits for it is told once nothing of
it is left. What is loaded, and why something ends, is model_keeper.py's. Event loop's thread only, but for the wait for
a worker that wipes itself.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from hermetic.enclave.supervisor import Worker
from hermetic.errors import BrokerUnreachableError, HermeticError, LeaseRefusedError, WorkerLostError
from hermetic.server.event_loop import Event
from hermetic.server.generation import Generation, Instance, to_nobody
from hermetic.server.messages import ModelStop
from hermetic.server.repository import Repository, Slot
from hermetic.server.starting import Starting
from hermetic.server.stops import Stops
from hermetic.server.surroundings import Surroundings

__all__ = ["PASSING", "Unloading", "words_of"]

UNLOAD_TIMEOUT_S: Final = 20
PASSING: Final = (BrokerUnreachableError, LeaseRefusedError, WorkerLostError)
"""Why a load may fail today and work tomorrow: it is tried again. Everything else is somebody's decision."""


class Unloading:
    """Every worker that serves is here, from `add` until it is lost or told to go."""

    def __init__(
        self, repository: Repository, starting: Starting, stops: Stops, around: Surroundings, patience_s: float
    ) -> None:
        """`patience_s` is how long a front end may take to let go of a model."""
        self.workers: set[Worker] = set()
        self.on_leaving: Callable[[Worker], None] = lambda _: None
        """Told of each worker that is gone, or told to go."""
        self.on_passing: Callable[[Slot], None] = lambda _: None
        """Told of a version whose load failed for a reason that may pass."""
        self._repository = repository
        self._starting = starting
        self._stops = stops
        self._loop = around.loop
        self._front_ends = around.front_ends
        self._record = around.record
        self._publish = around.publish
        self._patience_s = patience_s

    def lose(self, worker: Worker) -> str | None:
        """Look after a worker no more, which ended unasked or is told to; returns why the watchdog ended it, if so."""
        self._loop.forget(worker.pidfd)
        self.workers.discard(worker)
        self.on_leaving(worker)
        return self._stops.forget(worker)

    def fail(self, slot: Slot, generation: Generation, error: HermeticError) -> None:
        """End a generation that does not come: one of its instances cannot be loaded, or nobody wants it any more."""
        generation.phase, generation.error = "failed", error
        for instance in generation.instances:
            self.wipe(slot, generation, instance)

    def stop(self, slot: Slot, generation: Generation) -> None:
        """Have every front end let go of a generation, and wipe it then."""
        generation.phase = "stopping"
        generation.waiting_for_front_ends = set(self._front_ends)
        slot.going.append(generation)
        for instance in generation.instances:
            instance.restart_at = None
        name, version = generation.key
        for front_end in self._front_ends.values():
            front_end.send(ModelStop(name=name, version=version, generation=generation.number))
        self._loop.call_at(time.monotonic() + self._patience_s, partial(self._out_of_patience, generation))
        self._wipe_if_let_go(slot, generation)

    def let_go(self, slot: Slot, generation: Generation, pid: int) -> None:
        """The front end `pid` holds nothing of this generation any more; after the last one its workers go."""
        if pid in generation.waiting_for_front_ends:
            generation.waiting_for_front_ends.discard(pid)
            self._wipe_if_let_go(slot, generation)

    def wipe(self, slot: Slot, generation: Generation, instance: Instance, timeout_s: float = UNLOAD_TIMEOUT_S) -> None:
        """Have one worker, if there is one, wipe itself and end; it is killed where that takes too long."""
        worker = instance.worker
        if worker is not None and worker in self.workers:
            self.lose(worker)
            self._loop.in_thread(partial(self._wipe_in_thread, slot, generation, instance, worker, timeout_s))

    def look_whether_gone(self, slot: Slot, generation: Generation) -> None:
        """Where nothing is left of a generation that stops or has failed: tell."""
        if not generation.over or generation.waiting_for_front_ends:
            return
        reply, generation.reply = generation.reply, to_nobody
        if generation.phase == "stopping" and generation in slot.going:
            slot.going.remove(generation)
            self._record("model.unloaded", {**generation.names(), "wiped": generation.wiped})
            self._repository.tidy()
            self._publish()
            reply(None)
        elif generation.phase == "failed" and slot.coming is generation:
            error = generation.error or WorkerLostError("no worker")
            slot.failed(words_of(error))
            if isinstance(error, PASSING):
                self.on_passing(slot)
            self._repository.tidy()
            self._publish()
            reply(error)

    def _out_of_patience(self, generation: Generation) -> None:
        """A front end that does not let go of a model in time is ended: its end lets go of everything."""
        for pid in generation.waiting_for_front_ends:
            if pid in self._front_ends:
                self._record("front-end.stuck", {**generation.names(), "pid": pid})
                self._front_ends[pid].end()

    def _wipe_if_let_go(self, slot: Slot, generation: Generation) -> None:
        if generation.waiting_for_front_ends:
            return
        for instance in generation.instances:
            self.wipe(slot, generation, instance)
        self.look_whether_gone(slot, generation)

    def _wipe_in_thread(
        self, slot: Slot, generation: Generation, instance: Instance, worker: Worker, timeout_s: float
    ) -> Event:
        wiped = worker.unload(timeout_s)
        return partial(self._wiped, slot, generation, instance, wiped=wiped)

    def _wiped(self, slot: Slot, generation: Generation, instance: Instance, *, wiped: bool) -> None:
        instance.given_up()
        self._starting.give_place_back(instance)
        generation.wiped &= wiped
        self.look_whether_gone(slot, generation)


def words_of(error: HermeticError) -> str:
    """Return what a status page says of an error."""
    return f"{type(error).__name__}: {error}"
