"""The layers of a locked room: what each does, who applies it, and what comes with it. Data; the order is that of use.

What each layer stops alone is attempts.py; which profile has which is profiles.py; how they are applied is lockdown.py.
"""

from dataclasses import dataclass
from typing import Final

USER_NAMESPACE: Final = "user-namespace"
NETWORK_NAMESPACE: Final = "network-namespace"
IPC_NAMESPACE: Final = "ipc-namespace"
EMPTY_ROOT: Final = "empty-root"
OWN_UID: Final = "own-uid"
NO_CAPABILITIES: Final = "no-capabilities"
RLIMIT_MEMORY: Final = "rlimit-memory"
RLIMIT_THREADS: Final = "rlimit-threads"
RLIMIT_FILES: Final = "rlimit-files"
NO_CORE: Final = "no-core"
DIES_WITH_PARENT: Final = "dies-with-parent"
NOT_DUMPABLE: Final = "not-dumpable"
NO_NEW_PRIVILEGES: Final = "no-new-privileges"
WRITE_XOR_EXECUTE: Final = "write-xor-execute"
LANDLOCK_FILES: Final = "landlock-files"
LANDLOCK_TCP: Final = "landlock-tcp"
LANDLOCK_SCOPES: Final = "landlock-scopes"
SECCOMP: Final = "seccomp"
CGROUP_MEMORY: Final = "cgroup-memory"
CGROUP_TASKS: Final = "cgroup-tasks"
SEALED_MEMORY: Final = "sealed-memory"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `implies` are layers that come with it; `by_others`: applied by whoever starts the process."""

    name: str
    does: str
    implies: tuple[str, ...] = ()
    by_others: bool = False


_NNP: Final = (NO_NEW_PRIVILEGES,)
_ALL: Final = (
    Layer(CGROUP_MEMORY, "a control group, v2 or v1, bounds resident memory; past it the kernel kills", by_others=True),
    Layer(CGROUP_TASKS, "a control group bounds threads and processes", by_others=True),
    Layer(SEALED_MEMORY, "memory that is handed over to be read carries F_SEAL_WRITE", by_others=True),
    Layer(USER_NAMESPACE, "a user namespace with one uid: how an ordinary user gets the next three"),
    Layer(NETWORK_NAMESPACE, "a network namespace without any link, not even loopback up"),
    Layer(IPC_NAMESPACE, "System V and POSIX IPC, host name and cgroup tree of its own"),
    Layer(EMPTY_ROOT, "an empty, read-only root in a mount namespace of its own; by chroot where there is none"),
    Layer(OWN_UID, "a uid that no other process has; without root there is none to be had", implies=(NO_CAPABILITIES,)),
    Layer(NO_CAPABILITIES, "every set of capabilities is empty, the bounding set too"),
    Layer(RLIMIT_MEMORY, "RLIMIT_AS: what is mapped at lock-down and so many bytes more"),
    Layer(RLIMIT_THREADS, "RLIMIT_NPROC: so many threads of this uid; does not bind root"),
    Layer(RLIMIT_FILES, "RLIMIT_NOFILE and RLIMIT_FSIZE: descriptors, and the size of anything that is written"),
    Layer(NO_CORE, "RLIMIT_CORE: no core, in a file or to a program"),
    Layer(DIES_WITH_PARENT, "PR_SET_PDEATHSIG: killed when the supervisor ends"),
    Layer(NOT_DUMPABLE, "PR_SET_DUMPABLE: no core dump, and closed to other processes of the same uid"),
    Layer(NO_NEW_PRIVILEGES, "PR_SET_NO_NEW_PRIVS: no program that is executed gains a privilege"),
    Layer(WRITE_XOR_EXECUTE, "PR_SET_MDWE (Linux 6.3): what was writable never becomes executable"),
    Layer(LANDLOCK_FILES, "Landlock: no file is opened, made, removed or executed", implies=_NNP),
    Layer(LANDLOCK_TCP, "Landlock (ABI 4): no TCP connection, and no port but a front end's own", implies=_NNP),
    Layer(LANDLOCK_SCOPES, "Landlock (ABI 6): no signal and no abstract socket outside; no ptrace", implies=_NNP),
    Layer(SECCOMP, "seccomp: system calls of the profile, with the arguments that it names; others kill", implies=_NNP),
)
LAYERS: Final[dict[str, Layer]] = {layer.name: layer for layer in _ALL}
"""Every layer by its name, in the order in which they are applied."""
OWN_LAYERS: Final = frozenset(layer.name for layer in _ALL if not layer.by_others)
"""The layers that a process can put itself under."""


def with_implied(names: frozenset[str]) -> frozenset[str]:
    """Return `names` and what comes with them."""
    return names.union(*(LAYERS[name].implies for name in names))
