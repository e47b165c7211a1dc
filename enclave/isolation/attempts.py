"""What a hostile process would try once it is locked in, and which layers stop each attempt alone. Claims, as data.

Properties rest on these claims (properties.py), and the report says with them what a missing layer costs. Each is held
against the kernel by tests/enclave/isolation: every attempt is made with no layer, with each alone, with all, and with
all but one. docs/escape-matrix.md is what came of it.

An attempt is on the list where it reaches out of the room, or past a bound of it. That it is stopped by a layer means:
refused with an error, or answered by the end of the process.
"""

from dataclasses import dataclass
from typing import Final

from hermetic.enclave.isolation import layers as the
from hermetic.enclave.isolation.profiles import Profile

_FILES: Final = (the.EMPTY_ROOT, the.LANDLOCK_FILES, the.SECCOMP)
_CAPABILITY: Final = (the.OWN_UID, the.NO_CAPABILITIES, the.SECCOMP)
_LANDLOCK: Final = (the.LANDLOCK_FILES, the.LANDLOCK_TCP, the.LANDLOCK_SCOPES)
_REACH: Final = (the.USER_NAMESPACE, the.OWN_UID, *_LANDLOCK, the.SECCOMP)
_CLOSED: Final = (the.NOT_DUMPABLE,)
_LESS: Final = (the.NO_CAPABILITIES,)
_SIGNAL: Final = (the.OWN_UID, the.LANDLOCK_SCOPES, the.SECCOMP)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, and the layers each of which stops it.

    `kernel`: what a kernel or host must have for it to succeed at all, "" where each has it. `if_root`, `if_user`:
    layers that stop it only where the processes outside are root's, or an ordinary user's: capabilities make the
    difference. `may_stop`: layers that stop it on some kernels or hosts; not claimed.
    """

    name: str
    what: str
    stopped_by: tuple[str, ...]
    kernel: str = ""
    if_root: tuple[str, ...] = ()
    if_user: tuple[str, ...] = ()
    may_stop: tuple[str, ...] = ()


_ALL: Final = (
    # Files
    Attempt("open_file", "read /etc/passwd", _FILES),
    Attempt("stat_file", "ask for the size and owner of a file", (the.EMPTY_ROOT, the.SECCOMP)),
    Attempt("list_folder", "list /etc", _FILES),
    Attempt("write_file", "make a file in a folder that everybody may write to", _FILES),
    Attempt("own_memory", "open its own /proc/self/mem for writing", (*_FILES, the.OWN_UID), if_user=_CLOSED),
    Attempt("parents_memory", "open the parent's /proc/PID/mem", (*_REACH, the.EMPTY_ROOT), if_root=_LESS),
    # Network
    Attempt("connect_tcp", "connect to a TCP port", (the.NETWORK_NAMESPACE, the.LANDLOCK_TCP, the.SECCOMP)),
    Attempt("connect_tcp6", "the same by IPv6", (the.NETWORK_NAMESPACE, the.LANDLOCK_TCP, the.SECCOMP), "IPv6"),
    Attempt("fast_open", "connect without connect(2): MSG_FASTOPEN", (the.NETWORK_NAMESPACE, the.SECCOMP)),
    Attempt("send_udp", "send a datagram", (the.NETWORK_NAMESPACE, the.SECCOMP)),
    Attempt("listen_tcp", "listen on a TCP port", (the.LANDLOCK_TCP, the.SECCOMP)),
    Attempt("connect_unix", "connect to a Unix socket with a path", (the.EMPTY_ROOT, the.SECCOMP)),
    Attempt(
        "connect_abstract",
        "connect to an abstract Unix socket",
        (the.NETWORK_NAMESPACE, the.LANDLOCK_SCOPES, the.SECCOMP),
    ),
    Attempt("listen_vsock", "listen on a vsock, which a hypervisor reaches", (the.SECCOMP,), "vsock"),
    Attempt("netlink", "ask the kernel for the routes", (the.SECCOMP,)),
    Attempt("raw_packets", "open a socket for raw packets", _CAPABILITY, "the capability NET_RAW"),
    Attempt(
        "xdp", "open a socket for packets below the kernel's network", _CAPABILITY, "AF_XDP, the capability NET_RAW"
    ),
    Attempt("any_family", "open a socket of any other family", (the.SECCOMP,), "one of those families"),
    Attempt("socket_filter", "have the kernel compile a filter for a socket", (the.SECCOMP,)),
    # Processes
    Attempt("fork", "fork", (the.SECCOMP,)),
    Attempt("clone3", "make a process by clone3", (the.SECCOMP,)),
    Attempt("execute", "execute /bin/true", _FILES),
    Attempt("execute_memory", "execute a program from memory", (the.SECCOMP,)),
    Attempt(
        "gain_by_setuid",
        "gain another uid by executing a setuid program",
        (the.USER_NAMESPACE, the.NO_NEW_PRIVILEGES, the.EMPTY_ROOT, *_LANDLOCK, the.SECCOMP),
        "a file system that honours setuid",
    ),
    Attempt("ptrace", "attach to the parent", _REACH, if_root=_LESS),
    Attempt("read_parent", "process_vm_readv the parent", _REACH, if_root=_LESS),
    Attempt("write_parent", "process_vm_writev into the parent", _REACH, if_root=_LESS),
    Attempt("signal_parent", "send the parent a signal", _SIGNAL),
    Attempt("queue_signal", "send the parent a signal with a value", _SIGNAL),
    Attempt("open_pidfd", "open a pidfd of the parent", (the.SECCOMP,)),
    Attempt("pidfd_of_peer", "have a socket's other end opened as a pidfd", (the.SECCOMP,), "SO_PEERPIDFD (Linux 6.5)"),
    Attempt("signal_by_owner", "have the kernel signal the parent when a socket is ready", (the.SECCOMP,)),
    Attempt("signal_by_pidfd", "send the parent a signal through a pidfd", _SIGNAL),
    Attempt("steal_descriptor", "take a descriptor of the parent by pidfd_getfd", _REACH, if_root=_LESS),
    Attempt("attach_ipc", "attach System V memory of another process", (the.IPC_NAMESPACE, the.SECCOMP)),
    Attempt("outlive_parent", "be there when the parent has ended", (the.DIES_WITH_PARENT,)),
    Attempt("forget_parent", "undo that it dies with its parent", (the.SECCOMP,)),
    Attempt("be_dumpable", "make itself dumpable again", (the.SECCOMP,)),
    Attempt(
        "be_read",
        "be read by another process of the same uid",
        (the.NOT_DUMPABLE, the.OWN_UID),
        "a uid that is not root's: root reads everyone",
    ),
    Attempt(
        "leave_core",
        "leave a core behind",
        (the.NO_CORE, the.NOT_DUMPABLE),
        "core files",
        # A core goes into a file, or to a program of the host; a change of uid makes undumpable.
        may_stop=(the.EMPTY_ROOT, the.OWN_UID, the.LANDLOCK_FILES, the.RLIMIT_FILES),
    ),
    # The kernel
    Attempt("call_of_32_bits", "call the kernel as a program of 32 bits does", (the.SECCOMP,), "x86 with such calls"),
    Attempt("io_uring", "set up an io_uring", (the.SECCOMP,), "io_uring"),
    Attempt("bpf", "load into the kernel by bpf", _CAPABILITY, "the capability BPF"),
    Attempt("keyctl", "use the kernel's keyrings", (the.SECCOMP,), "keyrings"),
    Attempt("userfaultfd", "handle the kernel's own page faults", _CAPABILITY, "userfaultfd"),
    Attempt("perf", "count the kernel's events", _CAPABILITY, "perf"),
    Attempt("mount", "mount a file system", (*_CAPABILITY, the.LANDLOCK_FILES), "the capability SYS_ADMIN"),
    Attempt("unshare", "make a user namespace and be root in it", (the.SECCOMP,), "user namespaces"),
    Attempt("setns", "enter the parent's namespaces", (*_CAPABILITY, *_LANDLOCK), "the capability SYS_ADMIN"),
    Attempt("chroot", "change its root", _CAPABILITY, "the capability SYS_CHROOT"),
    Attempt("memfd", "make anonymous files", (the.SECCOMP,)),
    Attempt("memfd_secret", "make memory that the kernel itself cannot read", (the.SECCOMP,), "memfd_secret"),
    # Memory
    Attempt("executable_mapping", "map memory writable and executable", (the.WRITE_XOR_EXECUTE, the.SECCOMP)),
    Attempt("executable_later", "make written memory executable", (the.WRITE_XOR_EXECUTE, the.SECCOMP)),
    Attempt("executable_pkey", "the same by pkey_mprotect", (the.WRITE_XOR_EXECUTE, the.SECCOMP)),
    Attempt("executable_shared_memory", "map shared memory executable", (the.SECCOMP,)),
    Attempt("executable_shared_later", "make mapped shared memory executable", (the.WRITE_XOR_EXECUTE, the.SECCOMP)),
    Attempt("executable_ipc", "attach System V memory executable", (the.SECCOMP,)),
    Attempt(
        "executable_by_personality", "have what is readable be executable", (the.WRITE_XOR_EXECUTE, the.SECCOMP), "x86"
    ),
    Attempt("write_sealed", "write to sealed memory that it may read", (the.SEALED_MEMORY,)),
    Attempt("grow_shared_memory", "make shared memory longer than agreed", (the.RLIMIT_FILES, the.SECCOMP)),
    # Bounds
    Attempt(
        "raise_limits",
        "raise a limit of its own",
        (the.SECCOMP,),
        # Not where root has the capability SYS_RESOURCE.
        may_stop=(the.RLIMIT_FILES,),
    ),
    Attempt("more_descriptors", "open more descriptors than allowed", (the.RLIMIT_FILES,)),
    Attempt("more_threads", "start more threads than allowed", (the.RLIMIT_THREADS, the.CGROUP_TASKS)),
    Attempt("more_memory", "use more memory than allowed", (the.RLIMIT_MEMORY, the.CGROUP_MEMORY)),
    Attempt("more_memory_in_pieces", "the same in pieces", (the.RLIMIT_MEMORY, the.CGROUP_MEMORY)),
)
ATTEMPTS: Final[dict[str, Attempt]] = {attempt.name: attempt for attempt in _ALL}
"""Every attempt by its name."""


def stopped_by(attempt: str, profile: Profile, *, root: bool | None = None) -> frozenset[str]:
    """Return the layers of `profile` each of which stops `attempt` alone.

    `root`: whether the processes outside are root's; None: whoever's they are.
    """
    if attempt in profile.not_tried:
        return frozenset()
    claim = ATTEMPTS[attempt]
    layers = set(claim.stopped_by)
    if root is not None:
        layers.update(claim.if_root if root else claim.if_user)
    layers &= profile.layers | {the.CGROUP_MEMORY, the.CGROUP_TASKS, the.SEALED_MEMORY}
    if not profile.threads and attempt == "more_threads":
        layers.add(the.SECCOMP)
    return frozenset(layer for layer in layers if attempt not in profile.gaps.get(layer, ()))
