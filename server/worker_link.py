"""One worker as its front end sees it: a data socket, and shared memory into which rows are copied and wiped again.

Nothing here decides: the batcher says where rows lie, the dispatcher when they move. The memory is the worker's too, so
what is read from it is copied once and then checked.
"""

import contextlib
import mmap
from collections.abc import Sequence
from typing import NamedTuple

from hermetic.enclave.buffers import BufferLayout, Region
from hermetic.enclave.channel import Channel
from hermetic.server.outputs import Claims
from hermetic.server.slots import Instance, Removal, Slot
from hermetic.server.wiping import wipe
from hermetic.server.work import Work


class Running(NamedTuple):
    """A batch that the worker has: the number of its frame, and when it was sent, in monotonic seconds."""

    slot: Slot[Work]
    sequence: int
    sent: float


class WorkerLink:
    """One worker of a model: its socket, its shared memory cut into views, and the batches it has."""

    def __init__(
        self, channel: Channel, memory: mmap.mmap, layout: BufferLayout, instance: Instance[Work], *, batched: bool
    ) -> None:
        self.channel = channel
        self.layout = layout
        self.instance = instance
        self.claims = Claims(layout.outputs, batched=batched)
        self.running: dict[int, Running] = {}  # by buffer
        self._memory = memory
        whole = memoryview(memory)
        self.inputs = [
            [_view(whole, layout, index, region) for region in layout.inputs] for index in range(layout.buffers)
        ]
        self.outputs = [
            [_view(whole, layout, index, region) for region in layout.outputs] for index in range(layout.buffers)
        ]

    def copy_in(self, work: Work) -> None:
        """Copy the rows of a request to its place."""
        slot = work.slot
        if slot is None:
            return
        for view, offset, data in zip(self.inputs[slot.index], work.offsets, work.raw, strict=False):
            view[offset : offset + len(data)] = data

    def copy_out(self, removal: Removal) -> list[bytearray]:
        """Return a private copy of the rows of a request that is taken out."""
        views = self.inputs[removal.slot.index]
        return [
            bytearray(view[start : start + length])
            for view, (start, length, _) in zip(views, removal.gaps, strict=False)
        ]

    def close_gap(self, removal: Removal) -> None:
        """Move the rows behind a request that is taken out, and wipe what they leave."""
        for view, (start, length, end) in zip(self.inputs[removal.slot.index], removal.gaps, strict=False):
            view[start : end - length] = view[start + length : end]
            wipe(view[end - length : end])

    def wipe_batch(self, slot: Slot[Work], output_bytes: Sequence[int] | None) -> None:
        """Wipe what a batch has filled; None: the outputs wholly, as nobody knows what was written there."""
        for view, filled in zip(self.inputs[slot.index], slot.filled, strict=True):
            wipe(view[:filled])
        if output_bytes is None:
            for view in self.outputs[slot.index]:
                wipe(view)
        else:
            for view, nbytes in zip(self.outputs[slot.index], output_bytes, strict=True):
                wipe(view[:nbytes])

    def wipe(self) -> None:
        """Zero every buffer."""
        for views in (*self.inputs, *self.outputs):
            for view in views:
                wipe(view)

    def close(self) -> None:
        """Wipe, unmap and close; nothing may use the link afterwards."""
        self.wipe()
        self.inputs = self.outputs = []
        with contextlib.suppress(BufferError):  # a view that an exception still holds: unmapped when that is gone
            self._memory.close()
        self.channel.close()


def _view(whole: memoryview, layout: BufferLayout, index: int, region: Region) -> memoryview:
    start = index * layout.stride + region.offset
    return whole[start : start + region.capacity]
