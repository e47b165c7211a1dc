"""Private memory in main memory: where a batch's inputs lie while a runtime reads them, zeroed after each batch.

The CPU's half of memory.py, and the staging of the GPU's half (device_memory.py), which gives its own `Pages` whose
memory is page-locked. What a runtime allocates on the heap is overwritten when it is freed (zero_on_free.py).
"""

import ctypes
import mmap
from typing import Final, NamedTuple, Protocol

__all__ = ["HostBatch", "HostBlock", "HostMemory", "Pages", "PrivatePages", "Staging", "address_of", "wipe_at"]

# On the path of every request: called with the interpreter's lock held, which is half the price of letting it go for
# the few kilobytes of most requests. Large memory lets others run meanwhile.
_memset_quick: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)(
    ("memset", ctypes.CDLL(None))
)
_memmove_quick: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ("memmove", ctypes.CDLL(None))
)
_QUICK_BYTES: Final = 64 << 10


class HostBlock(NamedTuple):
    """Writable main memory and its address."""

    view: memoryview
    address: int


class Pages(Protocol):
    """Where private main memory comes from. `free` takes only what was wiped."""

    def allocate(self, nbytes: int) -> HostBlock:
        """Return at least `nbytes` of zeros that no other process sees."""

    def wipe(self, block: HostBlock, nbytes: int) -> None:
        """Zero the first `nbytes`."""

    def free(self, block: HostBlock) -> None:
        """Give a block back to the kernel."""


class PrivatePages:
    """Anonymous mappings of this process alone."""

    def allocate(self, nbytes: int) -> HostBlock:
        """Map at least one byte; raises `OSError` where there is no room."""
        view = memoryview(mmap.mmap(-1, max(1, nbytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        return HostBlock(view, address_of(view))

    def wipe(self, block: HostBlock, nbytes: int) -> None:
        """Zero the first `nbytes`."""
        wipe_at(block.address, min(nbytes, len(block.view)))

    def free(self, block: HostBlock) -> None:
        """Unmap with the last view: a runtime may still hold one."""


class Staging:
    """One growing place for one tensor of a batch. Its address changes only when it grows."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._block: HostBlock | None = None
        self._dirty = 0  # bytes from the start that may not be zero

    def room(self, nbytes: int, capacity: int) -> HostBlock:
        """Return memory for `nbytes`, which count as written from now on. `capacity`: how much it may become, in bytes.

        What was there is kept, unless the place has to grow: then it is gone.
        """
        block = self._block
        if block is None or nbytes > len(block.view):
            self.give_back()
            block = self._block = self._pages.allocate(max(nbytes, capacity))
        if nbytes > self._dirty:  # noqa: PLR1730 - a call of max costs more than all else here
            self._dirty = nbytes
        return block

    def copy(self, address: int, nbytes: int, capacity: int) -> HostBlock:
        """Copy `nbytes` from `address`; return exactly these."""
        view, target = self.room(nbytes, capacity)
        (_memmove_quick if nbytes <= _QUICK_BYTES else ctypes.memmove)(target, address, nbytes)
        return HostBlock(view[:nbytes], target)

    @property
    def held(self) -> HostBlock | None:
        """The memory as it is, None before it was asked for."""
        return self._block

    def wipe(self) -> None:
        """Zero what was written."""
        if self._dirty and self._block is not None:
            self._pages.wipe(self._block, self._dirty)
        self._dirty = 0

    def give_back(self) -> None:
        """Zero what was written, and give the memory back."""
        self.wipe()
        block, self._block = self._block, None
        if block is not None:
            self._pages.free(block)


class HostBatch:
    """The inputs of one batch at a time (memory.py, `BatchMemory`)."""

    def __init__(self, pages: Pages, inputs: int) -> None:
        self._inputs = [Staging(pages) for _ in range(inputs)]

    def begin(self, tenant: bytes | None) -> None:
        """Nothing to do: what a runtime frees is overwritten at once, whoever comes next."""

    def take(self, index: int, address: int, nbytes: int, capacity: int) -> HostBlock:
        """Copy input `index`, `nbytes` at `address`; return where it lies now."""
        return self._inputs[index].copy(address, nbytes, capacity)

    def forget(self, *, failed: bool) -> None:  # noqa: ARG002 - nothing runs on after a failure here
        """Zero every input of the batch."""
        for place in self._inputs:
            place.wipe()

    def close(self) -> None:
        """Zero and give back."""
        for place in self._inputs:
            place.give_back()


class HostMemory:
    """Memory for runtimes that compute on the CPU (memory.py, `Memory`)."""

    def __init__(self, pages: Pages | None = None) -> None:
        self._pages = pages or PrivatePages()
        self._batches: list[HostBatch] = []

    def batch(self, inputs: int) -> HostBatch:
        """Return memory for one batch at a time of a model with so many inputs."""
        batch = HostBatch(self._pages, inputs)
        self._batches.append(batch)
        return batch

    def unload(self) -> None:
        """Zero and give back everything."""
        while self._batches:
            self._batches.pop().close()


def wipe_at(address: int, nbytes: int) -> None:
    """Zero `nbytes` of this process's own memory at `address`."""
    (_memset_quick if nbytes <= _QUICK_BYTES else ctypes.memset)(address, 0, nbytes)


def address_of(view: memoryview) -> int:
    """Return where writable memory lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
