"""The start self-test of zero-on-free: what is freed through every door is looked at, at its old address.

A block is filled with a random canary, freed, and looked at by having the kernel copy what lies there into a file in
memory, which it refuses where nothing does. Not through /proc/self/mem: that belongs to root in a process that is not
dumpable, as an ordinary user's worker is by then. The doors are those that differ inside an allocator: blocks of its
per-thread cache, larger ones, mapped ones, Python's objects, what realloc cuts off or leaves behind, and C++. Needs a
memfd, and takes some milliseconds. What no free passes is not seen (LIMITATIONS.md).
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["left_behind"]

CANARY_BYTES: Final = 16  # the shortest remainder that is seen: glibc alone leaves up to 8 at the end of a block
SMALL: Final = (32, 208, 1008)  # bytes: kept by glibc's per-thread cache, where it is on
MIDDLE: Final = (4096, 60_000)  # bytes: in bins
LARGE: Final = (1 << 18,)  # bytes: mapped at first, then in bins
ALIGNMENT: Final = 64  # bytes: what runtimes ask for
SHRUNK: Final = 64  # bytes that realloc keeps
GROWN: Final = 4  # times as many as before
_BLOCKS: Final = 16  # of each size: more than a cache holds
_FEW_BLOCKS: Final = 3  # of those that take long to fill
_CPP: Final = "libstdc++.so.6"

_Pointer = int | None
_Allocate = Callable[[int], _Pointer]
_Free = Callable[[_Pointer, int], None]  # with the block's size, which only some doors take
_Holds = Callable[[int, int], bool]

_malloc: Final[_Allocate] = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", ctypes.CDLL(None)))
_free: Final[Callable[[_Pointer], None]] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("free", ctypes.CDLL(None)))
_realloc: Final[Callable[[_Pointer, int], _Pointer]] = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
)(("realloc", ctypes.CDLL(None)))
_aligned_alloc: Final[Callable[[int, int], _Pointer]] = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
)(("aligned_alloc", ctypes.CDLL(None)))
_pwrite: Final[Callable[[int, int, int, int], int]] = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long
)(("pwrite", ctypes.CDLL(None)))


def left_behind() -> list[str]:
    """Return the doors through which freed memory came as it was; none where all of it is overwritten.

    Raises `OSError` where there is no memory to look at it with, or it does not show what was just written.
    """
    canary = os.urandom(CANARY_BYTES)
    seen = bytearray(max(SMALL + MIDDLE + LARGE))
    descriptor = os.memfd_create("hermetic-freed", os.MFD_CLOEXEC)

    def holds(address: int, size: int) -> bool:
        """Whether a whole canary is there; not in memory that was given back to the kernel."""
        copied = _pwrite(descriptor, address, size, 0)
        if copied <= 0:
            return False
        got = os.preadv(descriptor, [memoryview(seen)[:copied]], 0)
        return seen.find(canary, 0, got) >= 0

    try:
        return [name for name, door in _doors() if door(canary, holds)]
    finally:
        os.close(descriptor)


def _doors() -> Iterator[tuple[str, Callable[[bytes, _Holds], bool]]]:
    yield "small blocks", lambda canary, holds: _freed(canary, holds, SMALL, _malloc, _libc_free)
    yield "middle blocks", lambda canary, holds: _freed(canary, holds, MIDDLE, _malloc, _libc_free)
    yield "large blocks", lambda canary, holds: _freed(canary, holds, LARGE, _malloc, _libc_free)
    # Once more: glibc has learned from the first time not to map such blocks, and keeps them itself.
    yield "large blocks again", lambda canary, holds: _freed(canary, holds, LARGE, _malloc, _libc_free)
    yield "large aligned blocks", lambda canary, holds: _freed(canary, holds, LARGE, _aligned, _libc_free)
    yield "Python's objects", _python
    yield "what realloc cuts off", _shrunk
    yield "what realloc moves away from", _moved
    yield from _cpp_doors()


def _freed(canary: bytes, holds: _Holds, sizes: tuple[int, ...], allocate: _Allocate, free: _Free) -> bool:
    """Whether any freed block still holds a canary."""
    found = False
    for size in sizes:
        blocks = _filled(canary, holds, size, allocate)
        for block in blocks:
            free(block, size)
        found |= any(holds(block, size) for block in blocks)
    return found


def _aligned(size: int) -> _Pointer:
    return _aligned_alloc(ALIGNMENT, size)


def _libc_free(block: _Pointer, _size: int) -> None:
    _free(block)


def _filled(canary: bytes, holds: _Holds, size: int, allocate: _Allocate) -> list[int]:
    """Return addresses of blocks of this size, full of canaries."""
    content = canary * (size // CANARY_BYTES)
    blocks = [allocate(size) or 0 for _ in range(_BLOCKS if size in SMALL else _FEW_BLOCKS)]
    if not all(blocks):
        raise OSError("self-test of freed memory: wanted some memory, got none")
    for block in blocks:
        ctypes.memmove(block, content, len(content))
    _check_seen(all(holds(block, size) for block in blocks))
    return blocks


def _check_seen(seen: bool) -> None:  # noqa: FBT001 - it is the one thing that is said
    if not seen:
        raise OSError("self-test of freed memory: cannot see what was just written")


def _python(canary: bytes, holds: _Holds) -> bool:
    found = False
    for size in (*SMALL, *MIDDLE):
        objects = [bytes(bytearray(canary * (size // CANARY_BYTES))) for _ in range(_BLOCKS)]
        places = [id(one) + bytes.__basicsize__ - 1 for one in objects]
        _check_seen(all(holds(place, size) for place in places))
        del objects
        found |= any(holds(place, size) for place in places)
    return found


def _shrunk(canary: bytes, holds: _Holds) -> bool:
    """Whether what realloc cut off, or a block that it left, still holds a canary."""
    found = False
    for size in (*SMALL[1:], *MIDDLE, *LARGE):
        for block in _filled(canary, holds, size, _malloc):
            now = _realloc(block, SHRUNK)
            found |= holds(block + SHRUNK, size - SHRUNK) if now == block else holds(block, size)
            _free(now)
    return found


def _moved(canary: bytes, holds: _Holds) -> bool:
    """Whether a block that realloc moved away from still holds a canary."""
    found = False
    for size in (*SMALL, *MIDDLE):
        blocks = _filled(canary, holds, size, _malloc)
        # Looked at one by one: the next may move to where this one was.
        moved = [(old, _realloc(old, GROWN * size), holds(old, size)) for old in blocks]
        found |= any(old != new and held for old, new, held in moved)
        for _, new, _ in moved:
            _free(new)
    return found


def _cpp_doors() -> Iterator[tuple[str, Callable[[bytes, _Holds], bool]]]:
    """C++'s new and delete, plain and sized; none where this process has loaded no C++ library."""
    try:
        cpp = ctypes.CDLL(_CPP, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return
    new: _Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("_Znwm", cpp))
    plain = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("_ZdlPv", cpp))
    sized: _Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)(("_ZdlPvm", cpp))
    sizes = (*SMALL, *MIDDLE)
    yield "C++ delete", lambda canary, holds: _freed(canary, holds, sizes, new, lambda block, _: plain(block))
    yield "C++ sized delete", lambda canary, holds: _freed(canary, holds, sizes, new, sized)
