"""What lies around a locked process in the escape suite: things of others for it to reach, and what it was handed.

Made once, by the process that forks every locked one; a locked process has them by inheritance. All of it goes with
`close`. The programs are a few instructions each, without a library: an empty root must not be what stops them.
"""

import ctypes
import fcntl
import mmap
import os
import platform
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermetic.enclave.isolation import kernel

MEMORY = 48 << 20  # bytes that a room may map
TOO_MUCH = 128 << 20  # bytes, what an attempt takes
THREADS = 6
GAINED_UID = 4242
_WAITING = 4096  # connections that nobody takes
_SHARED = 0o666
_IPC_REMOVE = 0

_RETURN_42 = {"x86_64": "b82a000000c3", "aarch64": "40058052c0035fd6"}
# exit(0); and exit(0) where the effective uid is GAINED_UID, with another status otherwise.
_EXIT = {"x86_64": "bf00000000b83c0000000f05", "aarch64": "00008052a80b80d2010000d4"}
_EXIT_IF_GAINED = {
    "x86_64": "b86b0000000f053d92100000bf000000007405bf4d000000b83c0000000f05",
    "aarch64": "e81580d2010000d4411282521f00016be0079f1aa80b80d2010000d4",
}
_PROCESS_ID_OF_32_BITS = {"x86_64": "b814000000cd80c3"}  # return getpid(), asked by `int 0x80`
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
CODE = bytes.fromhex(_RETURN_42[platform.machine()])
"""Machine code of a function that returns 42."""


def program(code: str) -> bytes:
    """The smallest static executable that runs this machine code."""
    base, header = 0x400000, 64 + 56
    body = bytes.fromhex(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    machine = _ELF_MACHINES[platform.machine()]
    elf = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + header, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    size = header + len(body)
    return ident + elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + body


@dataclass
class Surroundings:
    """What attempts use. Numbers are descriptors where they are not said to be something else."""

    folder: Path
    tcp: int  # a port
    tcp6: int  # a port; 0: no IPv6
    unix: str  # a path
    abstract: str
    ipc: int  # System V identifier of memory of another process
    static: int  # an executable in memory
    setuid: str  # path of an executable that gains GAINED_UID
    readable: dict[bool, int]  # shared memory that is to be read: sealed, and not
    letters: int  # one end of a pair of sockets
    answers: int  # the other end, which the parent reads
    neighbour: int  # who reads memory of this process when it is asked to
    target: Any = field(default_factory=lambda: ctypes.create_string_buffer(8))  # at the same address in the parent
    parent: int = 0  # a process id
    growable: int = -1  # shared memory, handed over, not yet sealed; each locked process has its own
    listener: socket.socket | None = None  # a front end's
    descriptors: int = 0  # how many it may have
    call_of_32_bits: int = 0  # the address of code that makes one; 0: there are none


def _memfd(name: str, flags: int = 0, content: bytes = b"") -> int:
    memory = os.memfd_create(name, flags)
    os.write(memory, content)
    return memory


@contextmanager
def surroundings(folder: Path, neighbour: int) -> Iterator[Surroundings]:
    """Make them. `neighbour` is the descriptor of a socket to the process that reads others."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=_WAITING))
        tcp6 = _six(stack)
        unix, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        unix.bind(str(folder / "socket"))
        unix.listen(_WAITING)
        (folder / "socket").chmod(0o777)
        abstract.bind("")  # the kernel picks an abstract name
        abstract.listen(_WAITING)
        setuid = folder / "gain"
        setuid.write_bytes(program(_EXIT_IF_GAINED[platform.machine()]))
        if os.geteuid() == 0:
            os.chown(setuid, GAINED_UID, GAINED_UID)
        setuid.chmod(0o4755)
        ipc = kernel.syscall("shmget", 0, 4096, _SHARED)
        stack.callback(kernel.syscall, "shmctl", ipc, _IPC_REMOVE, None)
        letters, answers = (stack.enter_context(end) for end in socket.socketpair())
        code = stack.enter_context(_code(_PROCESS_ID_OF_32_BITS.get(platform.machine(), "")))
        sealed = _memfd("sealed", os.MFD_ALLOW_SEALING, bytes(4096))
        yield Surroundings(
            folder=folder,
            tcp=tcp.getsockname()[1],
            tcp6=tcp6,
            unix=str(folder / "socket"),
            abstract="\0" + abstract.getsockname()[1:].decode(),
            ipc=ipc,
            static=_memfd("program", 0, program(_EXIT[platform.machine()])),
            setuid=str(setuid),
            readable={True: _sealed(sealed), False: _memfd("readable", 0, bytes(4096))},
            letters=letters.fileno(),
            answers=answers.fileno(),
            neighbour=neighbour,
            parent=os.getpid(),
            call_of_32_bits=code,
        )


@contextmanager
def _code(code: str) -> Iterator[int]:
    """The address of machine code that was there before any lock-down; 0 for none."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory.write(bytes.fromhex(code))
        start = ctypes.c_char.from_buffer(memory)
        yield ctypes.addressof(start) if code else 0
        del start


def _sealed(memory: int) -> int:
    """Seal it as server/documents.py seals what front ends are to read."""
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    return memory


def _six(stack: ExitStack) -> int:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=_WAITING)
    except OSError:
        return 0
    port: int = stack.enter_context(server).getsockname()[1]
    return port
