"""One batch at a time on a GPU: how its tensors travel, where they lie, and that nothing of them is left.

Inputs are taken (`prepare`, `take`) and copied to request buffers on the device (`upload`), the runtime computes
(`enter`), outputs come back (`fetch`, `settle`, `deliver`), all of it is wiped (`forget`). Three ways (`Way`):

    direct    the device reads and writes what is shared with a front end, where that is page-locked: one copy less
    staged    through page-locked private memory, a transfer for each tensor
    joined    through one block of that, and one on the device: one transfer in, one out, one wipe on each side

Direct is for numbers alone. What the device reads from shared memory is copied once, and never checked before: the copy
on the device is the private one (docs/adr/0022, 0227). BOOL is made 0 or 1 on the way, so it is always staged.

Rules: device_memory.py. Outputs that the runtime itself has placed, as their shape was not known, travel each alone.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from hermetic.enclave.host_memory import HostBlock, Staging
from hermetic.errors import DeviceError

if TYPE_CHECKING:
    from hermetic.enclave.device_memory import Device, DeviceMemory

__all__ = ["DeviceBatch", "LockedPages", "Wanted", "Way", "rounded"]

ALIGNMENT: Final = 512  # bytes: what sizes of request buffers, and places in joined blocks, are multiples of
_JOINED: Final = -1  # instead of the number of a tensor


class Way(NamedTuple):
    """How a batch travels.

    `direct`: the inputs that may lie in shared memory while they are copied; `direct_outputs`: outputs may too; both
    only where it is `locked`. `joined_bytes`, unless 0: room for all inputs, and `joined_capacity`: how much that may
    become.
    """

    direct: frozenset[int] = frozenset()
    direct_outputs: bool = False
    locked: bool = False
    joined_bytes: int = 0
    joined_capacity: int = 0


class Wanted(NamedTuple):
    """One output: where it lies on the device, its bytes, and where they go in main memory."""

    address: int
    nbytes: int
    host: int


STAGED: Final = Way()


class DeviceBatch:
    """Staging and request buffers of a batch's inputs and outputs, and a stream."""

    def __init__(self, memory: "DeviceMemory", pages: "LockedPages", inputs: int) -> None:
        self._memory = memory
        self._device = memory.device
        self._pages = pages
        self.stream = memory.device.stream()
        self._staging = {index: Staging(pages) for index in (_JOINED, *range(inputs))}
        self._returning: dict[int, Staging] = {}
        self._buffers: dict[tuple[str, int], _Buffer] = {}
        self._taken: dict[int, _Taken] = {}
        self._outputs = _NOWHERE
        self._deliveries: list[tuple[int, int, int]] = []  # to, from, bytes
        self._busy: set[Staging] = set()  # the device may be reading or writing them
        self._way = STAGED
        self._joined_end = 0
        self._joined_sent = False
        self._tenant: bytes | None = None
        self.unlocked_bytes = 0
        """Bytes of this batch that page-locked memory was meant for, and that could not have it."""
        self.in_flight = False
        self.computing = False  # a runtime may be using what it keeps for later on behalf of this batch

    def begin(self, tenant: bytes | None) -> None:
        """See memory.py."""
        self._check_none_in_flight()
        self._memory.enter(tenant)
        self._start(STAGED)
        self.computing = True

    def prepare(self, tenant: bytes | None, way: Way = STAGED) -> None:
        """Begin, but for the runtime: inputs may be taken and uploaded while another tenant's batch is computed."""
        self._check_none_in_flight()
        self._memory.check()
        self._tenant = tenant
        self._start(way)

    def enter(self) -> None:
        """Go on to the runtime; raises what `begin` raises."""
        self._check_in_flight()
        self._memory.enter(self._tenant)
        self.computing = True

    def take(self, index: int, address: int, nbytes: int, capacity: int) -> HostBlock:
        """Copy input `index` into staging; return where it lies there. On the direct way: where it is, to read only."""
        self._check_in_flight()
        if self._way.locked and index in self._way.direct:
            self._taken[index] = _Taken(address, nbytes, None)
            return HostBlock(_read_only(address, nbytes), address)
        if self._way.joined_bytes:
            return self._take_joined(index, address, nbytes)
        staging = self._staging[index]
        if staging in self._busy:
            self.settle()
        block = staging.copy(address, nbytes, capacity)
        self._taken[index] = _Taken(block.address, nbytes, staging)
        return block

    def upload(self, index: int) -> int:
        """Begin to copy input `index` to the device; return its address there. Ordered on `stream`.

        What is joined travels with the first that is uploaded: all have to be taken before.
        """
        self._check_in_flight()
        taken = self._taken.get(index)
        if taken is None:
            raise DeviceError(f"GPU memory: wanted input {index} taken before it is uploaded, got none")
        if taken.staging is self._staging[_JOINED]:
            return self._upload_joined() + taken.address
        buffer = self._room(("input", index), taken.nbytes)
        if taken.nbytes:
            self._copy_in(buffer.address, taken.address, taken.nbytes, taken.staging)
            if taken.staging is not None and index in self._way.direct:
                self.unlocked_bytes += taken.nbytes
        return buffer.address

    def outputs(self, sizes: Sequence[int]) -> list[int]:
        """Return the addresses on the device where the runtime writes outputs of so many bytes each."""
        self._check_in_flight()
        if not self._way.joined_bytes:
            return [self.output(index, nbytes) for index, nbytes in enumerate(sizes)]
        offsets, end = [], 0
        for nbytes in sizes:
            offsets.append(end)
            end += rounded(nbytes)
        block = self._room(("output", _JOINED), end)
        self._outputs = _Place(block.address, end)
        return [block.address + offset for offset in offsets]

    def output(self, index: int, nbytes: int) -> int:
        """Return the address on the device where the runtime writes output `index`, `nbytes` at most."""
        self._check_in_flight()
        return self._room(("output", index), nbytes).address

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Begin to copy outputs to where they are wanted; they are there after `settle` and `deliver`."""
        joined = [one for one in wanted if one.nbytes and self._outputs.holds(one)]
        if joined:
            view = self.download(_JOINED, *self._outputs)
            base = ctypes.addressof(ctypes.c_char.from_buffer(view))
            self._deliveries += [(one.host, base + one.address - self._outputs.address, one.nbytes) for one in joined]
        for index, one in enumerate(wanted):
            if not one.nbytes or self._outputs.holds(one):
                continue
            if self._way.locked and self._way.direct_outputs:
                self._device.copy_out(one.host, one.address, one.nbytes, self.stream)
                continue
            view = self.download(index, one.address, one.nbytes)
            self._deliveries.append((one.host, ctypes.addressof(ctypes.c_char.from_buffer(view)), one.nbytes))
            self.unlocked_bytes += one.nbytes if self._way.direct_outputs else 0

    def deliver(self) -> None:
        """Copy what has come back through staging to where it is wanted."""
        for target, source, nbytes in self._deliveries:
            ctypes.memmove(target, source, nbytes)
        self._deliveries.clear()

    def download(self, index: int, address: int, nbytes: int) -> memoryview:
        """Begin to copy `nbytes` from `address` on the device to staging; valid after `settle`, until `forget`."""
        self._check_in_flight()
        staging = self._returning.get(index)
        if staging is None:
            staging = self._returning[index] = Staging(self._pages)
        if staging in self._busy:
            self.settle()
        block = staging.room(nbytes, nbytes)
        if nbytes:
            self._busy.add(staging)
            self._count(block.address, nbytes)
            self._device.copy_out(block.address, address, nbytes, self.stream)
        return block.view[:nbytes]

    def settle(self) -> None:
        """Wait until everything on `stream` is done."""
        with self._memory.final():
            self._device.wait(self.stream)
        self._busy.clear()

    def forget(self, *, failed: bool) -> None:
        """See memory.py. Staging is wiped even where the device does not answer any more."""
        self._taken.clear()
        self._deliveries.clear()
        self._outputs = _NOWHERE
        try:
            with self._memory.final():
                # (2) After a failure the runtime may have left work on streams that are not ours.
                self._device.wait(None if failed else self.stream)
        finally:
            for staging in self._all_staging():
                staging.wipe()
        self._busy.clear()
        dirty = [buffer for buffer in self._buffers.values() if buffer.dirty]
        with self._memory.final():
            for buffer in dirty:
                self._device.fill(buffer.address, buffer.dirty, self.stream)
            if dirty:
                self._device.wait(self.stream)
        for buffer in dirty:
            buffer.dirty = 0
        self.in_flight = self.computing = False

    def close(self) -> None:
        """Wipe and give back everything; a batch in flight counts as failed. Staging in any case."""
        try:
            self.forget(failed=True)
        except DeviceError:
            self._pages.lost = True
            raise
        finally:
            for staging in self._all_staging():
                staging.give_back()
        for buffer in self._buffers.values():
            self._device.free(buffer.address)
        self._buffers.clear()
        self._device.end_stream(self.stream)

    def _start(self, way: Way) -> None:
        self._way = way
        self._joined_end, self._joined_sent = 0, False
        self.unlocked_bytes = 0
        self.in_flight = True

    def _take_joined(self, index: int, address: int, nbytes: int) -> HostBlock:
        way, staging, start = self._way, self._staging[_JOINED], self._joined_end
        if start + rounded(nbytes) > way.joined_bytes:
            raise DeviceError(f"GPU memory: wanted inputs of {way.joined_bytes} bytes, got {start + rounded(nbytes)}")
        view, base = staging.room(way.joined_bytes, way.joined_capacity)
        ctypes.memmove(base + start, address, nbytes)
        self._taken[index] = _Taken(start, nbytes, staging)
        self._joined_end = start + rounded(nbytes)
        return HostBlock(view[start : start + nbytes], base + start)

    def _upload_joined(self) -> int:
        """Return where the joined inputs lie on the device; the first call sends them."""
        buffer = self._room(("input", _JOINED), self._joined_end)
        staging = self._staging[_JOINED]
        if not self._joined_sent and self._joined_end and staging.held is not None:
            self._copy_in(buffer.address, staging.held.address, self._joined_end, staging)
            self._joined_sent = True
        return buffer.address

    def _copy_in(self, address: int, host: int, nbytes: int, staging: Staging | None) -> None:
        if staging is not None:
            self._busy.add(staging)
            self._count(host, nbytes)
        self._device.copy_in(address, host, nbytes, self.stream)

    def _count(self, host: int, nbytes: int) -> None:
        """Take note of a copy that staging makes slower than it should be."""
        if not self._pages.is_locked(host):
            self.unlocked_bytes += nbytes

    def _all_staging(self) -> list[Staging]:
        return [*self._staging.values(), *self._returning.values()]

    def _room(self, key: tuple[str, int], nbytes: int) -> "_Buffer":
        """Return a request buffer of at least `nbytes`, all of which count as written (1)."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.nbytes < nbytes:
            size = max(ALIGNMENT, rounded(nbytes))
            larger = _Buffer(self._device.allocate(size), size)
            if buffer is not None:
                self._discard(buffer)
            buffer = self._buffers[key] = larger
        buffer.dirty = max(buffer.dirty, nbytes)
        return buffer

    def _discard(self, buffer: "_Buffer") -> None:
        """Free a buffer that became too small: wiped (3), and not while the device may use it (2)."""
        with self._memory.final():
            if buffer.dirty:
                self._device.wait(None)
                self._device.fill(buffer.address, buffer.dirty, self.stream)
                self._device.wait(self.stream)
        self._device.free(buffer.address)

    def _check_none_in_flight(self) -> None:
        if self.in_flight:
            raise DeviceError("GPU memory: wanted the last batch forgotten before the next begins, got another")

    def _check_in_flight(self) -> None:
        if not self.in_flight:
            raise DeviceError("GPU memory: wanted a batch that has begun, got none")


