"""A GPU that is none: real memory, streams whose work happens as late as it may, and a record of every call in order.

Memory of the device is one anonymous mapping, so libraries on the CPU can compute where it says that tensors lie. Freed
memory keeps its content and is given out again, the last freed first: whoever does not wipe is found out. Work on a
stream runs when the stream is waited for, or when `run_ahead` says so. A byte that is not zero is somebody's: tests
write no zeros. What must never happen is noted in `violations`, as the code under test might swallow an exception.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hermetic.enclave.device_memory import Block
from hermetic.enclave.host_memory import HostBlock, address_of
from hermetic.errors import DeviceError, DeviceFullError

SIZE = 128 << 10  # bytes of memory that the device has
UNIT = 512


class Event(NamedTuple):
    """One call: its name, the address it is about, and the stream where it has one."""

    name: str
    address: int = 0
    nbytes: int = 0
    stream: int | None = None


class Work(NamedTuple):
    """What waits on a stream, and the memory of device and host that it touches."""

    act: Callable[[], None]
    touches: tuple[tuple[int, int], ...]


class DeviceDouble:
    """`Device` of device_memory.py. `fail_at`: the number of the call that fails, and with `sticky` all after it.

    `full_at`: the number of the allocation that finds no room; `locks`: whether main memory can be page-locked.
    """

    def __init__(
        self,
        size: int = SIZE,
        fail_at: int | None = None,
        *,
        sticky: bool = False,
        full_at: int | None = None,
        locks: bool = True,
    ) -> None:
        self.size = size
        self._memory = memoryview(mmap.mmap(-1, size))
        self._base = address_of(self._memory)
        self._free = [Block(self._base, size)]
        self._used: dict[int, int] = {}
        self._hosts: dict[int, HostBlock] = {}
        self._streams: dict[int, list[Work]] = {}
        self._next_stream = 1
        self._calls = 0
        self._fail_at = fail_at
        self._sticky = sticky
        self._full_at = full_at
        self.locks = locks
        self.shared: dict[int, int] = {}  # of others, page-locked
        self.allocations = 0
        self.broken = False
        self.events: list[Event] = []
        self.violations: list[str] = []

    # What the code under test calls.

    def allocate(self, nbytes: int) -> int:
        self._called("allocate", 0, nbytes)
        self.allocations += 1
        if self.allocations - 1 == self._full_at:
            raise DeviceFullError(f"double: wanted {nbytes} bytes, got none free")
        size = -(-nbytes // UNIT) * UNIT
        if all(free < size for _, free in self._free):
            self._join()
        for place, (address, free) in enumerate(self._free):
            if free >= size:
                self._free[place : place + 1] = [Block(address + size, free - size)] if free > size else []
                self._used[address] = size
                return address
        raise DeviceFullError(f"double: wanted {size} bytes, got none free")

    def _join(self) -> None:
        """Make one of free blocks that follow each other."""
        joined: list[Block] = []
        for address, size in sorted(self._free):
            if joined and sum(joined[-1]) == address:
                joined[-1] = Block(joined[-1].address, joined[-1].nbytes + size)
            else:
                joined.append(Block(address, size))
        self._free = joined

    def free(self, address: int) -> None:
        self._called("free", address, self._used.get(address, 0))
        size = self._used.pop(address)
        self._check_free("device", address, size)
        self._free.insert(0, Block(address, size))

    def free_bytes(self) -> int:
        self._called("free_bytes")
        return sum(size for _, size in self._free)

    def allocate_host(self, nbytes: int, *, locked: bool = True) -> HostBlock:
        if locked:
            self._called("allocate_host", 0, nbytes)
            self._lock(nbytes)
        view = memoryview(mmap.mmap(-1, max(1, nbytes)))
        block = HostBlock(view, address_of(view))
        self._hosts[block.address] = block
        return block

    def wipe_host(self, block: HostBlock, nbytes: int) -> None:
        # Not counted among the calls that fail: it is a loop over memory of our own.
        self.events.append(Event("wipe_host", block.address, nbytes))
        if not self.broken and self._is_touched(block.address, nbytes):
            self.violations.append("main memory was wiped before the device had finished with it")
        ctypes.memset(block.address, 0, min(nbytes, len(block.view)))

    def free_host(self, block: HostBlock) -> None:
        self._called("free_host", block.address, len(block.view))
        self._check_free("main", block.address, len(block.view))
        del self._hosts[block.address]

    def lock_host(self, address: int, nbytes: int) -> None:
        self._called("lock_host", address, nbytes)
        self._lock(nbytes)
        self.shared[address] = nbytes

    def unlock_host(self, address: int) -> None:
        self._called("unlock_host", address)
        if self._is_touched(address, self.shared.pop(address)):
            self.violations.append("shared memory was unlocked while the device used it")

    def _lock(self, nbytes: int) -> None:
        if not self.locks:
            raise DeviceFullError(f"double: wanted {nbytes} bytes page-locked, got none")

    def stream(self) -> int:
        self._called("stream")
        self._next_stream += 1
        self._streams[self._next_stream] = []
        return self._next_stream

    def end_stream(self, stream: int) -> None:
        self._called("end_stream", stream=stream)
        if self._streams.pop(stream):
            self.violations.append("a stream was ended with work on it")

    def copy_in(self, address: int, host: int, nbytes: int, stream: int) -> None:
        self._called("copy_in", address, nbytes, stream)
        self.later(stream, lambda: ctypes.memmove(address, host, nbytes), (address, nbytes), (host, nbytes))

    def copy_out(self, host: int, address: int, nbytes: int, stream: int) -> None:
        self._called("copy_out", address, nbytes, stream)
        self.later(stream, lambda: ctypes.memmove(host, address, nbytes), (host, nbytes), (address, nbytes))

    def fill(self, address: int, nbytes: int, stream: int) -> None:
        self._called("fill", address, nbytes, stream)
        self.later(stream, lambda: ctypes.memset(address, 0, nbytes), (address, nbytes))

    def wait(self, stream: int | None) -> None:
        self._called("wait", stream=stream)
        for number in list(self._streams) if stream is None else [stream]:
            self.run_ahead(number)

    # What tests use.

    def later(self, stream: int, act: Callable[[], object], *touches: tuple[int, int]) -> None:
        """Put work on a stream, as a kernel would be."""
        for address, nbytes in touches:
            if not self._is_known(address, nbytes):
                self.violations.append(f"work on memory that is not allocated: {address:#x}")
        self._streams[stream].append(Work(lambda: (act(), None)[1], touches))

    def compute(self, stream: int, act: Callable[[], object], *touches: tuple[int, int]) -> None:
        """Put a kernel on a stream, and on record."""
        self.events.append(Event("compute", touches[0][0], touches[0][1], stream))
        self.later(stream, act, *touches)

    def run_ahead(self, stream: int, most: int | None = None) -> None:
        """Run what waits on a stream, or the first `most` of it."""
        waiting = self._streams[stream]
        for _ in range(len(waiting) if most is None else min(most, len(waiting))):
            waiting.pop(0).act()

    def read(self, address: int, nbytes: int) -> bytes:
        """Return what lies there now."""
        return ctypes.string_at(address, nbytes)

    def device_bytes(self) -> bytes:
        """Return all memory of the device, allocated or not."""
        return bytes(self._memory)

    def host_bytes(self) -> bytes:
        """Return all main memory that is locked for the device."""
        return b"".join(bytes(block.view) for block in self._hosts.values())

    def free_memory(self) -> Iterator[bytes]:
        """Return what a dirty allocation could get."""
        return (self.read(address, size) for address, size in self._free)

    def names(self) -> list[str]:
        """Return the names of all calls."""
        return [event.name for event in self.events]

    def _called(self, name: str, address: int = 0, nbytes: int = 0, stream: int | None = None) -> None:
        self._calls += 1
        if self._calls - 1 == self._fail_at or (self.broken and self._sticky):
            self.broken = True
            raise DeviceError(f"double: {name} fails")
        self.events.append(Event(name, address, nbytes, stream))

    def _check_free(self, kind: str, address: int, nbytes: int) -> None:
        if self._is_touched(address, nbytes):
            self.violations.append(f"{kind} memory was freed while the device used it")
        if any(ctypes.string_at(address, nbytes)):
            self.violations.append(f"{kind} memory was freed with somebody's bytes in it")

    def _is_touched(self, address: int, nbytes: int) -> bool:
        return any(
            start < address + nbytes and address < start + length
            for waiting in self._streams.values()
            for work in waiting
            for start, length in work.touches
        )

    def _is_known(self, address: int, nbytes: int) -> bool:
        blocks = [
            *self._used.items(),
            *self.shared.items(),
            *((start, len(block.view)) for start, block in self._hosts.items()),
        ]
        return any(start <= address and address + nbytes <= start + length for start, length in blocks)


class TorchCudaDouble:
    """`torch.cuda` as far as a worker asks it: a caching allocator over a double, with one block per segment."""

    def __init__(self, device: DeviceDouble) -> None:
        self._device = device
        self._blocks: dict[int, tuple[int, str]] = {}
        self._retries = 0
        self._peak = 0
        self.refusals = 0
        self.fraction = 0.0

    def allocate(self, nbytes: int) -> int:
        """Give out a free block of that size, or a new one; on failure give back what is free, as torch does."""
        for address, (size, state) in self._blocks.items():
            if state == "inactive" and size == nbytes:
                self._blocks[address] = (size, "active_allocated")
                return address
        try:
            address = self._device.allocate(nbytes)
        except DeviceError:
            self._retries += 1
            for free in [a for a, (_, state) in self._blocks.items() if state == "inactive"]:
                self._give_back_unwiped(free)
            try:
                address = self._device.allocate(nbytes)
            except DeviceError:
                self.refusals += 1
                raise
        self._blocks[address] = (nbytes, "active_allocated")
        self._peak = max(self._peak, sum(size for size, _ in self._blocks.values()))
        return address

    def free(self, address: int, state: str = "inactive") -> None:
        self._blocks[address] = (self._blocks[address][0], state)

    def memory_snapshot(self, mempool_id: object = None, include_traces: bool = True) -> list[dict[str, object]]:
        return [
            {"device": 0, "address": address, "blocks": [{"address": address, "size": size, "state": state}]}
            for address, (size, state) in self._blocks.items()
        ]

    def memory_stats(self, device: int | None = None) -> dict[str, int]:
        now = sum(size for size, _ in self._blocks.values())
        return {
            "num_alloc_retries": self._retries,
            "num_ooms": self.refusals,
            "reserved_bytes.all.current": now,
            "reserved_bytes.all.peak": self._peak,
        }

    def mem_get_info(self) -> tuple[int, int]:
        return self._device.free_bytes(), self._device.size

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fraction = fraction

    def empty_cache(self) -> None:
        for address in [a for a, (_, state) in self._blocks.items() if state == "inactive"]:
            self._device.free(address)
            del self._blocks[address]

    def _give_back_unwiped(self, address: int) -> None:
        before = list(self._device.violations)
        self._device.free(address)
        self._device.violations[:] = before  # torch's own doing, of which the count of retries tells
        del self._blocks[address]
