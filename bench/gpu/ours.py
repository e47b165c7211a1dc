"""What does a worker make of the same batches? Its own runner over its own runtime, without the room around it.

A batch is announced by a frame and lies in memory as a front end shares it; the runner copies, computes, answers and
wipes as in a worker. All batches are of one tenant. Not here: the network, isolation (served.py has both).
"""

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.gpu.bare import CUDA, MakeSide
from hermetic.bench.gpu.networks import FORMAT_OF, BenchPrecision, Library, Network
from hermetic.bench.gpu.sides import warm_up
from hermetic.enclave import runtimes
from hermetic.enclave.batch_frames import STATUS_OK, Batch, Tensor, decode_done
from hermetic.enclave.batch_runner import BatchRunner, SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import BATCHES_AT_ONCE, DeviceRunner, Pending
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.isolation.profiles import PROFILE_OF_FORMAT, PROFILE_ON_GPU
from hermetic.enclave.memory import open_memory
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceAnswer, DeviceInput, DeviceOutput, Launched, nbytes_of
from hermetic.errors import ConfigurationError, MeasurementError

__all__ = ["LANES", "OnCpu", "OnGpu", "Opened", "Ours", "open_ours"]

LANES: Final = BATCHES_AT_ONCE
"""Batches that a worker has at a time on a GPU."""
TENANT: Final = b"bench"
SIDES: Final = 2
"""Both are in one process, which torch holds to one budget."""
THREADS: Final = 1
COPIES: Final = 10


class Lanes(Protocol):
    """A worker's runner, a batch at a time for each lane."""

    def start(self, lane: int, batch: Batch, buffers: SharedBuffers) -> None:
        """Begin with a batch."""

    def finish(self, lane: int) -> bytes:
        """Return the frame that answers it."""

    def attach(self, buffers: SharedBuffers) -> None:
        """Say that batches will lie there."""

    def detach(self, buffers: SharedBuffers) -> None:
        """Say that none does any more."""


@dataclass(slots=True)
class OnGpu:
    """The runner of a worker on a GPU."""

    runner: DeviceRunner
    pending: dict[int, Pending]

    def start(self, lane: int, batch: Batch, buffers: SharedBuffers) -> None:
        """Begin with a batch."""
        self.pending[lane] = self.runner.start(batch, buffers, TENANT)

    def finish(self, lane: int) -> bytes:
        """Return the frame that answers it."""
        return self.runner.finish(self.pending.pop(lane))

    def attach(self, buffers: SharedBuffers) -> None:
        """Have the memory page-locked."""
        self.runner.attach(buffers)

    def detach(self, buffers: SharedBuffers) -> None:
        """Let go of it."""
        self.runner.detach(buffers)


@dataclass(slots=True)
class OnCpu:
    """The runner of a worker on the CPU, which has one batch at a time: `finish` runs it."""

    runner: BatchRunner
    waiting: dict[int, tuple[Batch, SharedBuffers]]

    def start(self, lane: int, batch: Batch, buffers: SharedBuffers) -> None:
        """Keep the batch."""
        self.waiting[lane] = batch, buffers

    def finish(self, lane: int) -> bytes:
        """Run it, and return the frame that answers it."""
        return self.runner.run(*self.waiting.pop(lane))

    def attach(self, buffers: SharedBuffers) -> None:
        """Nothing to prepare."""

    def detach(self, buffers: SharedBuffers) -> None:
        """Nothing to let go of."""


