"""The device memory that runtimes keep for later, and which of it is free (device_memory.py, `Cache`).

torch's caching allocator is asked (`torch.cuda.memory_snapshot`): it lists every block that it holds, with its state.
onnxruntime's arena cannot be asked, so it is replaced: `Arena` is the allocator that the options `gpu_external_*` of
its CUDA provider take. Neither library is imported here.
"""

import ctypes
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from hermetic.enclave.device_memory import Block, DeviceMemory
from hermetic.errors import DeviceError, DeviceFullError

__all__ = ["Arena", "TorchCache", "TorchCuda"]

_IN_USE: Final = "active_allocated"
_RETRIES: Final = "num_alloc_retries"
_REFUSALS: Final = "num_ooms"
_RESERVED: Final = "reserved_bytes.all.current"
_RESERVED_PEAK: Final = "reserved_bytes.all.peak"
_UNIT_BYTES: Final = 512  # what addresses and sizes of an arena are multiples of
_STEPS: Final = 8  # sizes between a power of two and the next

# Those that onnxruntime was told of. It says at a call neither which session it is for nor whose block it frees.
_told: Final[list["Arena"]] = []


class TorchCuda(Protocol):
    """What is asked of `torch.cuda`."""

    @property
    def memory_snapshot(self) -> Callable[..., list[dict[str, Any]]]:
        """Return all segments with their blocks."""

    def memory_stats(self, device: int) -> Mapping[str, int]:
        """Return the allocator's counters."""

    def empty_cache(self) -> None:
        """Give back segments without blocks in use."""


class TorchCache:
    """torch's caching allocator on one GPU. Source: torch.cuda.memory_snapshot and its structure (torch 2.13).

    Segments of CUDA graphs' pools are listed too: what a graph has freed at capture is written anew by each replay.
    """

    def __init__(self, cuda: TorchCuda, index: int = 0) -> None:
        """`cuda`: the module `torch.cuda`; `index`: the GPU as CUDA counts them."""
        self._cuda = cuda
        # Before torch 2.12 it cannot be told to leave traces out; there are none unless somebody records them.
        takes = inspect.signature(cuda.memory_snapshot).parameters
        self._arguments = {"include_traces": False} if "include_traces" in takes else {}
        self._index = index
        self._scratch: frozenset[Block] = frozenset()
        self._retries = self._count(_RETRIES)
        self._refusals = self._count(_REFUSALS)

    def was_full(self) -> bool:
        """Whether torch has had no room since this was last asked: not every error that comes of it says so."""
        before, self._refusals = self._refusals, self._count(_REFUSALS)
        return self._refusals != before

    def add_scratch(self, act: Callable[[], None]) -> None:
        """Take for a workspace of a library whatever `act` leaves in use; nobody needs its content between two calls.

        Nothing else may run.
        """
        before = {block for block, in_use in self._blocks() if in_use}
        act()
        self._scratch |= {block for block, in_use in self._blocks() if in_use} - before

    def free_blocks(self) -> Sequence[Block]:
        """Return all that no tensor uses, and the workspaces."""
        return [block for block, in_use in self._blocks() if not in_use or block in self._scratch]

    def all_blocks(self) -> Sequence[Block]:
        """Return everything that torch has allocated."""
        return [block for block, _ in self._blocks()]

    def wiped(self) -> None:
        """Nothing to note: torch tells again what is free."""

    def given_back(self) -> int:
        """Return a bound: after an allocation that failed, torch gives back its free segments and tries again."""
        retries = self._count(_RETRIES)
        if retries == self._retries:
            return 0
        self._retries = retries
        return self._count(_RESERVED_PEAK) - self._count(_RESERVED)

    def release(self) -> None:
        """Have torch give back what is not in use."""
        self._cuda.empty_cache()

    def _count(self, name: str) -> int:
        return int(self._cuda.memory_stats(self._index).get(name, 0))

    def _blocks(self) -> Iterator[tuple[Block, bool]]:
        for segment in self._cuda.memory_snapshot(**self._arguments):
            if segment["device"] == self._index:
                for block in segment["blocks"]:
                    yield Block(block["address"], block["size"]), block["state"] == _IN_USE


