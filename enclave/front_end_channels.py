"""The front ends that a worker serves: one batch of each that has one, in turn. What one does harms no other.

On a GPU several batches are under way at a time (device_runner.py); they are answered in the order of their arrival.
There a front end's number of a tenant decides what is wiped before a batch. It counts for this front end alone: one
that lies mixes nobody's rows but its own (docs/adr/0226).
"""

import os
import select
import struct
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from hermetic.enclave.batch_frames import MIXED, Batch, decode_batch
from hermetic.enclave.batch_runner import BatchRunner, SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.channel import Channel, map_shared_memory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.pulse import Pulse
from hermetic.enclave.zero_on_free import wipe
from hermetic.errors import BorderError

__all__ = ["FrontEndChannels"]

IDLE_MS: Final = 100  # milliseconds without a batch, after which what runtimes keep on a GPU is wiped
_TENANT: Final = struct.Struct("<QQ")
DRAIN_LIMIT: Final = 4096  # batches of one front end that are finished at an unload: far more than it has buffers


class _FrontEnd(NamedTuple):
    number: int
    epoch: int  # of this worker's links, no two alike
    channel: Channel
    buffers: SharedBuffers


class FrontEndChannels:
    """Data channels with their shared memory, beside the control channel, in one `poll`."""

    def __init__(
        self,
        runner: BatchRunner | DeviceRunner,
        description: ModelDescription,
        control: Channel,
        files: Mapping[str, bytearray],
        pulse: Pulse,
        ended: int,
    ) -> None:
        """`files`: the payload's that front ends need, by name; they are wiped with the model.

        `pulse` tells the supervisor when a batch begins and ends; the descriptor `ended` is readable once all is over.
        """
        self._runner = runner
        self._device = runner if isinstance(runner, DeviceRunner) else None
        self._under_way: deque[tuple[_FrontEnd, Callable[[], bytes]]] = deque()
        self._pulse = pulse
        self._files = files
        self._description = description
        self._control = control.fileno()
        self._front_ends: dict[int, _FrontEnd] = {}
        self._leaving: list[_FrontEnd] = []  # dropped, but the GPU has batches in their memory
        self._epochs = 0
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        self._ended = ended
        self._poll.register(ended, select.POLLIN)

    def attach(self, number: int, channel: int, memory: int, buffers: int, variable_tensor_bytes: int) -> None:
        """Serve the front end `number`, by this link alone: what one before it had mapped is given back first.

        Takes both descriptors. `BorderError` where they are not what they should be.
        """
        for descriptor, front_end in list(self._front_ends.items()):
            if front_end.number == number:
                self._drop(descriptor, front_end)
        try:
            places = layout(self._description, buffers, variable_tensor_bytes)
            mapped = map_shared_memory(memory, places.size)
            for place in places.files:
                mapped[place.offset : place.offset + place.file.size] = self._files[place.file.name]
            shared = SharedBuffers(mapped, places)
        except BaseException:
            os.close(channel)
            raise
        finally:
            os.close(memory)
        end = Channel.of_descriptor(channel)
        # Never waits for a front end: one that takes no answers has broken the protocol.
        end.settimeout(0)
        if self._device is not None:
            self._device.attach(shared)
        self._epochs += 1
        self._front_ends[end.fileno()] = _FrontEnd(number, self._epochs, end, shared)
        self._poll.register(end.fileno(), select.POLLIN)

    def wipe_files(self) -> None:
        """Overwrite the files that were handed to front ends."""
        for content in self._files.values():
            wipe(content)

    def serve(self, on_control: Callable[[], bool]) -> None:
        """Run batches until all is over, or until `on_control`, called when a control frame waits, returns False."""
        while True:
            # Whoever waits is let in first: its inputs travel while the batch before it is computed.
            events = self._poll.poll(self._patience_ms())
            if not events:
                self._use_the_pause()
            for descriptor, _ in events:
                if descriptor == self._ended:
                    return
                if descriptor != self._control:
                    self._serve_one(descriptor)
                elif not self._obeys(on_control):
                    return

    def _patience_ms(self) -> int | None:
        """Return how long there is nothing better to do than to wait; None: for ever."""
        if self._under_way:
            return 0
        return None if self._device is None or self._device.is_clean else IDLE_MS

    def _use_the_pause(self) -> None:
        if self._under_way:
            self._answer_oldest()
        elif self._device is not None:
            self._pulse.begin()
            try:
                self._device.wipe_kept()
            finally:
                self._pulse.end()

    def shut(self) -> None:
        """Let nothing more out to any front end, also of a batch that runs; from any thread."""
        for front_end in list(self._front_ends.values()):
            front_end.channel.shut()

    def _obeys(self, on_control: Callable[[], bool]) -> bool:
        """Answer what is under way first: a control frame is obeyed between two batches."""
        self._answer_all()
        return on_control()

    def finish(self) -> None:
        """Answer the batches that already wait, unless all is over, and let go of every front end."""
        over = select.poll()
        over.register(self._ended, select.POLLIN)
        self._answer_all()
        for descriptor, front_end in list(self._front_ends.items()):
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            for _ in range(DRAIN_LIMIT):
                # What is computed lies in memory that a front end sees, whether it hears of that or not.
                if descriptor not in self._front_ends or over.poll(0) or not waiting.poll(0):
                    break
                self._serve_one(descriptor)
            self._answer_all()
            if descriptor in self._front_ends:
                self._drop(descriptor, front_end)

    def _serve_one(self, descriptor: int) -> None:
        front_end = self._front_ends.get(descriptor)
        if front_end is None:  # dropped earlier in the same round
            return
        if self._device is not None:
            self._start_one(descriptor, front_end, self._device)
            return
        self._pulse.begin()
        try:
            batch = decode_batch(front_end.channel.receive_data())
            front_end.channel.send(self._runner.run(batch, front_end.buffers))
        except (BorderError, OSError):
            # It has closed, or sent what the protocol does not allow: the end for it alone. It notices by the end of
            # its socket; there is nobody here to tell.
            self._drop(descriptor, front_end)
        finally:
            self._pulse.end()

    def _start_one(self, descriptor: int, front_end: _FrontEnd, device: DeviceRunner) -> None:
        """Begin with a batch on the GPU, once there is room for it."""
        if not device.has_room:
            self._answer_oldest()
            if self._front_ends.get(descriptor) is not front_end:  # it takes no answers any more
                return
        if not self._under_way:
            self._pulse.begin()
        try:
            batch = decode_batch(front_end.channel.receive_data())
            pending = device.start(batch, front_end.buffers, _tenant(front_end, batch))
            self._under_way.append((front_end, partial(device.finish, pending)))
        except (BorderError, OSError):
            self._drop(descriptor, front_end)
        finally:
            if not self._under_way:
                self._pulse.end()

    def _answer_all(self) -> None:
        while self._under_way:
            self._answer_oldest()

    def _answer_oldest(self) -> None:
        """Finish the batch that has been under way for longest. Each is a turn of its own for who watches."""
        front_end, finish = self._under_way.popleft()
        try:
            front_end.channel.send(finish())
        except (BorderError, OSError):
            descriptor = front_end.channel.fileno()
            if self._front_ends.get(descriptor) is front_end:
                self._drop(descriptor, front_end)
        finally:
            self._let_go()
            self._pulse.end()
            if self._under_way:
                self._pulse.begin()

    def _drop(self, descriptor: int, front_end: _FrontEnd) -> None:
        self._poll.unregister(descriptor)
        del self._front_ends[descriptor]
        front_end.channel.close()
        self._leaving.append(front_end)
        self._let_go()

    def _let_go(self) -> None:
        """Unmap the memory of front ends that have left, once nothing on the GPU has to do with it any more."""
        for front_end in list(self._leaving):
            if all(one is not front_end for one, _ in self._under_way):
                self._leaving.remove(front_end)
                if self._device is not None:
                    self._device.detach(front_end.buffers)
                front_end.buffers.close()


def _tenant(front_end: _FrontEnd, batch: Batch) -> bytes | None:
    """Return what tells a batch's tenant from all others of this worker; None where nobody says whose it is."""
    return None if batch.tenant == MIXED else _TENANT.pack(front_end.epoch, batch.tenant)
