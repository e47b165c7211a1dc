"""Batches on a GPU: at least two at a time, so that copying, computing and answering overlap.

    start    inputs are copied to page-locked memory, and on to the GPU, on the batch's own stream
    launch   the runtime computes: at once where it can, else when it is the batch's turn
    finish   outputs come back, through page-locked memory, to where the front end reads them; all of it is wiped

What is between two processes lies in shared memory, which both can write at any time; so it is never the device that
reads or writes there. One copy in main memory more, at some 10 GB/s; the front end cannot change what was checked.

Batches are finished in the order of their start. Two are in the runtime at once only where both are known to be of one
tenant (device_memory.py, rule 4); without that the next one's inputs travel while one is computed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hermetic.enclave.batch_frames import Batch, Tensor, encode_done
from hermetic.enclave.batch_runner import BatchBorder, SharedBuffers, not_done
from hermetic.enclave.device_memory import DeviceBatch, DeviceMemory
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.model_tensors import inputs_of
from hermetic.enclave.runtimes.interface import Input, Output
from hermetic.enclave.runtimes.interface_on_device import (
    DeviceInput,
    DeviceOutput,
    DeviceRuntime,
    Launched,
    nbytes_of,
)
from hermetic.errors import DeviceError

__all__ = ["BATCHES_AT_ONCE", "DeviceRunner", "Pending"]

BATCHES_AT_ONCE: Final = 2


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
    views: list[memoryview] = field(default_factory=list)
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
    ) -> None:
        """`clock`: nanoseconds, of what is told of each batch."""
        self._clock = clock
        self._runtime = runtime
        self._memory = memory
        self._index = {tensor.own.name: at for at, tensor in enumerate(inputs_of(description))}
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

    def run(self, batch: Batch, buffers: SharedBuffers) -> bytes:
        """Return the frame that answers `batch`. Raises `BorderError` as `start` does."""
        return self.finish(self.start(batch, buffers))

    def start(self, batch: Batch, buffers: SharedBuffers, tenant: bytes | None = None) -> Pending:
        """Begin with a batch, whose inputs need not stay. `tenant`: whose rows they are, None where nobody knows.

        Raises `BorderError` where the frame points outside of what the layout allows; nothing has begun then.
        """
        if not self._free:
            raise DeviceError(f"GPU: wanted at most {BATCHES_AT_ONCE} batches at once, got another")
        slot = self._free[-1]
        started = self._clock()
        slot.border.check_frame(batch, buffers.layout)
        slot.place.prepare(tenant)
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
        times = (copied - began, ran - copied, ended - ran, pending.wipe_ns)
        return encode_done(batch.buffer, batch.sequence, tensors, *times)

    def close(self) -> None:
        """Give up the runtime. Memory goes with `DeviceMemory.unload`."""
        self._runtime.close()

    def _release(self, pending: Pending) -> None:
        """Wipe what a batch has left, and let the next one on."""
        # What the answers lie in goes back to the runtime's cache before anything else enters the runtime.
        pending.launched = None
        pending.views.clear()
        if pending.slot.place.in_flight:
            began = self._clock()
            pending.slot.place.forget(failed=pending.refusal is not None)
            pending.wipe_ns += self._clock() - began
        self._pending.remove(pending)
        self._free.append(pending.slot)
        waiting = next((one for one in self._pending if one.launched is None and one.refusal is None), None)
        if waiting is not None and not self._runtime.synchronous and self._may_launch(waiting):
            self._launch(waiting)

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
            targets = [_target(place, index, output) for index, output in enumerate(pending.outputs)]
            pending.launched = self._runtime.launch(pending.inputs, targets, place.stream)
            pending.views = [
                place.download(index, answer.address, answer.nbytes)
                for index, answer in enumerate(pending.launched.answers)
            ]
        except Exception as error:  # noqa: BLE001 - whatever a model makes a runtime raise ends this batch only
            self._refuse(pending, error)

    def _refuse(self, pending: Pending, error: Exception) -> None:
        """Answer with `error` and wipe at once. Where memory cannot be wiped any more, that is raised instead."""
        pending.refusal = not_done(pending.batch, error)
        pending.launched = None
        pending.slot.place.forget(failed=True)

    def _answer(self, pending: Pending) -> list[Tensor]:
        """Copy outputs to where the front end reads them; return them as it sees them."""
        launched = pending.launched
        pending.slot.place.settle()
        answers = launched.answers if launched is not None else ()
        tensors = []
        for output, answer, view in zip(pending.outputs, answers, pending.views, strict=True):
            output.view[: answer.nbytes] = view
            tensors.append(Tensor(answer.nbytes, answer.shape))
        return pending.slot.border.checked(tensors)


def _target(place: DeviceBatch, index: int, output: Output) -> DeviceOutput:
    """Return where the runtime puts an output: known beforehand where its shape is."""
    capacity = len(output.view)
    if output.shape is None:
        return DeviceOutput(output.spec, None, capacity, 0)
    nbytes = nbytes_of(output.spec.datatype, output.shape)
    return DeviceOutput(output.spec, output.shape, capacity, place.output(index, nbytes))