class Arena:
    """Device memory for onnxruntime's CUDA provider, given out and taken back by us.

    A freed block is given out again as it is while the tenant stays, and is zero when another comes. onnxruntime puts
    all work of a session with such an allocator on one stream, so a block may be given out again at once; and a run has
    ended on the device when it returns. (`user_compute_stream` and `disable_synchronize_execution_providers` would
    change that: never set them beside this.) Source: onnxruntime.ai, CUDA execution provider, `gpu_external_*`.
    """

    def __init__(self, memory: DeviceMemory, limit_bytes: int, *, keeps: bool = False) -> None:
        """Join `memory`. At most `limit_bytes` are allocated; beyond, onnxruntime's run fails.

        `keeps`: blocks are not given back before the end to make room for others: recorded CUDA graphs write there.
        """
        self._memory = memory
        self._limit = limit_bytes
        self._total = 0
        self._used: dict[int, int] = {}  # address -> bytes, as below
        self._free: dict[int, int] = {}
        self._by_size: dict[int, list[int]] = {}
        self._dirty: set[int] = set()  # addresses of free blocks
        self._fault = ""
        self._refusal: DeviceError | None = None
        self._keeps = keeps
        memory.add_cache(self)

    def provider_options(self) -> dict[str, str]:
        """Return the options of `CUDAExecutionProvider` that make it allocate here."""
        _told.append(self)
        return {name: str(ctypes.cast(function, ctypes.c_void_p).value) for name, function in _FUNCTIONS.items()}

    def allocate(self, nbytes: int) -> int:
        """Return the address of at least `nbytes`; `DeviceFullError` beyond the limit or without room."""
        size = _rounded(nbytes)
        waiting = self._by_size.get(size)
        if waiting:
            address = waiting.pop()
            del self._free[address]
            self._dirty.discard(address)
        else:
            address = self._new(size)
        self._used[address] = size
        return address

    def free(self, address: int) -> None:
        """Take a block back, with what is in it."""
        size = self._used.pop(address, None)
        if size is None:
            raise DeviceError(f"GPU memory: wanted a block of this arena freed, got {address:#x}")
        self._free[address] = size
        self._by_size.setdefault(size, []).append(address)
        self._dirty.add(address)

    def free_blocks(self) -> Sequence[Block]:
        """Return what was freed since it was last wiped; all that is free where recorded graphs write unasked."""
        self._check()
        return [Block(address, self._free[address]) for address in sorted(self._free if self._keeps else self._dirty)]

    def all_blocks(self) -> Sequence[Block]:
        """Return everything."""
        self._check()
        return [Block(address, size) for address, size in sorted({**self._used, **self._free}.items())]

    def wiped(self) -> None:
        """Take note that all free blocks are zero."""
        self._dirty.clear()

    def given_back(self) -> int:
        """Nothing leaves here unwiped."""
        return 0

    def has_out(self, address: int) -> bool:
        """Whether a block of this address was given out, and not taken back."""
        return address in self._used

    def release(self) -> None:
        """Give free blocks back to the device: `DeviceError` where they are not wiped."""
        if self._dirty:
            raise DeviceError(
                f"GPU memory: wanted blocks wiped before they are freed, got {len(self._dirty)} that are not"
            )
        for address, size in list(self._free.items()):
            self._memory.device.free(address)
            del self._free[address]
            self._total -= size
        self._by_size.clear()

    def _new(self, size: int) -> int:
        if self._total + size > self._limit:
            self._make_room()
        if self._total + size > self._limit:
            raise DeviceFullError(
                f"GPU memory: wanted at most {self._limit} bytes for this model, got {self._total + size}"
            )
        try:
            address = self._memory.device.allocate(size)
        except DeviceError:
            self._make_room()
            address = self._memory.device.allocate(size)
        self._total += size
        return address

    def refusal(self) -> DeviceError | None:
        """Return why an allocation was refused since this was last asked: the library's own error does not say."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def _make_room(self) -> None:
        if self._keeps:
            return
        self._memory.wipe(self.free_blocks())
        self.wiped()
        self.release()

    def _check(self) -> None:
        if self._fault:
            raise DeviceError(self._fault)

    def on_allocate(self, nbytes: int) -> int | None:
        """Called by onnxruntime, which makes an error of a null pointer. Nothing may be raised into it."""
        try:
            return self.allocate(nbytes)
        except DeviceError as error:
            self._refusal = error
            return None

    def on_free(self, address: int | None) -> None:
        """Called by onnxruntime. What goes wrong is raised when blocks are wiped next."""
        try:
            if address:
                self.free(address)
        except DeviceError as error:
            self._fault = str(error)


def _allocate(nbytes: int) -> int | None:
    """Called for the session that was made last: a process has one."""
    return _told[-1].on_allocate(nbytes) if _told else None


def _free(address: int | None) -> None:
    owners = [arena for arena in _told if address is not None and arena.has_out(address)]
    for arena in owners or _told[-1:]:
        arena.on_free(address)


def _nothing() -> None:
    """Called when onnxruntime has freed a large block, and would have a cache emptied: it is, at the next wipe."""


# Made when this is imported, because a callback is a piece of executable memory: a process that is locked down can make
# none. A library that was given their addresses may call them for as long as the process lives.
_FUNCTIONS: Final[Mapping[str, Any]] = {
    "gpu_external_alloc": ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(_allocate),
    "gpu_external_free": ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_free),
    "gpu_external_empty_cache": ctypes.CFUNCTYPE(None)(_nothing),
}


def _rounded(nbytes: int) -> int:
    """Return a size that few others round to: at most an eighth more."""
    unit = max(_UNIT_BYTES, (1 << max(0, nbytes - 1).bit_length()) // (2 * _STEPS))
    return max(unit, -(-nbytes // unit) * unit)
