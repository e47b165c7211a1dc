"""The profiles: what each kind of locked process may do, and why. Data; `rules` turns it into a seccomp filter.

Three answers to a system call: allowed, for a reason that stands beside it; refused with an error, for what libraries
try and can do without; everything else kills. A profile has every layer but those that it is `without`.

`onnx-cuda` and `torch-cuda` were written from the driver's documented surface (gVisor,
pkg/sentry/devices/nvproxy/seccomp_filters.go) and have not run on a device: LIMITATIONS.md.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from hermetic.enclave.isolation.layers import (
    LANDLOCK_TCP,
    NETWORK_NAMESPACE,
    OWN_LAYERS,
    RLIMIT_MEMORY,
    WRITE_XOR_EXECUTE,
)
from hermetic.enclave.isolation.nvidia_ioctls import REQUESTS
from hermetic.enclave.isolation.seccomp import ALLOW, KILL, Argument, Rule, refuse

WorkerProfile = Literal["onnx-cpu", "torch-cpu", "torch-native", "onnx-cuda", "torch-cuda", "torch-native-cuda"]
"""The profiles that a worker can be started with."""
PROFILE_OF_FORMAT: Final[Mapping[str, WorkerProfile]] = {
    "onnx": "onnx-cpu",
    "torchscript": "torch-cpu",
    "torch-export": "torch-cpu",
    "aot-inductor": "torch-native",
    "safetensors": "torch-cpu",
}
"""Which profile a format's runtime needs on the CPU."""
PROFILE_ON_GPU: Final[Mapping[str, WorkerProfile]] = {
    "onnx": "onnx-cuda",
    "torchscript": "torch-cuda",
    "torch-export": "torch-cuda",
    "aot-inductor": "torch-native-cuda",
}
"""And on a GPU."""

_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4
_O_CLOEXEC: Final = 0x80000
_MAP_ANONYMOUS: Final = 0x20
_SET_MODE_FILTER: Final = 1  # of seccomp(2); also the value of its flag TSYNC
_CLONE_THREAD: Final = 0x00010000
_MSG_FASTOPEN: Final = 0x20000000
_PR_SET_NAME: Final = 15
_PR_SET_VMA: Final = 0x53564D41
_FCNTL_HARMLESS: Final = (0, 1, 2, 3, 4, 1030, 1033, 1034)  # DUPFD GETFD SETFD GETFL SETFL DUPFD_CLOEXEC ADD/GET_SEALS
_FIONBIO: Final = 0x5421  # how Python makes a socket not wait

# Options of sockets by level. What is not here: filters that the kernel compiles, other protocols on top, devices.
_SOCKET_OPTIONS: Final[Mapping[int, tuple[int, ...]]] = {
    1: (
        2,
        7,
        8,
        9,
        13,
        15,
        18,
        20,
        21,
        60,
    ),  # REUSEADDR SND/RCVBUF KEEPALIVE LINGER REUSEPORT RCVLOWAT timeouts ZEROCOPY
    6: (1, 3, 4, 5, 6, 12, 18, 25, 36),  # NODELAY CORK, keep-alive's three, QUICKACK USER_TIMEOUT NOTSENT_LOWAT INQ
    41: (26,),  # IPV6_V6ONLY
}
# What is asked of a socket beside these. Not here: SO_PEERPIDFD, which opens a pidfd of the other process.
_SOCKET_FACTS: Final = (3, 4, 30, 38, 39)  # of level 1: TYPE ERROR ACCEPTCONN PROTOCOL DOMAIN


