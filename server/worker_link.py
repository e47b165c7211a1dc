"""One worker as its front end sees it: a data socket, and shared memory into which rows are copied and wiped again.

Nothing here decides: the batcher says where rows lie, the dispatcher when they move. The memory is the worker's too:
foreign.py says how it is read.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final, NamedTuple

from hermetic.enclave.batch_frames import forget_frames
from hermetic.enclave.buffers import BufferLayout, Region
from hermetic.enclave.channel import Channel
from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import BorderError
from hermetic.server.contents import BOOL, ONE_IF_TRUE, string_ends
from hermetic.server.foreign import Foreign, ForeignMemory
from hermetic.server.outputs import Claims
from hermetic.server.slots import Instance, Removal, Slot
from hermetic.server.wiping import wipe
from hermetic.server.work import Work

WIPED_IN_A_TURN: Final = 16 << 20  # bytes of a lost worker's memory, a few milliseconds; others' calls come in between


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
        memory: ForeignMemory,
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
        self._wiped = 0  # bytes from the start, once the link is cut
        self._tenants = [""] * layout.buffers  # of the last batch in each
        self.inputs = [
            [_place(memory, layout, index, region) for region in layout.inputs] for index in range(layout.buffers)
        ]
        self.outputs = [
            [_place(memory, layout, index, region) for region in layout.outputs] for index in range(layout.buffers)
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

    def turn_to(self, slot: Slot[Work]) -> None:
        """Before the batch of another tenant is sent: leave nothing that the worker wrote beside earlier answers."""
        tenant = slot.key.tenant
        if self._tenants[slot.index] != tenant:
            if self._tenants[slot.index]:
                self._wipe_outputs(slot.index)
            self._tenants[slot.index] = tenant

    def wipe_batch(self, slot: Slot[Work], output_bytes: Sequence[int]) -> None:
        """Wipe what a batch has filled."""
        for place, filled in zip(self.inputs[slot.index], slot.filled, strict=True):
            place.wipe(filled)
        for place, nbytes in zip(self.outputs[slot.index], output_bytes, strict=True):
            place.wipe(nbytes)

    def wiping(self, slot: Slot[Work], output_bytes: Sequence[int] | None, most: int) -> Iterator[int]:
        """Wipe that in steps of at most so many bytes; None: the outputs wholly, as nobody knows what is there.

        Each step gives how many bytes it has wiped; all is wiped when there are no more.
        """
        layout = self.layout
        outputs = [region.capacity for region in layout.outputs] if output_bytes is None else output_bytes
        filled = [*slot.filled, *outputs]
        for region, nbytes in zip([*layout.inputs, *layout.outputs], filled, strict=True):
            at = slot.index * layout.stride + region.offset
            end = at + nbytes
            while at < end:
                start, at = at, self._memory.wipe_touched(at, end, most)
                yield at - start

    def _wipe_outputs(self, index: int) -> None:
        first = index * self.layout.stride
        for region in self.layout.outputs:
            self._memory.wipe_touched(first + region.offset, first + region.offset + region.capacity)

    def cut(self) -> None:
        """Close the socket, and let go of the memory but for `wipe_some`; nothing may use the link afterwards."""
        self.inputs = self.outputs = []
        forget_frames()  # descriptions of tensors, in a hostile worker's words
        self.channel.close()

    def wipe_some(self) -> bool:
        """Wipe as much of a cut link's memory as takes no noticeable time; True when all is wiped, and unmapped."""
        self._wiped = self._memory.wipe_touched(self._wiped, len(self._memory), WIPED_IN_A_TURN)
        if self._wiped < len(self._memory):
            return False
        self._memory.close()
        return True


def check_again(spec: TensorSpec, shape: tuple[int, ...], data: bytearray) -> None:
    """Judge rows that have lain in a worker's memory; true elements of BOOL become 1 (contents.py has why)."""
    if spec.datatype == BOOL:
        data[:] = data.translate(ONE_IF_TRUE)
    elif spec.datatype == BYTES:
        count = prod(shape)
        ends = string_ends(data, count)
        if len(ends) != count or (ends[-1] if ends else 0) != len(data):
            raise BorderError(f"input '{spec.name}': wanted the {count} elements that came, got others")


def _place(memory: ForeignMemory, layout: BufferLayout, index: int, region: Region) -> Foreign:
    start = index * layout.stride + region.offset
    return memory.part(start, start + region.capacity)
