"""Memory for runtimes that compute on a GPU: what memory.py promises, as decisions over a few calls of a device.

The batches themselves, from their inputs' way in to their wipes: device_batch.py. Copies and wipes of one batch are
ordered on a stream of its own.

Rules, each held by a property test:
 (1) What counts as written is noted before it is written, and forgotten only when its wipe is known to be done.
 (2) Main memory is wiped only after the device has finished with it; memory of the device in the order of its stream.
 (3) Only wiped memory is freed or used for something else.
 (4) Batches in a runtime at the same time are of one tenant; one whose tenant is not known is there alone. What is not
     there yet touches nothing but staging and request buffers of its own.
 (5) A failed wait or wipe is final: nothing is used or freed from then on, and every call says so. The device's memory
     then goes with its context, when the process ends.
 (6) Memory of others that is page-locked here (`lock`) is unlocked before it is unmapped, and after the device has
     finished with it. Where it cannot be unlocked, it stays mapped until the end: see (5).

Work of a batch that is not on its stream (onnxruntime has one of its own) must be complete when the runtime returns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from hermetic.enclave.device_batch import DeviceBatch, LockedPages
from hermetic.enclave.host_memory import HostBlock
from hermetic.errors import DeviceError

__all__ = ["Block", "Cache", "Device", "DeviceBatch", "DeviceMemory"]

SWEEP_BYTES: Final = 256 << 20  # at a time, when memory that libraries gave back is overwritten
SWEEP_LEAST_BYTES: Final = 2 << 20  # the driver gives memory out in pages of this size


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

    def allocate_host(self, nbytes: int, *, locked: bool = True) -> HostBlock:
        """Return main memory, all zeros, page-locked unless it must not be: copies are slower then."""

    def wipe_host(self, block: HostBlock, nbytes: int) -> None:
        """Zero the first `nbytes` of main memory, now."""

    def free_host(self, block: HostBlock) -> None:
        """Take main memory back."""

    def lock_host(self, address: int, nbytes: int) -> None:
        """Page-lock whole pages that are mapped already."""

    def unlock_host(self, address: int) -> None:
        """Undo that, before they are unmapped, once the device has finished with them."""

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
        self._pages = LockedPages(device)
        self._locked: set[int] = set()
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

    def batch(self, inputs: int) -> DeviceBatch:
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
        for step in (*closing, self._unlock_all, self._empty_caches, self._sweep_all):
            try:
                step()
            except DeviceError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def lock(self, address: int, nbytes: int) -> bool:
        """Page-lock memory that is shared with others; whether that could be done. It is theirs, and not wiped here."""
        self.check()
        try:
            self.device.lock_host(address, nbytes)
        except DeviceError:
            return False
        self._locked.add(address)
        return True

    def unlock(self, address: int) -> None:
        """Undo `lock`, once no batch uses the memory any more. Raises `DeviceError`: it must stay mapped then."""
        with self.final():
            self.device.wait(None)
            self.device.unlock_host(address)
        self._locked.discard(address)

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

    def _unlock_all(self) -> None:
        for address in list(self._locked):
            self.unlock(address)

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