@dataclass(frozen=True, slots=True)
class Calls:
    """System calls, by name, and why they are allowed."""

    why: str
    names: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of process may do. `open_files` in descriptors; `devices` are nodes below /dev.

    `without`: layers that it cannot have, with the reason. `gaps`: attempts that a layer of it does not stop though the
    layer does elsewhere, by layer. `not_tried`: attempts that are no escape here, with the reason. `resident_bytes`:
    what its libraries hold at lock-down at most, which a control group has to leave room for. `library_threads`: how
    many threads they start of their own. `reads`: files and folders that it may read, where a machine has them.
    `executable`: memory that it may map executable. `loads_code`: until `end_loading` it may map descriptors of its own
    executable, by the paths /fd/N of an otherwise empty root.
    """

    name: str
    what: str
    allowed: tuple[Calls, ...]
    tried: str
    without: Mapping[str, str]
    open_files: int
    resident_bytes: int
    threads: bool = True
    executable: Literal["none", "anonymous", "files too"] = "none"
    loads_code: bool = False
    library_threads: int = 0
    reads: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    gaps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    not_tried: Mapping[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> frozenset[str]:
        """The layers that a process of this profile tries to put itself under."""
        return OWN_LAYERS - frozenset(self.without)


_EVERYONE: Final = (
    Calls(
        "read and write what was handed over before the lock-down, and wait for it",
        "read write readv writev pread64 preadv preadv2 lseek fstat close dup poll ppoll select pselect6 epoll_wait"
        " epoll_pwait epoll_ctl eventfd2 recvmsg recvfrom shutdown getsockname getpeername",
    ),
    Calls("its own memory; executable or not: `executable`", "munmap brk mremap madvise mlock munlock mlock2"),
    Calls(
        "its threads, and their locks",
        "futex sched_yield membarrier set_robust_list set_tid_address rseq gettid sched_getaffinity sched_getparam"
        " sched_getscheduler sched_get_priority_max sched_get_priority_min getpriority getcpu get_mempolicy",
    ),
    Calls(  # without a vDSO that tells the time, OpenSSL's making of a key asks the kernel by `time`
        "clocks, and sleep", "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage"
    ),
    Calls("handlers for its own signals", "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall"),
    Calls(
        "who and where it is; random numbers", "getpid getppid getuid geteuid getgid getegid uname sysinfo getrandom"
    ),
    Calls("its end", "exit exit_group"),
)
_TRIED: Final = (
    "open openat openat2 stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd getdents64"
    " socket socketpair connect bind sched_setaffinity sched_setscheduler sched_setparam set_mempolicy mbind mincore"
    " fadvise64 getrlimit"
)
_DECRYPT_INTO: Final = Calls(
    "the memory that the model is decrypted into was made before; its size comes with the model", "ftruncate"
)
_LEASE: Final = Calls("arms the timer of its lease, which was made before; there is no other", "timer_settime")
# In an empty root these have nothing to tell, and onnxruntime insists on asking whether "." exists.
_PATHS: Final = "stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd"

_SIZING: Final = frozenset({"grow_shared_memory"})  # ftruncate is allowed
_ANONYMOUS: Final = frozenset(  # mmap, mprotect, which is not told of what
    {"executable_mapping", "executable_later", "executable_shared_later"}
)
_MAPPED_FILES: Final = _ANONYMOUS | {"executable_shared_memory"}
_READ: Final = frozenset({"open_file", "list_folder", "parents_memory"})  # openat, while code is loaded
_FILES: Final = frozenset(  # openat
    {"open_file", "stat_file", "list_folder", "write_file", "own_memory", "parents_memory"}
)
_CUDA_READS: Final = (
    "/etc/ld.so.cache",  # where the dynamic linker finds libraries by name
    "/proc/driver/nvidia",  # which GPUs there are, and whether nodes are to be made
    "/proc/devices",
    "/proc/modules",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/maps",  # its own; the folder /proc/self has nothing else
    "/proc/self/status",
    "/proc/sys/vm/mmap_min_addr",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/devices/system/memory/block_size_bytes",
    "/sys/module/nvidia/version",
)
"""What the driver and CUDA's libraries are known to read, by profiles of AppArmor for programs that use them."""

