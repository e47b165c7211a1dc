"""Batches on a GPU: at least two at a time, so that copying, computing and answering overlap.

    start    inputs go to the GPU, on the batch's own stream
    launch   the runtime computes: at once where it can, else when it is the batch's turn
    finish   outputs come back to where the front end reads them; all of it is wiped

Which way tensors travel is device_batch.py's: directly from and to the memory that is shared with a front end, which is
page-locked when that attaches and unlocked before it is unmapped; or joined, where small transfers are slow.
So a front end's buffer must stay as it is until its batch is answered, and its memory until `detach`. What it changes
there meanwhile changes its own rows: nothing that is checked here is read from there again.

Batches are finished in the order of their start. Two are in the runtime at once only where both are known to be of one
tenant (device_memory.py, rule 4); without that the next one's inputs travel while one is computed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hermetic.enclave.batch_frames import Batch, Tensor, encode_done
from hermetic.enclave.batch_runner import BatchBorder, SharedBuffers, not_done
from hermetic.enclave.device_batch import DeviceBatch, Wanted, Way, rounded
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import Transfers
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.model_tensors import inputs_of
from hermetic.enclave.runtimes.interface import Input, Output
from hermetic.enclave.runtimes.interface_on_device import (
    DeviceAnswer,
    DeviceInput,
    DeviceOutput,
    DeviceRuntime,
    Launched,
    nbytes_of,
)
from hermetic.errors import DeviceError, ModelFormatError

__all__ = ["BATCHES_AT_ONCE", "DeviceRunner", "Pending"]

BOOL: Final = "BOOL"
BATCHES_AT_ONCE: Final = 2
LOCKED_LIMIT: Final = 1 << 30
"""Bytes of one front end's memory that are page-locked, and so cannot be paged out; larger ones are staged."""


@dataclass(slots=True, eq=False)
class _Slot:
    """Memory for one batch at a time, and what checks it."""

    place: DeviceBatch
    border: BatchBorder


@dataclass(slots=True, eq=False)
class Pending:
    """A batch between `start` and `finish`."""

    batch: Batch
    slot: _Slot
    tenant: bytes | None
    started_ns: int
    copied_ns: int = 0
    wipe_ns: int = 0
    inputs: list[DeviceInput] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    launched: Launched | None = None
    refusal: bytes | None = None


