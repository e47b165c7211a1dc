"""A worker process under an attacker's control: python hostile_worker.py CONTROL DESCRIPTION BEHAVIOUR.

It takes links as a worker does, maps their memory, reads their batches, and then does what `BEHAVIOURS` says under its
name. Where a behaviour ends, it goes on as an honest echo.
"""

import json
import mmap
import os
import random
import select
import socket
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from hermetic.enclave.batch_frames import DATA_FRAME_LIMIT, Batch, Tensor, decode_batch, encode_done
from hermetic.enclave.buffers import BufferLayout, layout
from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import decode_control
from hermetic.enclave.messages import Attach, Attached, Unload, Wiped
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import BorderError

FLOOD: Final = 200_000  # frames


class Link(NamedTuple):
    data: socket.socket
    descriptor: int
    memory: mmap.mmap
    place: BufferLayout


class Hostile:
    """The process."""

    def __init__(self, control: int, description: ModelDescription, behaviour: str) -> None:
        self.control = Channel.of_descriptor(control)
        self.description = description
        self.behaviour = behaviour
        self.links: dict[int, Link] = {}
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)

    def run(self) -> None:
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == self.control.fileno():
                    if not self.obey():
                        return
                elif descriptor in self.links:
                    self.serve(descriptor, self.links[descriptor])

    def obey(self) -> bool:
        try:
            frame, descriptors = self.control.receive()
        except BorderError:
            return False
        message = decode_control(frame, (Attach, Unload))
        if isinstance(message, Unload):
            self.control.send(Wiped().encode())
            return False
        assert isinstance(message, Attach)
        place = layout(self.description, message.buffers, message.variable_tensor_bytes)
        data = socket.socket(fileno=descriptors[0])
        link = Link(data, descriptors[1], mmap.mmap(descriptors[1], place.size), place)
        self.links[data.fileno()] = link
        self.poll.register(data.fileno(), select.POLLIN)
        self.control.send(Attached(front_end=message.front_end).encode())
        if self.behaviour in ON_LINK:
            ON_LINK[self.behaviour](self, link)
        return True

    def serve(self, descriptor: int, link: Link) -> None:
        try:
            frame = link.data.recv(DATA_FRAME_LIMIT)
            if not frame:
                raise ConnectionResetError
            batch = decode_batch(frame)
            for answer in ON_BATCH.get(self.behaviour, honest)(self, link, batch):
                link.data.send(answer)
        except OSError:
            self.poll.unregister(descriptor)
            del self.links[descriptor]
            link.data.close()

    def echo(self, link: Link, batch: Batch) -> list[Tensor]:
        for source, target, tensor in zip(link.place.inputs, link.place.outputs, batch.inputs, strict=True):
            start = batch.buffer * link.place.stride
            content = link.memory[start + source.offset : start + source.offset + tensor.nbytes]
            link.memory[start + target.offset : start + target.offset + tensor.nbytes] = content
        return list(batch.inputs)


def honest(worker: Hostile, link: Link, batch: Batch) -> list[bytes]:
    return [encode_done(batch.buffer, batch.sequence, worker.echo(link, batch), 1, 1, 1)]


def lies(worker: Hostile, link: Link, batch: Batch) -> list[bytes]:
    return [encode_done(batch.buffer, batch.sequence + 1, worker.echo(link, batch), 1, 1, 1)]


def repeats(worker: Hostile, link: Link, batch: Batch) -> list[bytes]:
    return honest(worker, link, batch) * 2


def points_outside(_worker: Hostile, _link: Link, batch: Batch) -> list[bytes]:
    return [encode_done(batch.buffer, batch.sequence, [Tensor(2**63, (2**40, 2**23))] * len(batch.inputs), 1, 1, 1)]


def sends_descriptors(worker: Hostile, link: Link, batch: Batch) -> list[bytes]:
    (frame,) = honest(worker, link, batch)
    socket.send_fds(link.data, [frame], [link.descriptor, link.data.fileno(), worker.control.fileno()] * 10)
    return []


def dies(_worker: Hostile, _link: Link, _batch: Batch) -> list[bytes]:
    os._exit(3)


def closes(_worker: Hostile, link: Link, _batch: Batch) -> list[bytes]:
    link.data.shutdown(socket.SHUT_RDWR)
    return []


def closes_at_once(_worker: Hostile, link: Link) -> None:
    link.data.shutdown(socket.SHUT_RDWR)


def floods(_worker: Hostile, link: Link) -> None:
    with suppress(OSError):
        for _ in range(FLOOD):
            link.data.send(b"\x41" * 60)


def speaks_unasked(worker: Hostile, _link: Link) -> None:
    worker.control.send(Wiped().encode())


def scribbles(_worker: Hostile, link: Link) -> None:
    """Change all of the memory, again and again, for as long as the process lives."""

    def scribble() -> None:
        noise = [random.randbytes(4096) for _ in range(16)]
        while True:
            for start in range(0, len(link.memory) - 4095, 4096):
                link.memory[start : start + 4096] = noise[start // 4096 % 16]
            time.sleep(0)

    threading.Thread(target=scribble, daemon=True).start()


def truncates(_worker: Hostile, link: Link) -> None:
    with suppress(OSError):
        os.ftruncate(link.descriptor, 0)
    with suppress(OSError):
        os.posix_fallocate(link.descriptor, 0, len(link.memory) * 2)
    link.memory.madvise(mmap.MADV_REMOVE)  # a hole: zeros, and no fault


ON_LINK: dict[str, Callable[[Hostile, Link], None]] = {
    "closes at once": closes_at_once,
    "floods": floods,
    "speaks unasked": speaks_unasked,
    "scribbles": scribbles,
    "truncates": truncates,
}
ON_BATCH: dict[str, Callable[[Hostile, Link, Batch], list[bytes]]] = {
    "lies": lies,
    "repeats": repeats,
    "points outside": points_outside,
    "sends descriptors": sends_descriptors,
    "closes": closes,
    "dies": dies,
}
BEHAVIOURS: Sequence[str] = (*ON_LINK, *ON_BATCH)

if __name__ == "__main__":
    assert array("i").itemsize == 4
    Hostile(int(sys.argv[1]), ModelDescription.model_validate(json.loads(sys.argv[2])), sys.argv[3]).run()