PROFILES: Final[dict[str, Profile]] = {
    profile.name: profile
    for profile in (
        Profile(
            "onnx-cpu",
            "a worker with ONNX Runtime",
            (*_EVERYONE, _DECRYPT_INTO, _LEASE),
            _TRIED,
            without={},
            open_files=256,
            resident_bytes=512 << 20,
            gaps={"seccomp": _SIZING},
        ),
        Profile(
            "torch-cpu",
            "a worker with torch",
            (*_EVERYONE, _DECRYPT_INTO, _LEASE),
            _TRIED,
            without={WRITE_XOR_EXECUTE: "oneDNN generates code while it runs"},
            executable="anonymous",
            open_files=256,
            resident_bytes=1 << 30,
            gaps={"seccomp": _ANONYMOUS | _SIZING},
        ),
        Profile(
            "torch-native",
            "a worker with torch and native code, which it has loaded before it has this filter whole (`loads_code`)",
            (*_EVERYONE, _DECRYPT_INTO, _LEASE),
            _TRIED,
            without={},
            loads_code=True,
            open_files=256,
            resident_bytes=1 << 30,
            gaps={"seccomp": _SIZING | _READ},
        ),
        *(
            Profile(
                name,
                f"a worker with {library} on an NVIDIA GPU; its own node is added where it is started (`Room.devices`)",
                (
                    *_EVERYONE,
                    _DECRYPT_INTO,
                    _LEASE,
                    Calls(
                        "the driver opens a node anew for what it maps, libraries load more of themselves; nothing else"
                        " is in the root",
                        f"openat getdents64 {_PATHS}",
                    ),
                ),
                _TRIED,
                without={
                    WRITE_XOR_EXECUTE: "the driver compiles PTX, oneDNN generates code",
                    RLIMIT_MEMORY: "the driver reserves address space beyond all memory; a control group can bound it",
                },
                executable="files too",
                loads_code=loads_code,
                devices=("/dev/nvidiactl", "/dev/nvidia-uvm"),
                library_threads=16,
                reads=_CUDA_READS,
                open_files=4096,
                resident_bytes=4 << 30,
                gaps={"seccomp": _MAPPED_FILES | _FILES | _SIZING},
            )
            for name, library, loads_code in (
                ("onnx-cuda", "ONNX Runtime", False),
                ("torch-cuda", "torch", False),
                ("torch-native-cuda", "torch and native code", True),
            )
        ),
        Profile(
            "front-end",
            "a front end, or the metrics port, that already listens: it accepts, and can neither connect nor open",
            (
                *_EVERYONE,
                Calls("takes connections on what listens already; asyncio says listen again", "accept accept4 listen"),
            ),
            _TRIED + " memfd_create",
            without={NETWORK_NAMESPACE: "it is there to be reached"},
            threads=False,
            open_files=65536,
            resident_bytes=512 << 20,
            gaps={LANDLOCK_TCP: frozenset({"listen_tcp"})},
            not_tried={"more_descriptors": "it may have one for each connection"},
        ),
    )
}
"""Every profile by its name."""


def rules(profile: Profile, *, empty_root: bool) -> list[Rule]:
    """Return the filter of `profile` for this process; the first rule of a name decides.

    For one that `loads_code` it is the filter while it loads; `rules_after_loading` are put on top of it.

    What is looked at closely comes first: the kernel remembers by number which calls are always allowed, and runs the
    filter, in this order, for the others alone. Sending is one of these.
    """
    return [
        *_sockets(),
        *(_loading(profile) if profile.loads_code else ()),
        *[Rule(name, ALLOW) for calls in profile.allowed for name in calls.names.split()],
        *[Rule(name, ALLOW) for name in _PATHS.split() if empty_root and profile.name != "front-end"],
        *_memory(profile.executable),
        *_threads(allowed=profile.threads),
        *_narrowed(devices=bool(profile.devices)),
        *[Rule(name, refuse()) for name in profile.tried.split()],
    ]


def rules_after_loading(profile: Profile) -> list[Rule]:
    """Return what a process of a profile that `loads_code` loses when it has loaded it; all else stays as it is."""
    if profile.devices:  # the driver goes on opening its nodes; but no library is loaded any more
        return [Rule("seccomp", KILL), *_memory("anonymous")]
    return [Rule("openat", refuse()), Rule("seccomp", KILL), *_memory(profile.executable)]


