"""The other side of a worker's data border: a front end that can also misbehave."""

import os
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from hermetic.enclave.batch_frames import Done, Tensor, decode_done, encode_batch
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import FilePlace, layout
from hermetic.enclave.channel import Channel, data_channel, map_shared_memory, shared_memory
from hermetic.enclave.supervisor import Worker

VARIABLE = 4096  # bytes


class FrontEnd:
    """One data channel and its shared memory. `write` and `read` are by position, as the layout is."""

    numbers = count()

    def __init__(self, worker: Worker, buffers: int = 2, number: int | None = None) -> None:
        self.worker = worker
        self.number = next(self.numbers) if number is None else number
        self.layout = layout(worker.description, buffers, VARIABLE)
        memory = shared_memory(self.layout.size)
        self.inode = os.fstat(memory).st_ino  # of the shared memory, as /proc/PID/maps shows it
        ours, theirs = data_channel()
        try:
            self.memory = map_shared_memory(memory, self.layout.size)
            self.buffers = SharedBuffers(self.memory, self.layout)
            self.channel = Channel.of_descriptor(ours)
            self.channel.settimeout(30)
            worker.attach(theirs, memory, front_end=self.number, buffers=buffers, variable_tensor_bytes=VARIABLE)
        finally:
            os.close(memory)
            os.close(theirs)

    def write(self, raw: list[bytes], buffer: int = 0) -> None:
        for region, content in zip(self.layout.inputs, raw, strict=True):
            view, _ = self.buffers.region(buffer, region)
            view[: len(content)] = content

    def submit(
        self, shapes: Sequence[tuple[int, ...]], raw: list[bytes], *, buffer: int = 0, sequence: int = 7
    ) -> None:
        self.write(raw, buffer)
        tensors = [Tensor(len(content), shape) for content, shape in zip(raw, shapes, strict=True)]
        self.channel.send(encode_batch(buffer, sequence, tensors))

    def done(self) -> Done:
        return decode_done(self.channel.receive_data())

    def read(self, done: Done) -> list[bytes]:
        regions = zip(self.layout.outputs, done.outputs, strict=True)
        return [bytes(self.buffers.region(done.buffer, region)[0][: tensor.nbytes]) for region, tensor in regions]

    def ask(self, arrays: list[npt.NDArray[Any]]) -> list[bytes]:
        self.submit([array.shape for array in arrays], [array.tobytes() for array in arrays])
        done = self.done()
        assert done.status == 0, done.text
        return self.read(done)

    def file(self, place: FilePlace) -> bytes:
        return self.memory[place.offset : place.offset + place.file.size]

    def close(self) -> None:
        self.channel.close()
        self.buffers.close()


def strings(*elements: bytes) -> bytes:
    """A BYTES tensor."""
    return b"".join(np.uint32(len(element)).tobytes() + element for element in elements)
