"""One worker as its front end sees it: a data socket, and shared memory into which rows are copied and wiped again.

Nothing here decides: the batcher says where rows lie, the dispatcher when they move. The memory is the worker's too:
foreign.py says how it is read.
"""

import contextlib
import mmap
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from hermetic.enclave.buffers import BufferLayout, Region
from hermetic.enclave.channel import Channel
from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.messages import TensorSpec, forget_frames
from hermetic.errors import BorderError
from hermetic.server.contents import BOOL, ONE_IF_TRUE, string_ends
from hermetic.server.foreign import Foreign
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
        self,
        channel: Channel,
        memory: mmap.mmap,
        layout: BufferLayout,
        instance: Instance[Work],
        *,
        batched: bool,
        acts_on_outputs: bool = False,
    ) -> None:
        """`batched` and `acts_on_outputs` as for `Claims`."""
        self.channel = channel
        self.layout = layout
        self.instance = instance
        self.claims = Claims(layout.outputs, batched=batched, acted_on=acts_on_outputs)
        self.running: dict[int, Running] = {}  # by buffer
        self._memory = memory
        whole = Foreign(memoryview(memory))
        self.inputs = [
            [_place(whole, layout, index, region) for region in layout.inputs] for index in range(layout.buffers)
        ]
        self.outputs = [
            [_place(whole, layout, index, region) for region in layout.outputs] for index in range(layout.buffers)
        ]

    def copy_in(self, work: Work) -> None:
        """Copy the rows of a request to its place."""
        slot = work.slot
        if slot is None:
            return
        for place, offset, data in zip(self.inputs[slot.index], work.offsets, work.raw, strict=False):
            place.put(data, offset)

    def copy_out(self, removal: Removal, work: Work) -> list[bytearray]:
        """Return a private copy of the rows of a request that is taken out.

        `BorderError` where the worker has made of them what would not have been accepted from any caller.
        """
        places = zip(self.layout.inputs, self.inputs[removal.slot.index], removal.gaps, strict=False)
        rows = [(region, bytearray(place.copied(length, start))) for region, place, (start, length, _) in places]
        try:
            for (region, data), shape in zip(rows, work.shapes, strict=False):
                check_again(region.spec, shape, data)
        except BorderError:
            for _, data in rows:
                wipe(memoryview(data))
            raise
        return [data for _, data in rows]

    def close_gap(self, removal: Removal) -> None:
        """Move the rows behind a request that is taken out, and wipe what they leave."""
        for place, gap in zip(self.inputs[removal.slot.index], removal.gaps, strict=False):
            place.close_gap(*gap)

    def wipe_batch(self, slot: Slot[Work], output_bytes: Sequence[int] | None) -> None:
        """Wipe what a batch has filled; None: the outputs wholly, as nobody knows what was written there."""
        for place, filled in zip(self.inputs[slot.index], slot.filled, strict=True):
            place.wipe(filled)
        if output_bytes is None:
            for place in self.outputs[slot.index]:
                place.wipe()
        else:
            for place, nbytes in zip(self.outputs[slot.index], output_bytes, strict=True):
                place.wipe(nbytes)

    def wipe(self) -> None:
        """Zero every buffer."""
        for places in (*self.inputs, *self.outputs):
            for place in places:
                place.wipe()

    def close(self) -> None:
        """Wipe, unmap and close; nothing may use the link afterwards."""
        self.wipe()
        self.inputs = self.outputs = []
        forget_frames()  # descriptions of tensors, in a hostile worker's words
        with contextlib.suppress(BufferError):  # a view that an exception still holds: unmapped when that is gone
            self._memory.close()
        self.channel.close()


def check_again(spec: TensorSpec, shape: tuple[int, ...], data: bytearray) -> None:
    """Judge rows that have lain in a worker's memory; true elements of BOOL become 1 (contents.py has why)."""
    if spec.datatype == BOOL:
        data[:] = data.translate(ONE_IF_TRUE)
    elif spec.datatype == BYTES:
        count = prod(shape)
        ends = string_ends(data, count)
        if len(ends) != count or (ends[-1] if ends else 0) != len(data):
            raise BorderError(f"input '{spec.name}': wanted the {count} elements that came, got others")


def _place(whole: Foreign, layout: BufferLayout, index: int, region: Region) -> Foreign:
    start = index * layout.stride + region.offset
    return whole.part(start, start + region.capacity)
