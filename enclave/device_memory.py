"""Memory for runtimes that compute on a GPU: what memory.py promises, as decisions over a few calls of a device.

A batch goes: inputs are copied into page-locked staging (`prepare`, `take`), from there to buffers on the device
(`upload`), the runtime computes (`enter`), outputs come back through staging (`download`, `settle`), all of it is wiped
(`forget`). Copies and wipes of one batch are ordered on a stream of its own.

Rules, each held by a property test:
 (1) What counts as written is noted before it is written, and forgotten only when its wipe is known to be done.
 (2) Main memory is wiped only after the device has finished with it; memory of the device in the order of its stream.
 (3) Only wiped memory is freed or used for something else.
 (4) Batches in a runtime at the same time are of one tenant; one whose tenant is not known is there alone. What is not
     there yet touches nothing but staging and request buffers of its own.
 (5) A failed wait or wipe is final: nothing is used or freed from then on, and every call says so. The device's memory
     then goes with its context, when the process ends.

Work of a batch that is not on its stream (onnxruntime has one of its own) must be complete when the runtime returns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from hermetic.enclave.host_memory import HostBlock, Staging
from hermetic.errors import DeviceError

__all__ = ["Block", "Cache", "Device", "DeviceBatch", "DeviceMemory"]

SWEEP_BYTES: Final = 256 << 20  # at a time, when memory that libraries gave back is overwritten
SWEEP_LEAST_BYTES: Final = 2 << 20  # the driver gives memory out in pages of this size
_ALIGNMENT: Final = 512  # bytes: what a request buffer's size is rounded up to


class Block(NamedTuple):
    """Memory of the device, in bytes."""

    address: int
    nbytes: int


class Device(Protocol):
    """One GPU. Work on a stream happens later and in order; streams are not ordered among themselves.

    Every method raises `DeviceError`. `allocate` gives memory with any content; `free` takes what nothing uses.
    """

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""

    def free(self, address: int) -> None:
        """Take memory back."""

    def free_bytes(self) -> int:
        """Return how much can be allocated."""

    def allocate_host(self, nbytes: int) -> HostBlock:
        """Return page-locked main memory, all zeros."""

    def wipe_host(self, block: HostBlock, nbytes: int) -> None:
        """Zero the first `nbytes` of main memory, now."""

    def free_host(self, block: HostBlock) -> None:
        """Take main memory back."""

    def stream(self) -> int:
        """Return a new stream."""

    def end_stream(self, stream: int) -> None:
        """Take a stream back on which nothing is left to do."""

    def copy_in(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Put on a stream: copy from main memory."""

    def copy_out(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Put on a stream: copy to main memory."""

    def fill(self, address: int, nbytes: int, stream: int) -> None:
        """Put on a stream: zero memory."""

    def wait(self, stream: int | None) -> None:
        """Wait until a stream has nothing left to do, or no stream of anyone in this process: None."""


class Cache(Protocol):
    """The device memory that a runtime keeps (runtime_caches.py)."""

    def free_blocks(self) -> Sequence[Block]:
        """Return what is not in use and may hold what a batch left. Nothing of it is in use until `wiped`."""

    def all_blocks(self) -> Sequence[Block]:
        """Return everything, in use or not."""

    def wiped(self) -> None:
        """Take note that what was asked for last is zero now."""

    def given_back(self) -> int:
        """Return how many bytes it may have given the device unwiped since it was last asked."""

    def release(self) -> None:
        """Give the device what is not in use: it was all wiped."""


class DeviceMemory:
    """Memory for runtimes on a GPU (memory.py, `Memory`). One thread uses it, and the caches' runtimes."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._pages = _LockedPages(device)
        self._stream = device.stream()  # for wipes of what belongs to no batch
        self._caches: list[Cache] = []
        self._batches: list[DeviceBatch] = []
        self._tenant: bytes | None = None
        self._clean = True  # nobody's batch has run since the caches were wiped
        self._lost = ""
        self._least_free = device.free_bytes()

    def add_cache(self, cache: Cache) -> None:
        """Wipe the memory of one more runtime too."""
        self._caches.append(cache)

    def batch(self, inputs: int) -> "DeviceBatch":
        """Return memory for one batch at a time."""
        batch = DeviceBatch(self, self._pages, inputs)
        self._batches.append(batch)
        return batch

    def enter(self, tenant: bytes | None) -> None:
        """Make way for a batch of `tenant`: wipe what the caches hold free, unless the last batch was its own.

        Raises `DeviceError` where another tenant's batch is in a runtime (4), and where a wipe fails.
        """
        self.check()
        same = self.is_same(tenant)
        if not same and any(batch.computing for batch in self._batches):
            raise DeviceError("GPU memory: wanted one tenant's batches in flight, got another's: forget them first")
        if not same and not self._clean:
            self.wipe_free_blocks()
        self._tenant, self._clean = tenant, False

    def is_same(self, tenant: bytes | None) -> bool:
        """Whether the last batch that entered a runtime is known to have been of this tenant."""
        return tenant is not None and tenant == self._tenant

    @property
    def is_clean(self) -> bool:
        """Whether nobody's batch has run since what the caches hold free was wiped."""
        return self._clean

    def wipe_free_blocks(self) -> None:
        """Zero all memory that runtimes keep and do not use, and what they gave away unwiped."""
        self._least_free = min(self._least_free, self.device.free_bytes())
        self.wipe([block for cache in self._caches for block in cache.free_blocks()])
        for cache in self._caches:
            cache.wiped()
        self._sweep(sum(cache.given_back() for cache in self._caches))
        self._clean = True

    def unload(self) -> None:
        """Zero everything, give it back, and overwrite what libraries gave back themselves."""
        closing = [batch.close for batch in reversed(self._batches)]
        self._batches.clear()
        failures: list[DeviceError] = []
        for step in (*closing, self._empty_caches, self._sweep_all):
            try:
                step()
            except DeviceError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def wipe(self, blocks: Sequence[Block]) -> None:
        """Zero memory that nothing uses from now on. Waits for the device, before and after."""
        with self.final():
            self.device.wait(None)
            for address, nbytes in blocks:
                self.device.fill(address, nbytes, self._stream)
            self.device.wait(self._stream)

    def check(self) -> None:
        """Raise `DeviceError` once a wait or a wipe has failed (5)."""
        if self._lost:
            raise DeviceError(f"GPU memory: wanted it wiped, got none since: {self._lost}")

    @contextmanager
    def final(self) -> Iterator[None]:
        """Run waits and wipes, of which a failure is final (5)."""
        self.check()
        try:
            yield
        except DeviceError as error:
            self._lost = str(error)
            raise

    def _empty_caches(self) -> None:
        self._least_free = min(self._least_free, self.device.free_bytes())
        self.wipe([block for cache in self._caches for block in cache.all_blocks()])
        for cache in self._caches:
            cache.wiped()
            cache.release()
        self._clean = True

    def _sweep_all(self) -> None:
        """Overwrite as much free memory as this process has ever given back: in part it is the same.

        For what cuBLAS and its like allocate and free without asking a caching allocator.
        """
        self._sweep(self.device.free_bytes() - self._least_free)

    def _sweep(self, nbytes: int) -> None:
        """Allocate `nbytes`, zero and free them; less where there is less, for others may work on this GPU too."""
        taken: list[Block] = []
        size = SWEEP_BYTES
        while nbytes >= SWEEP_LEAST_BYTES and size >= SWEEP_LEAST_BYTES:
            wanted = min(size, nbytes)
            try:
                taken.append(Block(self.device.allocate(wanted), wanted))
            except DeviceError:  # in smaller pieces, or gone to others
                size //= 2
                continue
            nbytes -= wanted
        if taken:
            self.wipe(taken)
        for address, _ in taken:
            self.device.free(address)


class DeviceBatch:
    """One batch at a time: staging and request buffers of its inputs and outputs, and a stream.

    Use: `begin`, then for each input `take` and `upload`, for each output `output`; the runtime; `download`, `settle`;
    and `forget`, whatever happened.
    """

    def __init__(self, memory: DeviceMemory, pages: "_LockedPages", inputs: int) -> None:
        self._memory = memory
        self._device = memory.device
        self._pages = pages
        self.stream = memory.device.stream()
        self._staging = [Staging(pages) for _ in range(inputs)]
        self._returning: list[Staging] = []
        self._buffers: dict[tuple[str, int], _Buffer] = {}
        self._lengths = [0] * inputs
        self._busy: set[Staging] = set()  # the device may be reading or writing them
        self._tenant: bytes | None = None
        self.in_flight = False
        self.computing = False  # a runtime may be using what it keeps for later on behalf of this batch

    def begin(self, tenant: bytes | None) -> None:
        """See memory.py."""
        self._check_none_in_flight()
        self._memory.enter(tenant)
        self.in_flight = self.computing = True

    def prepare(self, tenant: bytes | None) -> None:
        """Begin, but for the runtime: inputs may be taken and uploaded while another tenant's batch is computed."""
        self._check_none_in_flight()
        self._memory.check()
        self._tenant, self.in_flight = tenant, True

    def enter(self) -> None:
        """Go on to the runtime; raises what `begin` raises."""
        self._check_in_flight()
        self._memory.enter(self._tenant)
        self.computing = True

    def take(self, index: int, address: int, nbytes: int, capacity: int) -> HostBlock:
        """Copy input `index` into staging; return where it lies there."""
        self._check_in_flight()
        staging = self._staging[index]
        if staging in self._busy:
            self.settle()
        self._lengths[index] = nbytes
        return staging.copy(address, nbytes, capacity)

    def upload(self, index: int) -> int:
        """Begin to copy input `index` to the device; return its address there. Ordered on `stream`."""
        self._check_in_flight()
        staged, nbytes = self._staging[index].held, self._lengths[index]
        if staged is None:
            raise DeviceError(f"GPU memory: wanted input {index} taken before it is uploaded, got none")
        buffer = self._room(("input", index), nbytes)
        if nbytes:
            self._busy.add(self._staging[index])
            self._device.copy_in(buffer.address, staged.address, nbytes, self.stream)
        return buffer.address

    def output(self, index: int, nbytes: int) -> int:
        """Return the address on the device where the runtime writes output `index`, `nbytes` at most."""
        self._check_in_flight()
        return self._room(("output", index), nbytes).address

    def download(self, index: int, address: int, nbytes: int) -> memoryview:
        """Begin to copy `nbytes` from `address` on the device to staging; valid after `settle`, until `forget`."""
        self._check_in_flight()
        while len(self._returning) <= index:
            self._returning.append(Staging(self._pages))
        staging = self._returning[index]
        if staging in self._busy:
            self.settle()
        block = staging.room(nbytes, nbytes)
        if nbytes:
            self._busy.add(staging)
            self._device.copy_out(block.address, address, nbytes, self.stream)
        return block.view[:nbytes]

    def settle(self) -> None:
        """Wait until everything on `stream` is done."""
        with self._memory.final():
            self._device.wait(self.stream)
        self._busy.clear()

    def forget(self, *, failed: bool) -> None:
        """See memory.py. Staging is wiped even where the device does not answer any more."""
        try:
            with self._memory.final():
                # (2) After a failure the runtime may have left work on streams that are not ours.
                self._device.wait(None if failed else self.stream)
        finally:
            for staging in (*self._staging, *self._returning):
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
            for staging in (*self._staging, *self._returning):
                staging.give_back()
        for buffer in self._buffers.values():
            self._device.free(buffer.address)
        self._buffers.clear()
        self._device.end_stream(self.stream)

    def _room(self, key: tuple[str, int], nbytes: int) -> "_Buffer":
        """Return a request buffer of at least `nbytes`, all of which count as written (1)."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.nbytes < nbytes:
            size = max(_ALIGNMENT, -(-nbytes // _ALIGNMENT) * _ALIGNMENT)
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


@dataclass(slots=True)
class _Buffer:
    """Memory of the device of which the first `dirty` bytes may not be zero."""

    address: int
    nbytes: int
    dirty: int = 0


class _LockedPages:
    """Page-locked main memory (host_memory.py, `Pages`)."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.lost = False

    def allocate(self, nbytes: int) -> HostBlock:
        return self._device.allocate_host(nbytes)

    def wipe(self, block: HostBlock, nbytes: int) -> None:
        self._device.wipe_host(block, nbytes)

    def free(self, block: HostBlock) -> None:
        """Unlock and unmap, but for a device that may still write there: then the memory stays until the end."""
        if not self.lost:
            self._device.free_host(block)