class LockedPages:
    """Page-locked main memory (host_memory.py, `Pages`), or ordinary where it cannot be locked: `is_locked` tells."""

    def __init__(self, device: "Device") -> None:
        self._device = device
        self._ordinary: set[int] = set()
        self.lost = False

    def allocate(self, nbytes: int) -> HostBlock:
        """Return zeros. Raises `OSError` or `DeviceError` where there is no memory of either kind."""
        try:
            return self._device.allocate_host(nbytes)
        except DeviceError:
            block = self._device.allocate_host(nbytes, locked=False)
            self._ordinary.add(block.address)
            return block

    def is_locked(self, address: int) -> bool:
        """Whether the block that begins at `address` is page-locked."""
        return address not in self._ordinary

    def wipe(self, block: HostBlock, nbytes: int) -> None:
        """Zero the first `nbytes`."""
        self._device.wipe_host(block, nbytes)

    def free(self, block: HostBlock) -> None:
        """Unlock and unmap, but for a device that may still write there: then the memory stays until the end."""
        if not self.lost:
            self._ordinary.discard(block.address)
            self._device.free_host(block)


class _Taken(NamedTuple):
    """Where an input lies; joined: how far behind the start. Without staging: in shared memory."""

    address: int
    nbytes: int
    staging: Staging | None


class _Place(NamedTuple):
    """Memory of the device with all outputs in it."""

    address: int
    nbytes: int

    def holds(self, wanted: Wanted) -> bool:
        return self.address <= wanted.address and wanted.address + wanted.nbytes <= self.address + self.nbytes


_NOWHERE: Final = _Place(0, 0)


@dataclass(slots=True)
class _Buffer:
    """Memory of the device of which the first `dirty` bytes may not be zero."""

    address: int
    nbytes: int
    dirty: int = 0


def rounded(nbytes: int) -> int:
    """Return `nbytes` rounded up to a place where the next tensor may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _read_only(address: int, nbytes: int) -> memoryview:
    """Return shared memory as it must be seen where it counts as an input: nothing may be put right in it."""
    if not nbytes:
        return memoryview(b"")
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B").toreadonly()
