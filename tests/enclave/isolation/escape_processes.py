"""Attempts on other processes and on the kernel. Each returns its evidence, and raises where it was refused."""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import time
from typing import NoReturn

from hermetic.enclave.isolation import kernel
from tests.enclave.isolation.surroundings import Surroundings

call = kernel.syscall
HARMLESS = signal.SIGWINCH
PTRACE_SEIZE = 0x4206
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
SO_PEERPIDFD = 77
_PATIENCE_S = 0.05  # for a signal that is on its way


def fork(_around: Surroundings) -> str:
    """Wait for no child: that is another system call."""
    alive = mmap.mmap(-1, 1)
    if os.fork() == 0:
        alive[0] = 1
        os._exit(0)
    while not alive[0]:
        time.sleep(0.0005)
    return "a child"


def clone3(_around: Surroundings) -> str:
    child = call("clone3", struct.pack("=QQQQQQQQ", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
    if child == 0:
        os._exit(0)
    return "a child"


def execute(_around: Surroundings) -> NoReturn:
    os.execv("/bin/true", ["true"])  # ends with status 0


def execute_memory(around: Surroundings) -> NoReturn:
    os.execve(around.static, ["static"], {})


def gain_by_setuid(around: Surroundings) -> NoReturn:
    os.execv(around.setuid, ["gain"])


def ptrace(around: Surroundings) -> str:
    call("ptrace", PTRACE_SEIZE, around.parent, 0, 0)
    return "attached"


def _other(around: Surroundings) -> tuple[bytes, bytes, ctypes.Array[ctypes.c_char]]:
    """Vectors for eight bytes here, and for those at the same address there, where the parent keeps nothing else."""
    here = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(here), 8)
    return local, struct.pack("QQ", ctypes.addressof(around.target), 8), here


def read_parent(around: Surroundings) -> str:
    local, remote, _here = _other(around)
    return f"{call('process_vm_readv', around.parent, local, 1, remote, 1, 0)} bytes"


def write_parent(around: Surroundings) -> str:
    local, remote, _here = _other(around)
    return f"{call('process_vm_writev', around.parent, local, 1, remote, 1, 0)} bytes"


def signal_parent(around: Surroundings) -> str:
    os.kill(around.parent, HARMLESS)
    return "sent"


def queue_signal(around: Surroundings) -> str:
    queued = -1  # SI_QUEUE
    info = struct.pack("=iii4xii", HARMLESS, 0, queued, os.getpid(), os.getuid()) + bytes(104)
    call("rt_sigqueueinfo", around.parent, int(HARMLESS), info)
    return "sent"


def open_pidfd(around: Surroundings) -> str:
    return f"descriptor {os.pidfd_open(around.parent)}"


def pidfd_of_peer(around: Surroundings) -> str:
    """No system call of pidfds is made for it."""
    with socket.socket(fileno=os.dup(around.letters)) as end:
        return f"descriptor {end.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)}"


def signal_by_owner(around: Surroundings) -> str:
    """Nothing is sent: who is named here is signalled whenever something comes."""
    fcntl.fcntl(around.letters, fcntl.F_SETOWN, around.parent)
    fcntl.fcntl(around.letters, fcntl.F_SETOWN, 0)
    return "the parent is the owner"


def signal_by_pidfd(around: Surroundings) -> str:
    signal.pidfd_send_signal(os.pidfd_open(around.parent), HARMLESS)
    return "sent"


def steal_descriptor(around: Surroundings) -> str:
    return f"descriptor {call('pidfd_getfd', os.pidfd_open(around.parent), around.letters, 0)}"


def attach_ipc(around: Surroundings) -> str:
    call("shmat", around.ipc, 0, 0)
    return "attached"


def outlive_parent(around: Surroundings) -> str:
    """The parent ends as soon as it is told that this process is at this point."""
    before = os.getppid()
    os.write(around.letters, b"!")
    while os.getppid() == before:
        time.sleep(0.0005)
    time.sleep(_PATIENCE_S)
    return "still there"


def forget_parent(_around: Surroundings) -> str:
    kernel.prctl(PR_SET_PDEATHSIG, 0)
    return "undone"


def be_dumpable(_around: Surroundings) -> str:
    kernel.prctl(PR_SET_DUMPABLE, 1)
    return "undone"


def be_read(around: Surroundings) -> str:
    """A neighbour of the same uid tries, and says how it went."""
    secret = ctypes.create_string_buffer(b"secret!")
    os.write(around.neighbour, struct.pack("=iQ", os.getpid(), ctypes.addressof(secret)))
    answer = os.read(around.neighbour, 64)
    if answer != secret.raw:
        raise OSError(int(answer), os.strerror(int(answer)))
    return "it was read"


def leave_core(_around: Surroundings) -> NoReturn:
    os.abort()


def call_of_32_bits(around: Surroundings) -> str:
    """The numbers of such calls are others: what a filter by number forbids has one that it allows."""
    if not around.call_of_32_bits:
        raise OSError(errno.ENOSYS, "no such calls")
    if (got := ctypes.PYFUNCTYPE(ctypes.c_int)(around.call_of_32_bits)()) != os.getpid():
        raise OSError(-got, os.strerror(-got))
    return "it was told its process id"


def io_uring(_around: Surroundings) -> str:
    return f"descriptor {call('io_uring_setup', 1, ctypes.create_string_buffer(120))}"


def bpf(_around: Surroundings) -> str:
    array_of_one = struct.pack("IIII", 2, 4, 8, 1) + bytes(112)
    return f"descriptor {call('bpf', 0, array_of_one, 128)}"


def keyctl(_around: Surroundings) -> str:
    get_keyring, session, create = 0, -3, 1
    return f"keyring {call('keyctl', get_keyring, session, create):#x}"


def userfaultfd(_around: Surroundings) -> str:
    return f"descriptor {call('userfaultfd', 0)}"


def perf(_around: Surroundings) -> str:
    software, attribute_bytes = 1, 112
    attributes = struct.pack("II", software, attribute_bytes) + bytes(104)
    return f"descriptor {call('perf_event_open', attributes, 0, -1, -1, 0)}"


def mount(_around: Surroundings) -> str:
    """In a namespace of its own, so that this host sees nothing of it."""
    call("unshare", 0x20000)
    kernel.mount("none", "/", None, 1 << 18 | 16384)  # private
    kernel.mount("tmpfs", "/", "tmpfs", 0)
    return "mounted"


def unshare(_around: Surroundings) -> str:
    """A process with several threads has a child do it."""
    try:
        call("unshare", CLONE_NEWUSER)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        if call("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)
    return "root in a namespace of its own"


def setns(around: Surroundings) -> str:
    call("setns", os.pidfd_open(around.parent), CLONE_NEWNET)
    return "entered"


def chroot(_around: Surroundings) -> str:
    os.chroot("/")
    return "changed"


def memfd(_around: Surroundings) -> str:
    return f"descriptor {os.memfd_create('x')}"


def memfd_secret(_around: Surroundings) -> str:
    return f"descriptor {call('memfd_secret', 0)}"


SUITE = (
    fork, clone3, execute, execute_memory, gain_by_setuid, ptrace, read_parent, write_parent, signal_parent,
    queue_signal, open_pidfd, pidfd_of_peer, signal_by_owner, signal_by_pidfd, steal_descriptor, attach_ipc,
    outlive_parent, forget_parent, be_dumpable, be_read, leave_core, call_of_32_bits, io_uring, bpf, keyctl,
    userfaultfd, perf, mount, unshare, setns, chroot, memfd, memfd_secret,
)  # fmt: skip
