"""Attempts to run code of its own, and to get past bounds. Each returns its evidence, or raises."""

import ctypes
import mmap
import os
import resource
import struct
import threading

from hermetic.enclave.isolation import kernel
from tests.enclave.isolation.surroundings import CODE, THREADS, TOO_MUCH, Surroundings

call = kernel.syscall
READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
PAGE = 4096
READ_IMPLIES_EXEC = 0x0400000
SHM_RDONLY, SHM_EXEC, IPC_REMOVE = 0o10000, 0o100000, 0
PIECES = 16
DESCRIPTORS = 300
STACK_BYTES = 64 << 10


def _run(address: int) -> str:
    """Call what lies at `address`; a page that is not executable is the end of this process."""
    return f"code ran: {ctypes.PYFUNCTYPE(ctypes.c_int)(address)()}"


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def executable_mapping(_around: Surroundings) -> str:
    memory = mmap.mmap(-1, PAGE, prot=READ | WRITE | EXECUTE)
    memory.write(CODE)
    return _run(_address(memory))


def executable_later(_around: Surroundings) -> str:
    memory = mmap.mmap(-1, PAGE)
    memory.write(CODE)
    call("mprotect", _address(memory), PAGE, READ | EXECUTE)
    return _run(_address(memory))


def executable_pkey(_around: Surroundings) -> str:
    memory = mmap.mmap(-1, PAGE)
    memory.write(CODE)
    call("pkey_mprotect", _address(memory), PAGE, READ | EXECUTE, -1)
    return _run(_address(memory))


def executable_shared_memory(around: Surroundings) -> str:
    """One mapping to write, another to run: neither is both."""
    with mmap.mmap(around.growable, PAGE) as writable:
        writable.write(CODE)
    address = call("mmap", 0, PAGE, READ | EXECUTE, mmap.MAP_SHARED, around.growable, 0)
    return _run(address)


def executable_shared_later(around: Surroundings) -> str:
    """One mapping: written, then made executable."""
    memory = mmap.mmap(around.growable, PAGE)
    memory.write(CODE)
    call("mprotect", _address(memory), PAGE, READ | EXECUTE)
    return _run(_address(memory))


def executable_ipc(_around: Surroundings) -> str:
    identifier = call("shmget", 0, PAGE, 0o700)
    try:
        ctypes.memmove(call("shmat", identifier, 0, 0), CODE, len(CODE))
        return _run(call("shmat", identifier, 0, SHM_RDONLY | SHM_EXEC))
    finally:
        call("shmctl", identifier, IPC_REMOVE, None)


def executable_by_personality(_around: Surroundings) -> str:
    call("personality", READ_IMPLIES_EXEC)
    memory = mmap.mmap(-1, PAGE)
    memory.write(CODE)
    return _run(_address(memory))


def write_sealed(around: Surroundings) -> str:
    (readable,) = around.readable.values()
    with mmap.mmap(readable, PAGE) as memory:
        memory[0] = 1
    return "written"


def grow_shared_memory(around: Surroundings) -> str:
    os.ftruncate(around.growable, TOO_MUCH)
    return f"{TOO_MUCH >> 20} MiB"


def raise_limits(_around: Surroundings) -> str:
    limit = struct.pack("QQ", DESCRIPTORS, DESCRIPTORS)
    call("prlimit64", 0, resource.RLIMIT_NOFILE, limit, None)
    return f"{DESCRIPTORS} descriptors"


def more_descriptors(around: Surroundings) -> str:
    return f"{len([os.dup(around.letters) for _ in range(around.descriptors)])} more"


def more_threads(_around: Surroundings) -> str:
    threading.stack_size(STACK_BYTES)  # so that it is not memory that runs out
    hold = threading.Event()
    threads = [threading.Thread(target=hold.wait, daemon=True) for _ in range(3 * THREADS)]
    try:
        for thread in threads:
            thread.start()
    finally:
        hold.set()
    return f"{len(threads)} threads"


def more_memory(_around: Surroundings) -> str:
    return _touch(TOO_MUCH, 1)


def more_memory_in_pieces(_around: Surroundings) -> str:
    return _touch(TOO_MUCH // PIECES, PIECES)


def _touch(size: int, pieces: int) -> str:
    held = [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(pieces)]
    for piece in held:
        piece[::PAGE] = bytes(size // PAGE)
    return f"{size * pieces >> 20} MiB"


SUITE = (
    executable_mapping, executable_later, executable_pkey, executable_shared_memory, executable_shared_later,
    executable_ipc, executable_by_personality, write_sealed, grow_shared_memory, raise_limits, more_descriptors,
    more_threads, more_memory, more_memory_in_pieces,
)  # fmt: skip
