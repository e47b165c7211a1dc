"""Which system calls each kind of process may make.

Three answers: allowed; refused with an error, for calls that libraries try and can do without; everything else kills.
"""

import errno
import os
from typing import Final

from hermetic.enclave.isolation.seccomp import ALLOW, Argument, Rule, refuse

_PROT_EXEC: Final = 4
_CLONE_THREAD: Final = 0x00010000
_PR_SET_NAME: Final = 15
_PR_SET_VMA: Final = 0x53564D41
_FCNTL_HARMLESS: Final = (0, 1, 2, 3, 4, 1030, 1033, 1034)  # DUPFD GETFD SETFD GETFL SETFL DUPFD_CLOEXEC ADD/GET_SEALS

_FIONBIO: Final = 0x5421  # how Python makes a socket not wait

# What ONNX Runtime, torch (OpenMP), Python's interpreter and glibc's allocator and threads need at rest.
_EVERYONE: Final = """
futex read write readv writev close fstat lseek munmap brk mremap madvise poll ppoll select pselect6 recvmsg recvfrom
sendmsg sendto clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday sched_yield getrandom getpid gettid
getppid getuid geteuid getgid getegid getcpu membarrier rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
set_robust_list set_tid_address rseq restart_syscall exit exit_group mlock munlock mlock2 sched_getaffinity
sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getpriority sysinfo
uname times getrusage dup eventfd2 epoll_wait epoll_pwait epoll_ctl get_mempolicy getsockname getpeername getsockopt
shutdown pread64 preadv preadv2
"""

# Tried by libraries, which take no for an answer.
_TRIED: Final = """
open openat openat2 stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd getdents64
socket socketpair connect bind sched_setaffinity sched_setscheduler sched_setparam set_mempolicy mbind mincore fadvise64
getrlimit
"""

# gRPC's server: takes connections on the socket that it already listens on, and makes its own wake-up descriptors.
_LISTENER: Final = "accept accept4 setsockopt epoll_create1 pipe2 timerfd_create timerfd_settime epoll_pwait2 listen"
_LISTENER_TRIED: Final = "memfd_create"

# The memory that the model is decrypted into was made before the lock-down; its size comes with the model.
_WORKER: Final = "ftruncate"

# In an empty root these have nothing to tell, and onnxruntime insists on asking whether "." exists.
_PATHS: Final = "stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd"


def worker_rules(*, write_xor_execute: bool, empty_root: bool) -> list[Rule]:
    """Return a worker's rules; with `write_xor_execute` no memory becomes executable any more."""
    return [
        *_allow(_EVERYONE + _WORKER + (" " + _PATHS if empty_root else "")),
        *_memory(write_xor_execute=write_xor_execute),
        *_narrowed((_PR_SET_NAME, _PR_SET_VMA)),
        *_refuse(_TRIED),
    ]


def front_end_rules() -> list[Rule]:
    """Return the rules of a front end that is already listening: it accepts, and can neither connect nor open."""
    return [
        *_allow(_EVERYONE + _LISTENER),
        *_memory(write_xor_execute=True),
        *_narrowed((_PR_SET_NAME, _PR_SET_VMA)),
        *_refuse(_TRIED + _LISTENER_TRIED),
    ]


def _allow(names: str) -> list[Rule]:
    return [Rule(name, ALLOW) for name in names.split()]


def _refuse(names: str) -> list[Rule]:
    return [Rule(name, refuse()) for name in names.split()]


def _memory(*, write_xor_execute: bool) -> list[Rule]:
    if not write_xor_execute:
        return _allow("mmap mprotect")
    not_executable = ((Argument(2, 0, mask=_PROT_EXEC),),)
    return [Rule(name, ALLOW, not_executable, refuse(errno.EACCES)) for name in ("mmap", "mprotect")]


def _narrowed(prctl_options: tuple[int, ...]) -> list[Rule]:
    """Calls that are allowed only with certain arguments."""
    own_process = Argument(0, os.getpid())
    read_own_limits = (Argument(0, 0), Argument(2, 0), Argument(2, 0, high=True))
    return [
        # Threads, not processes. clone3 hides its flags behind a pointer: glibc falls back to clone.
        Rule("clone", ALLOW, ((Argument(0, _CLONE_THREAD, mask=_CLONE_THREAD),),), refuse()),
        Rule("clone3", refuse(errno.ENOSYS)),
        Rule("fork", refuse()),
        Rule("vfork", refuse()),
        Rule("prctl", ALLOW, tuple((Argument(0, option),) for option in prctl_options), refuse()),
        Rule("prlimit64", ALLOW, (read_own_limits,), refuse()),
        # F_SETOWN would make the kernel send signals for us.
        Rule("fcntl", ALLOW, tuple((Argument(1, command),) for command in _FCNTL_HARMLESS), refuse()),
        Rule("ioctl", ALLOW, ((Argument(1, _FIONBIO),),), refuse()),
        # abort() and raise() signal the own process.
        Rule("tgkill", ALLOW, ((own_process,),)),
    ]
