"""Memory for keys at rest: the kernel itself cannot read it for anyone; wiped, and looked at once it is wiped.

    secret    memfd_secret (Linux >= 5.14): not in the kernel's own map of memory, so neither /proc/PID/mem nor
              process_vm_readv, core dumps, swap or hibernation reach it
    locked    anonymous memory under mlock, kept out of dumps and forks: where the kernel has no memfd_secret
    unlocked  the same without mlock (RLIMIT_MEMLOCK): its pages may be swapped out

Nobody can scan the first kind from outside, so a process looks for itself: `wipe` reads back what it has overwritten.
Cryptography is given views of this memory, one call at a time; what a library copies for that call is overwritten when
it is freed. Used by workers and the broker. docs/adr/0158 has the reasons.
"""

import contextlib
import ctypes
import mmap
import os
import weakref
from types import TracebackType
from typing import Final, Literal, Self

from hermetic.errors import KeyNotWipedError

__all__ = ["KeyMemory", "KeyMemoryKind", "probe", "wipe_bytes_that_nobody_else_holds"]

KeyMemoryKind = Literal["secret", "locked", "unlocked"]

_MEMFD_SECRET: Final = 447  # the system call's number on every architecture
_MADV_DONTFORK: Final = 10
_MADV_DONTDUMP: Final = 16
_MADV_WIPEONFORK: Final = 18
_ALIGNMENT: Final = 16  # bytes
_BYTES_HEADER: Final = bytes.__basicsize__ - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = _libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class KeyMemory:
    """`size` bytes for secrets, all zero; a context manager that wipes at its end, also when an exception passes."""

    def __init__(self, size: int, *, kinds: tuple[KeyMemoryKind, ...] = ("secret", "locked", "unlocked")) -> None:
        """Map at least `size` bytes of the best of `kinds` that the host gives. `OSError` where it gives none."""
        self._size = max(size, 1)
        self._taken = 0
        address, self.kind = _map_best(self._size, kinds)
        """What the host gave."""
        whole = (ctypes.c_char * self._size).from_address(address)
        # Views of it keep it, and with it the mapping.
        weakref.finalize(whole, _libc.munmap, address, self._size)
        self._whole: ctypes.Array[ctypes.c_char] | None = whole

    @property
    def view(self) -> memoryview:
        """All of it, writable."""
        if self._whole is None:
            raise ValueError("key memory: wanted memory that holds a key, got one that was wiped")
        return memoryview(self._whole).cast("B")

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes that nobody has taken, writable. `ValueError` where so many are not left."""
        start = -(-self._taken // _ALIGNMENT) * _ALIGNMENT
        if start + size > self._size:
            raise ValueError(f"key memory: wanted {size} bytes, got {self._size - start} that are left")
        self._taken = start + size
        return self.view[start : start + size]

    def wipe(self) -> None:
        """Overwrite with zeros, look at every byte, unmap. Can be called again.

        Raises `KeyNotWipedError` where a byte is left. A view that somebody still holds keeps the mapping, of zeros.
        """
        if self._whole is None:
            return
        self._overwrite(self._whole)
        with self.view as view:
            left = sum(map(bool, view))
        self._whole = None
        if left:
            raise KeyNotWipedError(f"key memory: wanted {self._size} bytes of zero after the wipe, got {left} others")

    def _overwrite(self, whole: ctypes.Array[ctypes.c_char]) -> None:
        ctypes.memset(ctypes.addressof(whole), 0, self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()


def probe() -> KeyMemoryKind:
    """Return what a key would lie in here."""
    with KeyMemory(1) as memory:
        return memory.kind


def wipe_bytes_that_nobody_else_holds(secret: bytes) -> None:
    """Zero a `bytes` object in place: only one that a library has just made for us, and that is not used again.

    CPython keeps bytes of length 0 and 1 as shared objects: those are left alone.
    """
    if len(secret) > 1:
        ctypes.memset(id(secret) + _BYTES_HEADER, 0, len(secret))


def _map_best(size: int, kinds: tuple[KeyMemoryKind, ...]) -> tuple[int, KeyMemoryKind]:
    if "secret" in kinds:
        with contextlib.suppress(OSError):
            return _secret(size), "secret"
    address = _mapped(size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    for advice in (_MADV_DONTDUMP, _MADV_WIPEONFORK):
        _checked(_libc.madvise(address, size, advice), "madvise")
    if "locked" in kinds and _libc.mlock(address, size) == 0:
        return address, "locked"
    if "unlocked" in kinds:
        return address, "unlocked"
    _libc.munmap(address, size)
    raise OSError(f"key memory: wanted one of {', '.join(kinds)}, got none from this host")


def _secret(size: int) -> int:
    descriptor = _checked(_libc.syscall(ctypes.c_long(_MEMFD_SECRET), ctypes.c_ulong(os.O_CLOEXEC)), "memfd_secret")
    try:
        os.ftruncate(descriptor, size)
        # Locked, so refused beyond RLIMIT_MEMLOCK. Not by Python's mmap, which keeps a descriptor: whoever may trace
        # this process could take it (pidfd_getfd), map it, and read.
        address = _mapped(size, mmap.MAP_SHARED, descriptor)
    finally:
        os.close(descriptor)
    _checked(_libc.madvise(address, size, _MADV_DONTFORK), "madvise")
    return address


def _mapped(size: int, flags: int, descriptor: int) -> int:
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if address == _MAP_FAILED:
        _checked(-1, "mmap")
    return int(address)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
