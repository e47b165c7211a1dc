"""Memory that is freed is overwritten: the environment that makes the allocators do it, and the proof that they do.

glibc fills freed blocks (`perturb`) once its per-thread cache, which it does not fill, is off; Python hands small
objects to glibc too (`PYTHONMALLOC=malloc`); MKL keeps no buffers of its own. All of it is read when a process starts,
so a process that was started without it replaces itself (`ensure`). The self-test writes, frees and reads the freed
addresses through /proc/self/mem. What it cannot see (registers, kernel buffers) is in LIMITATIONS.md.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

Zeroing = Literal["enforced", "best effort"]

TUNABLES: Final = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
ENVIRONMENT: Final[Mapping[str, str]] = {
    "GLIBC_TUNABLES": TUNABLES,
    "PYTHONMALLOC": "malloc",
    "MKL_DISABLE_FAST_MM": "1",
}
"""What makes freed memory be overwritten."""

RUNTIME_ENVIRONMENT: Final[Mapping[str, str]] = {
    # onnxruntime >= 1.29 sends telemetry unless this is set before it is imported.
    "ORT_DISABLE_TELEMETRY": "1",
    # A thread that numpy's import would start makes Landlock and namespaces cover only half of the process.
    "OPENBLAS_NUM_THREADS": "1",
}
"""What a runtime needs to be told before it is imported."""

# On the path of every request: called with the interpreter's lock held, which is half the price of letting it go.
_memset: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)(("memset", ctypes.CDLL(None)))
_BYTES_HEADER: Final = bytes.__basicsize__ - 1

_RESTARTED: Final = "HERMETIC_ZERO_ON_FREE"
_CANARY: Final = b"\x5a\xc3"
_SIZES: Final = (32, 200, 1000, 4096, 60_000, 1 << 18)  # bytes: every kind of block that glibc keeps differently
_BLOCKS: Final = 16  # of each size
_HEADER_BYTES: Final = 64  # at the start of a freed block glibc keeps its lists


def ensure() -> None:
    """Replace this process by itself under the environment, once. Call it first thing, with one thread.

    Returns where the environment is there already, or was tried before.
    """
    if os.environ.get(_RESTARTED) or all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()):
        return
    environment = {**os.environ, **ENVIRONMENT, _RESTARTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - the same program again


def environment() -> dict[str, str]:
    """Return the whole environment that a process of ours is started with: nothing is inherited."""
    return {**ENVIRONMENT, **RUNTIME_ENVIRONMENT, "PYTHONUTF8": "1"}


def interpreter() -> list[str]:
    """Return the command that starts Python for a process of ours, up to `-m`.

    Not `-I`: it would make Python ignore PYTHONMALLOC. The environment is ours, so `-s -P` leaves nothing else to it.
    """
    return [sys.executable, "-s", "-P", "-B"]


def status() -> Zeroing:
    """Return whether freed memory is overwritten in this process; "best effort" where it is not, or cannot be read."""
    try:
        return "enforced" if _survivors() == 0 else "best effort"
    except OSError:
        return "best effort"


def wipe(view: memoryview | bytearray) -> None:
    """Fill writable memory with zeros."""
    length = memoryview(view).nbytes
    if length:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 0, length)


def wipe_immutable_bytes_that_nobody_else_holds(secret: bytes) -> None:
    """Zero a `bytes` object in place. Only for one that was made here, is in no dictionary, and is not used again.

    CPython keeps bytes of length 0 and 1 as shared objects: those are left alone.
    """
    if len(secret) > 1:
        _memset(id(secret) + _BYTES_HEADER, 0, len(secret))


def _survivors() -> int:
    """Blocks that still hold what was written into them before they were freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    survivors = 0
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for size in _SIZES:
            fill = _CANARY * (size // len(_CANARY))
            blocks = [libc.malloc(size) for _ in range(_BLOCKS)]
            for block in blocks:
                ctypes.memmove(block, fill, size)
            objects = [bytes(bytearray(fill)) for _ in range(_BLOCKS)]
            blocks += [id(item) + bytes.__basicsize__ - 1 for item in objects]
            if sum(_holds(memory.fileno(), block, size, fill) for block in blocks) != len(blocks):
                raise OSError("zero-on-free self-test: cannot see what was just written")
            for block in blocks[:_BLOCKS]:
                libc.free(block)
            del objects
            survivors += sum(_holds(memory.fileno(), block, size, fill) for block in blocks)
    return survivors


def _holds(memory: int, block: int, size: int, fill: bytes) -> bool:
    """Whether the freed block still holds a tail of what was written; a block that was unmapped does not."""
    skip = min(_HEADER_BYTES, size // 2)
    try:
        return os.pread(memory, size - skip, block + skip) == fill[skip:]
    except OSError:
        return False
