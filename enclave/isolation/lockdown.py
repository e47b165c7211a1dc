"""The order in which a process locks itself down. A worker does it in one go, a front end in two steps.

 (1) namespaces and an empty root, where root may make them        (5) not dumpable, no new privileges, W^X
 (2) own uid, no capabilities                                      (6) Landlock, while there is one thread
 (3) the same namespaces inside a user namespace, where (1) failed (7) seccomp, for every thread
 (4) limits                                                        (8) the decision: does every property hold?

A layer that the kernel refuses is noted with its reason and left out; whether that is acceptable is decided at the end,
before any secret is received. Everything that will be imported must have been imported: afterwards there are no files.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from hermetic.enclave.isolation import identity, landlock, limits, namespaces, process, properties, seccomp
from hermetic.enclave.isolation.properties import (
    CGROUP_MEMORY,
    CGROUP_TASKS,
    EMPTY_ROOT,
    LANDLOCK_FILES,
    LANDLOCK_SCOPES,
    NETWORK_NAMESPACE,
    OWN_LAYERS,
    OWN_UID,
    RLIMIT_MEMORY,
    RLIMIT_THREADS,
    SECCOMP,
)
from hermetic.enclave.isolation.syscall_policy import front_end_rules, worker_rules
from hermetic.enclave.messages import LockdownReport
from hermetic.enclave.zero_on_free import Zeroing
from hermetic.errors import IsolationError

Profile = Literal["onnx-cpu", "torch-cpu"]
WRITE_XOR_EXECUTE: Final[dict[Profile, bool]] = {
    "onnx-cpu": True,
    # oneDNN generates code while it runs.
    "torch-cpu": False,
}
FRONT_END_FILES_LIMIT: Final = 65536  # descriptors: one per connection


@dataclass(frozen=True, slots=True)
class Room:
    """What a process is locked into. `uid` and `gid` are used where the process is root; no other process has them.

    `memory_bytes` is what it may map beyond what it has at lock-down; `threads` counts all of its threads. `layers` are
    those to try: leaving one out is for tests that show what each layer does.
    """

    uid: int
    gid: int
    memory_bytes: int
    threads: int
    waived: tuple[str, ...] = ()
    layers: frozenset[str] = OWN_LAYERS


@dataclass(slots=True)
class Layers:
    """Layers that hold so far, and why the others do not."""

    room: Room
    held: set[str] = field(default_factory=set)
    unavailable: dict[str, str] = field(default_factory=dict)

    def attempt(self, names: Collection[str], apply: Callable[[], object]) -> bool:
        """Apply a layer that gives `names`, unless the room leaves it out; whether it holds now."""
        wanted = [name for name in names if name in self.room.layers]
        if not wanted:
            return False
        try:
            apply()
        except OSError as error:
            self.unavailable.update(dict.fromkeys(wanted, error.strerror or str(error)))
            return False
        self.held.update(wanted)
        for name in wanted:
            self.unavailable.pop(name, None)
        return True


def lock_down_worker(room: Room, profile: Profile, zeroing: Zeroing) -> LockdownReport:
    """Lock this process down as a worker that has not yet seen a secret; returns what holds.

    Raises `IsolationError` where a property that is not waived has no layer. The process must end then: the layers that
    were applied stay.
    """
    layers = Layers(room)
    write_xor_execute = WRITE_XOR_EXECUTE[profile]
    _apply_before_threads(layers, network_namespace=True, bind_ports=(), open_files=limits.OPEN_FILES_LIMIT)
    if write_xor_execute:
        with suppress(OSError):  # older than Linux 6.3: the filter says the same
            process.refuse_executable_memory()
    # (7) Seccomp.
    rules = worker_rules(write_xor_execute=write_xor_execute, empty_root=EMPTY_ROOT in layers.held)
    layers.attempt({SECCOMP}, lambda: seccomp.apply(seccomp.assemble(rules)))
    return _report(layers, properties.WORKER_PROPERTIES, zeroing)


def lock_front_end_before_threads(room: Room, port: int) -> Layers:
    """First step of a front end, after its imports and while it has one thread: everything but seccomp.

    It may still listen on TCP `port` (0: any free one) and nowhere else, as far as the kernel's Landlock can tell. Pass
    the result to `lock_front_end_after_listening`. Files are gone: certificates must have been read.
    """
    layers = Layers(room)
    _apply_before_threads(layers, network_namespace=False, bind_ports=(port,), open_files=FRONT_END_FILES_LIMIT)
    return layers


def lock_front_end_after_listening(layers: Layers, zeroing: Zeroing) -> LockdownReport:
    """Second step of a front end, once gRPC listens: no more sockets, binds, connects or processes, in any thread.

    Raises `IsolationError` where a property that is not waived has no layer.
    """
    # (7) Seccomp, in every thread.
    layers.attempt({SECCOMP}, lambda: seccomp.apply(seccomp.assemble(front_end_rules())))
    return _report(layers, properties.FRONT_END_PROPERTIES, zeroing)


def _apply_before_threads(
    layers: Layers, *, network_namespace: bool, bind_ports: Iterable[int], open_files: int
) -> None:
    if (threads := process.thread_count()) != 1:
        raise IsolationError(f"lock-down: wanted a process with one thread, got {threads}")
    room, uid = layers.room, os.geteuid()
    # Asked now: /proc is about to go.
    mapped, tasks, cgroup = limits.mapped_bytes(), limits.tasks_of_uid(uid), limits.cgroup_limits()
    root = identity.is_root()
    # (1) Namespaces, where root may make them.
    inside = root and (
        _enter_namespaces(layers, network=network_namespace, user=False)
        # Without a uid of its own a process could leave a chroot again.
        or (OWN_UID in room.layers and layers.attempt({EMPTY_ROOT}, namespaces.chroot_into_empty_folder))
    )
    # (2) Own uid.
    if root:
        identity.drop_bounding_set()
        layers.attempt({OWN_UID}, lambda: identity.become(room.uid, room.gid))
    # (3) Else inside a user namespace.
    user_namespace = not inside and _enter_namespaces(layers, network=network_namespace, user=True)
    # (4) Limits.
    _apply_limits(layers, mapped, 0 if OWN_UID in layers.held or user_namespace else tasks, open_files)
    if cgroup.memory_bytes is not None and cgroup.memory_bytes <= mapped + room.memory_bytes:
        layers.held.add(CGROUP_MEMORY)
    if cgroup.tasks is not None and cgroup.tasks <= room.threads:
        layers.held.add(CGROUP_TASKS)
    # (5) What a process sets on itself.
    process.die_with_parent(os.getppid())  # a change of uid has cleared it
    process.make_undumpable()
    process.refuse_new_privileges()
    # (6) Landlock.
    landlock_layers = {LANDLOCK_FILES, LANDLOCK_SCOPES}
    layers.attempt(landlock_layers, lambda: landlock.deny_all(bind_ports=bind_ports))
    with suppress(OSError):  # no Landlock at all has been noted above
        if landlock.abi() < landlock.SCOPES_SINCE:
            layers.held.discard(LANDLOCK_SCOPES)
            layers.unavailable[LANDLOCK_SCOPES] = f"Landlock ABI {landlock.abi()}, wanted {landlock.SCOPES_SINCE}"


def _enter_namespaces(layers: Layers, *, network: bool, user: bool) -> bool:
    """Enter them and empty the root; whether the namespaces were made."""
    network = network and NETWORK_NAMESPACE in layers.room.layers
    names = ({NETWORK_NAMESPACE} if network else set()) | ({EMPTY_ROOT} & layers.room.layers)
    if not names:
        return False
    if user:
        process.make_dumpable()  # else /proc/self/uid_map belongs to root
    try:
        namespaces.enter(network=network, user=user)
    except OSError as error:
        layers.unavailable.update(dict.fromkeys(names, error.strerror or str(error)))
        return False
    if network:
        layers.attempt({NETWORK_NAMESPACE}, lambda: None)  # entered above
    layers.attempt({EMPTY_ROOT}, namespaces.empty_root)
    if user:
        identity.drop_capabilities()
    return True


def _apply_limits(layers: Layers, mapped: int, other_tasks: int, open_files: int) -> None:
    room = layers.room

    def bound_threads() -> None:
        if identity.is_root():
            raise OSError("RLIMIT_NPROC does not bind root")
        limits.bound_threads(other_tasks + room.threads)

    limits.forbid_core_dumps()
    limits.bound_files(open_files, room.memory_bytes)
    layers.attempt({RLIMIT_MEMORY}, lambda: limits.bound_memory(mapped + room.memory_bytes))
    layers.attempt({RLIMIT_THREADS}, bound_threads)


def _report(layers: Layers, wanted: Mapping[str, tuple[str, ...]], zeroing: Zeroing) -> LockdownReport:
    # (8) The decision.
    decision = properties.decide(wanted, layers.held, layers.room.waived, layers.unavailable)
    return LockdownReport(
        properties=decision.holds,
        waived=decision.waived,
        warnings=decision.warnings,
        zeroing=zeroing.state,
        zeroing_by=zeroing.by,
    )
