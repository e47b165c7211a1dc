"""Resource limits that a process sets on itself.

RLIMIT_AS bounds all memory that a locked process can have: it can map nothing beyond it, and it cannot make a memfd or
a file to fill unmapped. RLIMIT_NPROC counts the threads of a uid within one user namespace; it does not bind root.
"""

import resource
from pathlib import Path
from typing import Final

# Less than a core file can have. 0 would hold for files alone: to a program (core_pattern begins with "|", as systemd's
# and Ubuntu's do) the kernel then hands the whole core. 1 is how it knows that such a program itself has died.
# Source: Linux, fs/coredump.c, "RLIMIT_CORE of 1".
CORE_BYTES: Final = 1
SPARE_THREADS: Final = 8  # of a worker, beside the runtime's own and those that unseal


def threads_of_worker(threads: int, of_libraries: int = 0) -> int:
    """How many threads a worker may have whose runtime has `threads`: as many unseal, a driver has its own."""
    return 2 * threads + SPARE_THREADS + of_libraries


def forbid_core_dumps() -> None:
    """No core, whatever the reason for dying, neither in a file nor for a program that the host gives cores to."""
    resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, CORE_BYTES))


def bound_files(open_files: int, file_bytes: int) -> None:
    """At most `open_files` descriptors (or what the limit is already); no file nor memfd longer than `file_bytes`.

    A process whose output is a regular file of that length dies by SIGXFSZ: log into a pipe.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = open_files if most == resource.RLIM_INFINITY else min(open_files, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def bound_memory(limit: int) -> None:
    """At most `limit` bytes of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def bound_threads(threads: int) -> None:
    """At most `threads` tasks of this uid (in this user namespace)."""
    resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))


def mapped_bytes() -> int:
    """Bytes of address space mapped by this process now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def tasks_of_uid(uid: int) -> int:
    """Threads of all processes of `uid` that this process can see."""
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if folder.stat().st_uid == uid:
                    count += sum(1 for _ in (folder / "task").iterdir())
            except OSError:  # it has ended, or is none of our business
                continue
    return count
