"""A worker's runner on a GPU that is a double, with the shared memory of its front ends."""

import mmap
import os
from dataclasses import dataclass

from hermetic.enclave.batch_frames import STATUS_OK, Batch, Done, Tensor, decode_done, encode_batch
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import BufferLayout, layout
from hermetic.enclave.channel import Channel, data_channel, shared_memory
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner, Pending
from hermetic.enclave.front_end_channels import FrontEndChannels
from hermetic.enclave.gpus import Transfers
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.pulse import Pulse, Wrist
from tests.enclave.device_double import DeviceDouble
from tests.enclave.runtime_double import RuntimeDouble
from tests.enclave.sealed_models import spec

COLUMNS = 100
ROWS = 3
TIMEOUT_S = 60
VARIABLE = 4096  # bytes of a tensor of free shape


def described(datatype: str = "UINT8", columns: int = COLUMNS, answers: int = COLUMNS) -> ModelDescription:
    return ModelDescription(
        name="m",
        version=1,
        format="onnx",
        publisher="p",
        manifest_digest="0" * 64,
        inputs=(spec("x", datatype, columns),),
        outputs=(spec("y", datatype, answers),),
        max_batch_size=4,
        shared=False,
    )


@dataclass
class Worker:
    """A runner on a double, and the shared memory of one front end with two buffers."""

    device: DeviceDouble
    memory: DeviceMemory
    runtime: RuntimeDouble
    runner: DeviceRunner
    buffers: SharedBuffers

    def start(self, buffer: int, tag: int, tenant: bytes | None = None) -> Pending:
        """Begin with a batch whose every byte is `tag`."""
        size = ROWS * COLUMNS
        self.buffers.region(buffer, self.buffers.layout.inputs[0])[0][:size] = bytes([tag]) * size
        return self.runner.start(Batch(buffer, buffer, (Tensor(size, (ROWS, COLUMNS)),)), self.buffers, tenant)

    def answered(self, frame: bytes, tag: int) -> bool:
        done = decode_done(frame)
        view = self.buffers.region(done.buffer, self.buffers.layout.outputs[0])[0]
        return done.status == STATUS_OK and bytes(view[: ROWS * COLUMNS]) == bytes([tag + 1]) * ROWS * COLUMNS

    def ask(self, tag: int) -> Done:
        """Have one batch answered."""
        pending = self.start(0, tag)
        return decode_done(self.runner.finish(pending))

    def left(self) -> bytes:
        """Everything on the device and in page-locked memory that is not zero."""
        return (self.device.device_bytes() + self.device.host_bytes()).translate(None, b"\0")


def made(
    device: DeviceDouble,
    *,
    synchronous: bool,
    free: bool = False,
    description: ModelDescription | None = None,
    transfers: Transfers = "separate",
) -> Worker:
    description = description or described(answers=-1 if free else COLUMNS)
    memory = DeviceMemory(device)
    runtime = RuntimeDouble(device, memory, synchronous=synchronous)
    places = layout(description, 2, VARIABLE)
    buffers = SharedBuffers(mmap.mmap(-1, places.size), places)
    return Worker(device, memory, runtime, DeviceRunner(runtime, description, memory, transfers=transfers), buffers)


class FrontEnd:
    """One front end of `Served`: sends batches whose every byte is a tag, and reads what comes back."""

    def __init__(self, channels: FrontEndChannels, number: int, description: ModelDescription, buffers: int) -> None:
        self.number = number
        self.places: BufferLayout = layout(description, buffers, VARIABLE)
        ours, theirs = data_channel()
        memory = shared_memory(self.places.size)
        self.seen = SharedBuffers(mmap.mmap(memory, self.places.size), self.places)
        channels.attach(number, theirs, memory, buffers, VARIABLE)
        self.channel = Channel.of_descriptor(ours)
        self.channel.settimeout(TIMEOUT_S)

    def send(self, tag: int, buffer: int = 0, tenant: int = 0) -> None:
        size = ROWS * COLUMNS
        self.seen.region(buffer, self.places.inputs[0])[0][:size] = bytes([tag]) * size
        self.channel.send(encode_batch(buffer, tag, (Tensor(size, (ROWS, COLUMNS)),), tenant))

    def answer(self) -> tuple[Done, bytes]:
        done = decode_done(self.channel.receive_data())
        return done, bytes(self.seen.region(done.buffer, self.places.outputs[0])[0][: ROWS * COLUMNS])

    def close(self) -> None:
        self.channel.close()
        self.seen.close()


class Served:
    """The channels of a worker on a double, with the supervisor's ends."""

    def __init__(self, worker: Worker, description: ModelDescription) -> None:
        self.worker = worker
        self._description = description
        self.control, self.supervisor = Channel.pair()
        self.ended, self._end = os.pipe()
        self.wrist = Wrist()
        pulse = Pulse(os.dup(self.wrist.descriptor))
        self.channels = FrontEndChannels(worker.runner, description, self.control, {}, pulse, self.ended)
        self._front_ends: list[FrontEnd] = []

    def front_end(self, number: int, buffers: int = 2) -> FrontEnd:
        front_end = FrontEnd(self.channels, number, self._description, buffers)
        self._front_ends.append(front_end)
        return front_end

    def close(self) -> None:
        self.channels.finish()
        for front_end in self._front_ends:
            front_end.close()
        self.wrist.close()
        self.control.close()
        self.supervisor.close()
        for descriptor in (self.ended, self._end):
            os.close(descriptor)