class Ours:
    """A worker's side (sides.py, `Side`)."""

    def __init__(self, worker: Lanes, network: Network, library: Library, rows: int, lanes: int) -> None:
        self._worker = worker
        self._shape = (rows, network.answers)
        places = layout(network.description(library), lanes, 1)
        self._buffers = SharedBuffers(mmap.mmap(-1, places.size), places)
        worker.attach(self._buffers)
        content = network.inputs(rows)
        self._tensor = Tensor(content.nbytes, content.shape)
        for lane in range(lanes):
            self._buffers.region(lane, places.inputs[0])[0][: content.nbytes] = content.tobytes()

    def start(self, lane: int) -> None:
        """Announce the lane's batch."""
        self._worker.start(lane, Batch(lane, lane, (self._tensor,)), self._buffers)

    def finish(self, lane: int) -> float:
        """Take the answer; the worker says how long its wipe took. `MeasurementError` where there is none."""
        done = decode_done(self._worker.finish(lane))
        if done.status != STATUS_OK:
            raise MeasurementError(f"worker: wanted an answer, got status {done.status}: {done.text}")
        return done.wipe_ns / 1e9

    def answer(self, lane: int) -> NDArray[np.float32]:
        """Return what lies where a front end would read it."""
        view, _ = self._buffers.region(lane, self._buffers.layout.outputs[0])
        rows, answers = self._shape
        return np.frombuffer(view[: 4 * rows * answers], np.float32).reshape(self._shape)

    def close(self) -> None:
        """Unmap the batches."""
        self._worker.detach(self._buffers)
        self._buffers.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """A worker's model: makes sides, and says how long copies alone take (seconds of a batch; None: not on a GPU)."""

    make: MakeSide
    copies: Callable[[int], float | None]
    close: Callable[[], None]


def open_ours(
    library: Library, network: Network, file: Path, device: str, precision: BenchPrecision = "fp32"
) -> Opened:
    """Load the model as a worker does. Raises what its runtime raises, `DeviceError` without a GPU."""
    format_name = FORMAT_OF[library]
    profile = (PROFILE_ON_GPU if device == CUDA else PROFILE_OF_FORMAT)[format_name]
    description = network.description(library)
    runtimes.import_runtimes(profile)
    memory = open_memory(profile)
    runtimes.open_gpu(profile)
    content = memoryview(bytearray(file.read_bytes()))
    model = ModelToLoad(
        format=format_name,
        architecture=None,
        files={file.name: content},
        inputs=description.inputs,
        outputs=description.outputs,
        max_batch_size=network.rows,
        threads=THREADS,
    )
    if not isinstance(memory, DeviceMemory):
        runner = BatchRunner(runtimes.load(model), description, memory)
        return Opened(lambda rows, lanes: Ours(OnCpu(runner, {}), network, library, rows, lanes), lambda _: None,
                      memory.unload)  # fmt: skip
    gpu = Gpu(number=0, uuid="GPU-0", minor=0)  # CUDA's number 0, whatever its name
    orders = GpuOrders(gpu=gpu, memory_limit_bytes=SIDES * LANES * network.gpu_bytes, precision=precision)
    runtime = runtimes.load_on_gpu(model, memory, orders)
    return opened_on_gpu(DeviceRunner(runtime, description, memory), memory, network, library)


def opened_on_gpu(runner: DeviceRunner, memory: DeviceMemory, network: Network, library: Library) -> Opened:
    """Return the model of a runner on a GPU."""
    idle = DeviceRunner(Idle(), network.description(library), memory)

    def make(rows: int, lanes: int) -> Ours:
        if lanes > LANES:
            raise ConfigurationError(f"worker on a GPU: wanted at most {LANES} batches at a time, got {lanes}")
        return Ours(OnGpu(runner, {}), network, library, rows, lanes)

    def close() -> None:
        runner.close()
        memory.unload()

    return Opened(make, lambda rows: _copies(Ours(OnGpu(idle, {}), network, library, rows, 1)), close)


class Idle:
    """A runtime that computes nothing (runtimes/interface_on_device.py): what is left of a batch's time is copying."""

    holds_views = False
    synchronous = False

    def prepare(self, stream: int) -> None:
        """Nothing to prepare."""

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        """Answer with what lies where the answers go: zeros."""
        del inputs, stream
        answers = [(output.address, output.shape or (), output.spec.datatype) for output in outputs]
        return Launched(tuple(DeviceAnswer(at, nbytes_of(kind, shape), shape) for at, shape, kind in answers), None)

    def close(self) -> None:
        """Nothing to give up."""


def _copies(side: Ours) -> float:
    """Return the seconds of a batch of which nothing is computed, less its wipe."""
    try:
        warm_up(side, 1)
        begun, wiping = time.perf_counter(), 0.0
        for _ in range(COPIES):
            side.start(0)
            wiping += side.finish(0)
        return (time.perf_counter() - begun - wiping) / COPIES
    finally:
        side.close()
