"""Memory that is freed is overwritten: what makes the allocators do it, and the proof that they do (ADR 0161).

Where there is one, a small library is preloaded that wipes what is freed (zero_on_free.c). Else glibc is told to fill
freed blocks (`perturb`), which needs its per-thread cache off, and leaves up to 8 bytes at a block's end. With either
Python hands small objects to the C library too (`PYTHONMALLOC=malloc`), and MKL keeps no buffers of its own.

All of it is read when a process starts, so a process that was started without it replaces itself (`ensure`). Each
process looks at its own freed memory then (freed_memory.py) and reports what it saw. What cannot be seen (registers,
kernel buffers) is in LIMITATIONS.md.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from hermetic.enclave import freed_memory, zero_on_free_library
from hermetic.enclave.zero_on_free_library import Library
from hermetic.errors import ConfigurationError

TUNABLES: Final = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
CACHE: Final = "glibc.malloc.tcache_count=127"
"""For the library's processes: Python frees objects in bursts, and past 7 of a size glibc's long way begins."""
RUNTIME_ENVIRONMENT: Final[Mapping[str, str]] = {
    # onnxruntime >= 1.29 sends telemetry unless this is set before it is imported.
    "ORT_DISABLE_TELEMETRY": "1",
    # A thread that numpy's import would start makes Landlock and namespaces cover only half of the process.
    "OPENBLAS_NUM_THREADS": "1",
    # What AOTInductor makes believes the shapes and types of its inputs unless it is told to look.
    "AOTI_RUNTIME_CHECK_INPUTS": "1",
}
"""What a runtime needs to be told before it is imported."""

GIVE_BACK: Final = "hermetic_give_kept_blocks_back"
PRELOAD: Final = "preload"
BY_GLIBC: Final = "glibc-tunables"
BY_NOTHING: Final = "nothing"

# On the path of every request: called with the interpreter's lock held, which is half the price of letting it go.
_memset: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)(("memset", ctypes.CDLL(None)))
_BYTES_HEADER: Final = bytes.__basicsize__ - 1
_ZEROS: Final = memoryview(bytes(64 << 10))
_seen: Final[list[str]] = []
"""What the self-test has seen to overwrite all freed memory of this process: the library, or nothing."""

_RESTARTED: Final = "HERMETIC_ZERO_ON_FREE"
_LEFT_TO_US: Final[Mapping[str, str | None]] = {"LD_PRELOAD": None, "LD_AUDIT": None, "GLIBC_TUNABLES": None}


@dataclass(frozen=True, slots=True)
class Zeroing:
    """Whether freed memory is overwritten in this process, and by what.

    `by` is "preload:" and the SHA-256 of the library's source in hex, "glibc-tunables", or "nothing". `why` says what
    was found where it is not enforced, or not by the library; "" where all is well.
    """

    state: Literal["enforced", "best effort"]
    by: str
    why: str = ""


NOT_LOOKED_AT: Final = Zeroing("best effort", BY_NOTHING, "nobody has looked")


def ensure() -> None:
    """Replace this process by itself under the environment, once. Call it first thing, with one thread.

    Returns where the environment is there already, or was tried before. Libraries that somebody else has asked to
    preload, and other orders to glibc's allocator, are gone then.
    """
    wanted = {**_LEFT_TO_US, **_orders()}
    if os.environ.get(_RESTARTED) or all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    kept = {name: value for name, value in os.environ.items() if name not in wanted}
    environment = {**kept, **_orders(), _RESTARTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - the same program again


def environment() -> dict[str, str]:
    """Return the whole environment that a process of ours is started with: nothing is inherited."""
    return {**_orders(), **RUNTIME_ENVIRONMENT, "PYTHONUTF8": "1"}


def interpreter() -> list[str]:
    """Return the command that starts Python for a process of ours, up to `-m`.

    Not `-I`: it would make Python ignore PYTHONMALLOC. The environment is ours, so `-s -P` leaves nothing else to it.
    """
    return [sys.executable, "-s", "-P", "-B"]


def program(module: str) -> list[str]:
    """Return the command that starts one of our programs: on compiled modules, where there are any (ADR 0142)."""
    return [*interpreter(), "-m", "hermetic.compiled", module]


def status() -> Zeroing:
    """Look at freed memory, and return whether it is overwritten here and by what."""
    _seen.clear()
    by, why = _in_force()
    try:
        left = freed_memory.left_behind()
    except OSError as error:
        return Zeroing("best effort", by, str(error))
    if left:
        return Zeroing("best effort", by, f"not overwritten: {', '.join(left)}")
    if by.startswith(PRELOAD):
        _seen[:] = [by]
    return Zeroing("best effort" if by == BY_NOTHING else "enforced", by, why)


def wipe(view: memoryview | bytearray) -> None:
    """Fill writable memory with zeros."""
    memory = memoryview(view)
    length = memory.nbytes
    if length <= len(_ZEROS) and memory.format == "B" and memory.ndim == 1:
        memory[:] = _ZEROS[:length]  # a third of what asking for an address costs
    else:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 0, length)


def wipe_immutable_bytes_that_nobody_else_holds(secret: bytes) -> None:
    """Zero a `bytes` object in place. Only for one that was made here, is in no dictionary, and is not used again.

    CPython keeps bytes of length 0 and 1 as shared objects: those are left alone.
    """
    if len(secret) > 1:
        _memset(id(secret) + _BYTES_HEADER, 0, len(secret))


def wipe_bytes_about_to_be_freed(secret: bytes) -> None:
    """Zero a `bytes` object, as above, whose last reference the caller drops next; nothing where `free` zeroes it then.

    That is where the library is in force, by the self-test of `status` in this process.
    """
    if not _seen:
        wipe_immutable_bytes_that_nobody_else_holds(secret)


def give_kept_blocks_back() -> None:
    """Give the kernel what large aligned blocks were freed so far; nothing where the library is not preloaded.

    For a process that has loaded its model: what that took would be kept as if batches needed it (ADR 0148).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, GIVE_BACK):
        getattr(library, GIVE_BACK)()


def _orders() -> dict[str, str]:
    """Return what has freed memory overwritten, as environment variables."""
    found = _library()
    allocator = {"GLIBC_TUNABLES": TUNABLES}
    if isinstance(found, Library):
        allocator = {"GLIBC_TUNABLES": CACHE, "LD_PRELOAD": str(found.path)}
    return {**allocator, "PYTHONMALLOC": "malloc", "MKL_DISABLE_FAST_MM": "1"}


@cache
def _library() -> Library | str:
    """Return the library, or why there is none."""
    try:
        return zero_on_free_library.find()
    except ConfigurationError as error:
        return str(error)


def _in_force() -> tuple[str, str]:
    """Return what overwrites freed memory here, by whose `free` is called; and why it is not the library."""
    found = _library()
    owners = {zero_on_free_library.file_of(function) for function in ("free", "realloc")}
    if isinstance(found, Library) and owners == {str(found.path)}:
        return f"{PRELOAD}:{found.source_sha256}", ""
    why = "started without it" if isinstance(found, Library) else found
    if owners != {zero_on_free_library.file_of("gnu_get_libc_version")}:
        return BY_NOTHING, f"free and realloc are those of {', '.join(sorted(owners))}"
    if os.environ.get("GLIBC_TUNABLES") != TUNABLES:
        return BY_NOTHING, "nothing was asked for"
    return BY_GLIBC, why