def _loading(profile: Profile) -> list[Rule]:
    """Open descriptors of its own by their paths, map them executable, and put itself under the last filter.

    Opened to be read, and mapped not to be written: what can be written never becomes executable, unless it may anyhow.
    """
    to_read = ((Argument(2, 0, mask=0xFFFFFFFF & ~_O_CLOEXEC),),)
    every_thread = ((Argument(0, _SET_MODE_FILTER), Argument(1, _SET_MODE_FILTER)),)
    code_of_a_file = (Argument(2, 0, mask=_PROT_WRITE), Argument(3, 0, mask=_MAP_ANONYMOUS))
    if profile.executable == "files too":
        return [Rule("seccomp", ALLOW, every_thread)]
    mmap, mprotect = _memory(profile.executable)
    return [
        Rule("openat", ALLOW, to_read, refuse()),
        Rule("seccomp", ALLOW, every_thread),
        replace(mmap, any_of=(*mmap.any_of, code_of_a_file)),
        mprotect,
    ]


def _memory(executable: str) -> list[Rule]:
    if executable == "files too":
        return [Rule("mmap", ALLOW), Rule("mprotect", ALLOW)]
    not_executable = (Argument(2, 0, mask=_PROT_EXEC),)
    if executable == "anonymous":
        of_nobody = (Argument(3, _MAP_ANONYMOUS, mask=_MAP_ANONYMOUS),)
        return [Rule("mmap", ALLOW, (not_executable, of_nobody), refuse(errno.EACCES)), Rule("mprotect", ALLOW)]
    return [Rule(name, ALLOW, (not_executable,), refuse(errno.EACCES)) for name in ("mmap", "mprotect")]


def _threads(*, allowed: bool) -> list[Rule]:
    """Threads, not processes. clone3 hides its flags behind a pointer: glibc falls back to clone."""
    thread = ((Argument(0, _CLONE_THREAD, mask=_CLONE_THREAD),),)
    return [
        Rule("clone", ALLOW, thread, refuse()) if allowed else Rule("clone", refuse()),
        Rule("clone3", refuse(errno.ENOSYS)),
        Rule("fork", refuse()),
        Rule("vfork", refuse()),
    ]


def _sockets() -> list[Rule]:
    """Send on what is connected. MSG_FASTOPEN would connect: `shutdown` makes a listening socket fit for it."""
    options = tuple(
        (Argument(1, level), Argument(2, option)) for level, allowed in _SOCKET_OPTIONS.items() for option in allowed
    )
    facts = tuple((Argument(1, 1), Argument(2, fact)) for fact in _SOCKET_FACTS)
    no_address = (Argument(4, 0), Argument(4, 0, high=True))
    return [
        Rule("sendto", ALLOW, ((Argument(3, 0, mask=_MSG_FASTOPEN), *no_address),), refuse()),
        Rule("sendmsg", ALLOW, ((Argument(2, 0, mask=_MSG_FASTOPEN),),), refuse()),
        Rule("setsockopt", ALLOW, options, refuse()),
        Rule("getsockopt", ALLOW, (*options, *facts), refuse()),
    ]


def _narrowed(*, devices: bool) -> list[Rule]:
    """Calls that are allowed only with certain arguments."""
    own_process = Argument(0, os.getpid())
    read_own_limits = (Argument(0, 0), Argument(2, 0), Argument(2, 0, high=True))
    ioctls = ((Argument(1, _FIONBIO),), *(REQUESTS if devices else ()))
    return [
        Rule("prctl", ALLOW, ((Argument(0, _PR_SET_NAME),), (Argument(0, _PR_SET_VMA),)), refuse()),
        Rule("prlimit64", ALLOW, (read_own_limits,), refuse()),
        # F_SETOWN would make the kernel send signals for us.
        Rule("fcntl", ALLOW, tuple((Argument(1, command),) for command in _FCNTL_HARMLESS), refuse()),
        Rule("ioctl", ALLOW, ioctls, refuse()),
        # abort() and raise() signal the own process.
        Rule("tgkill", ALLOW, ((own_process,),)),
    ]