class DeviceRunner:
    """A loaded model on a GPU with memory for `BATCHES_AT_ONCE` batches.

    `run` is for whoever has one batch at a time; `start` and `finish` are for whoever has more. A `DeviceError` that
    comes out of any of them is final: memory could not be wiped, and the worker has to end.
    """

    def __init__(
        self,
        runtime: DeviceRuntime,
        description: ModelDescription,
        memory: DeviceMemory,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        transfers: Transfers = "separate",
    ) -> None:
        """`clock`: nanoseconds, of what is told of each batch. `transfers`: one for each tensor, or joined."""
        self._joined = transfers == "joined"
        self._locked: set[int] = set()  # where shared memory begins that is page-locked
        self._clock = clock
        self._runtime = runtime
        self._memory = memory
        inputs = inputs_of(description)
        self._index = {tensor.own.name: at for at, tensor in enumerate(inputs)}
        # A BOOL is put right on the way, so not where the front end could spoil it again.
        self._direct = frozenset(at for at, tensor in enumerate(inputs) if tensor.own.datatype != BOOL)
        places = [memory.batch(len(self._index)) for _ in range(BATCHES_AT_ONCE)]
        for place in places:
            runtime.prepare(place.stream)
        self._free = [_Slot(place, BatchBorder(description, place)) for place in places]
        self._pending: list[Pending] = []

    @property
    def has_room(self) -> bool:
        """Whether one more batch can be started."""
        return bool(self._free)

    @property
    def is_clean(self) -> bool:
        """Whether what the runtime keeps for later is wiped."""
        return self._memory.is_clean

    def wipe_kept(self) -> None:
        """Wipe what the runtime keeps for later, where no batch is under way: nobody knows whose the next will be."""
        if not self._pending:
            self._memory.wipe_free_blocks()

    def attach(self, buffers: SharedBuffers) -> None:
        """Have a front end's memory page-locked, so that the device can reach it. Where it cannot be, it is staged."""
        address, nbytes = buffers.extent
        if not self._joined and nbytes <= LOCKED_LIMIT and self._memory.lock(address, nbytes):
            self._locked.add(address)

    def detach(self, buffers: SharedBuffers) -> None:
        """Let go of a front end's memory, before it is unmapped. None of its batches may be under way.

        Raises `DeviceError` where the device does not: then the memory must stay as it is, until the worker has ended.
        """
        address, _ = buffers.extent
        if address in self._locked:
            self._memory.unlock(address)
            self._locked.discard(address)

    def run(self, batch: Batch, buffers: SharedBuffers) -> bytes:
        """Return the frame that answers `batch`. Raises `BorderError` as `start` does."""
        return self.finish(self.start(batch, buffers))

    def start(self, batch: Batch, buffers: SharedBuffers, tenant: bytes | None = None) -> Pending:
        """Begin with a batch, whose buffer must stay until it is answered. `tenant`: whose it is, None: nobody knows.

        Raises `BorderError` where the frame points outside of what the layout allows; nothing has begun then.
        """
        if not self._free:
            raise DeviceError(f"GPU: wanted at most {BATCHES_AT_ONCE} batches at once, got another")
        slot = self._free[-1]
        started = self._clock()
        slot.border.check_frame(batch, buffers.layout)
        slot.place.prepare(tenant, self._way(batch, buffers))
        self._free.pop()
        pending = Pending(batch, slot, tenant, started)
        self._pending.append(pending)
        try:
            inputs, pending.outputs = slot.border.take(batch, buffers)
            pending.inputs = [self._uploaded(slot, given) for given in inputs]
            pending.copied_ns = self._clock()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this batch's
            self._refuse(pending, error)
        else:
            if not self._runtime.synchronous and self._may_launch(pending):
                self._launch(pending)
        return pending

    def finish(self, pending: Pending) -> bytes:
        """Return the frame that answers a batch; those that were started before it must have been finished."""
        if pending.refusal is None and pending.launched is None:
            self._launch(pending)
        tensors: list[Tensor] = []
        try:
            if pending.refusal is None:
                tensors = self._answer(pending)
        except Exception as error:  # noqa: BLE001 - a model's answer that does not fit ends this batch only
            pending.refusal = not_done(pending.batch, error)
        ran = self._clock()
        self._release(pending)
        ended = self._clock()
        if pending.refusal is not None:
            return pending.refusal
        batch, began, copied = pending.batch, pending.started_ns, pending.copied_ns
        told = (copied - began, ran - copied, ended - ran, pending.wipe_ns, pending.slot.place.unlocked_bytes)
        return encode_done(batch.buffer, batch.sequence, tensors, *told)

    def close(self) -> None:
        """Give up the runtime. Memory goes with `DeviceMemory.unload`."""
        self._runtime.close()

    def _release(self, pending: Pending) -> None:
        """Wipe what a batch has left, and let the next one on."""
        # What the answers lie in goes back to the runtime's cache before anything else enters the runtime.
        pending.launched = None
        if pending.slot.place.in_flight:
            began = self._clock()
            pending.slot.place.forget(failed=pending.refusal is not None)
            pending.wipe_ns += self._clock() - began
        self._pending.remove(pending)
        self._free.append(pending.slot)
        waiting = next((one for one in self._pending if one.launched is None and one.refusal is None), None)
        if waiting is not None and not self._runtime.synchronous and self._may_launch(waiting):
            self._launch(waiting)

    def _way(self, batch: Batch, buffers: SharedBuffers) -> Way:
        if self._joined:
            wanted = sum(rounded(tensor.nbytes) for tensor in batch.inputs)
            capacity = sum(rounded(region.capacity) for region in buffers.layout.inputs)
            return Way(joined_bytes=wanted, joined_capacity=capacity)
        return Way(self._direct, direct_outputs=True, locked=buffers.extent[0] in self._locked)

    def _uploaded(self, slot: _Slot, given: Input) -> DeviceInput:
        address = slot.place.upload(self._index[given.spec.name])
        return DeviceInput(given.spec, given.shape, len(given.view), address)

    def _may_launch(self, pending: Pending) -> bool:
        """Whether a batch may enter the runtime beside those that are there (rule 4)."""
        others = [one for one in self._pending if one is not pending and one.launched is not None]
        return not others or self._memory.is_same(pending.tenant)

    def _launch(self, pending: Pending) -> None:
        place = pending.slot.place
        try:
            began = self._clock()
            place.enter()
            pending.wipe_ns += self._clock() - began
            if self._runtime.synchronous:
                place.settle()
            targets = _targets(place, pending.outputs)
            pending.launched = self._runtime.launch(pending.inputs, targets, place.stream)
            place.fetch(_wanted(pending.outputs, pending.launched.answers))
        except Exception as error:  # noqa: BLE001 - whatever a model makes a runtime raise ends this batch only
            self._refuse(pending, error)

    def _refuse(self, pending: Pending, error: Exception) -> None:
        """Answer with `error` and wipe at once. Where memory cannot be wiped any more, that is raised instead."""
        pending.refusal = not_done(pending.batch, error)
        pending.launched = None
        pending.slot.place.forget(failed=True)

    def _answer(self, pending: Pending) -> list[Tensor]:
        """Wait until outputs are where the front end reads them; return them as it sees them."""
        launched = pending.launched
        pending.slot.place.settle()
        answers = launched.answers if launched is not None else ()
        pending.slot.place.deliver()
        tensors = [Tensor(answer.nbytes, answer.shape) for answer in answers]
        return pending.slot.border.checked(tensors)


def _targets(place: DeviceBatch, outputs: Sequence[Output]) -> list[DeviceOutput]:
    """Return where the runtime puts outputs: known beforehand where their shapes are."""
    known = [output for output in outputs if output.shape is not None]
    sizes = [nbytes_of(output.spec.datatype, output.shape or ()) for output in known]
    places = iter(place.outputs(sizes))
    return [
        DeviceOutput(output.spec, output.shape, len(output.view), 0 if output.shape is None else next(places))
        for output in outputs
    ]


def _wanted(outputs: Sequence[Output], answers: Sequence[DeviceAnswer]) -> list[Wanted]:
    """Return where each answer goes. Raises `ModelFormatError` for one that is larger than its place."""
    wanted = []
    for output, answer in zip(outputs, answers, strict=True):
        if answer.nbytes > len(output.view):
            raise ModelFormatError(
                f"output {output.spec.name!r}: wanted at most {len(output.view)} bytes, got {answer.nbytes}"
            )
        wanted.append(Wanted(answer.address, answer.nbytes, output.address))
    return wanted
