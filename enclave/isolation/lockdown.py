"""The order in which a process locks itself down, in stages.

 First stage, with one thread:
 (1) namespaces and an empty root, where root may make them        (4) limits
 (2) own uid, no capabilities                                      (5) what it sets on itself with prctl
 (3) what (1) could not make, inside a user namespace              (6) Landlock
 Between the two, threads may start: a front end's that listens, a GPU driver's. They inherit all of it.
 Second stage:
 (7) seccomp, for every thread: one that stays outside refuses     (8) the decision: does every property hold?
 Third stage, for a profile that `loads_code`, when it has loaded it:
 (9) one more filter, for every thread: it maps no more code

A layer that the kernel refuses is noted with its reason and left out; whether that is acceptable is decided at the end,
before any secret is received. Everything that will be imported must have been imported: afterwards there are no files.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from hermetic.enclave.isolation import cgroup, identity, landlock, limits, namespaces, process, properties, seccomp
from hermetic.enclave.isolation.layers import (
    CGROUP_MEMORY,
    CGROUP_TASKS,
    DIES_WITH_PARENT,
    EMPTY_ROOT,
    IPC_NAMESPACE,
    LAYERS,
    NETWORK_NAMESPACE,
    NO_CAPABILITIES,
    NO_CORE,
    NO_NEW_PRIVILEGES,
    NOT_DUMPABLE,
    OWN_LAYERS,
    OWN_UID,
    RLIMIT_FILES,
    RLIMIT_MEMORY,
    RLIMIT_THREADS,
    SECCOMP,
    USER_NAMESPACE,
    WRITE_XOR_EXECUTE,
    with_implied,
)
from hermetic.enclave.isolation.namespaces import Shown
from hermetic.enclave.isolation.profiles import PROFILES, Profile, WorkerProfile, rules, rules_after_loading
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.zero_on_free import Zeroing
from hermetic.errors import IsolationError

FRONT_END: Final = PROFILES["front-end"]
FRONT_END_FILES_LIMIT: Final = FRONT_END.open_files
OWN_DESCRIPTORS: Final = "/fd"
"""Where a process that loads code has its descriptors: /fd/N."""
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """What a process is locked into. `uid` and `gid` are used where the process is root; no other process has them.

    `memory_bytes` is what it may map beyond what it has at lock-down; `threads` counts all of its threads. `layers` are
    those to try: leaving one out is for tests that show what each layer does. `devices` are nodes beside the profile's,
    `libraries` folders that it may go on loading from.
    """

    uid: int
    gid: int
    memory_bytes: int
    threads: int
    waived: tuple[str, ...] = ()
    layers: frozenset[str] = OWN_LAYERS
    devices: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(slots=True)
class Layers:
    """Layers that hold so far, and why the others do not; `bounds` says in words what bounds memory.

    `readable` are the folders of libraries, and the profile's files as far as this machine has them.
    """

    room: Room
    profile: Profile
    held: set[str] = field(default_factory=set)
    unavailable: dict[str, str] = field(default_factory=dict)
    bounds: list[str] = field(default_factory=list)
    readable: tuple[Shown, ...] = ()

    def __post_init__(self) -> None:
        """Look which files there are to be read: later there is another root."""
        own = f"/proc/{os.getpid()}/"
        files = (Shown(path.replace("/proc/self/", own), path) for path in self.profile.reads)
        folders = (Shown(path, path, mapped=True) for path in self.room.libraries)
        self.readable = (*folders, *(file for file in files if os.path.exists(file.source)))  # noqa: PTH110

    def wants(self, name: str) -> bool:
        """Whether the profile and the room have the layer, and it does not hold yet."""
        return name in self.profile.layers & self.room.layers and name not in self.held

    @property
    def devices(self) -> tuple[str, ...]:
        """Device nodes that may be opened: those of the profile, and the process's own."""
        return (*self.profile.devices, *self.room.devices)

    @property
    def in_root(self) -> tuple[Shown, ...]:
        """What is in an otherwise empty root beside devices."""
        if not self.profile.loads_code:
            return self.readable
        return (*self.readable, Shown(f"/proc/{os.getpid()}/fd", OWN_DESCRIPTORS))

    def attempt(self, name: str, apply: Callable[[], object]) -> None:
        """Apply a layer, unless it is left out; a refusal is noted."""
        if not self.wants(name):
            return
        try:
            apply()
        except OSError as error:
            self.unavailable[name] = error.strerror or str(error)
        else:
            self.hold(name)

    def hold(self, name: str) -> None:
        """Note that a layer holds, and what comes with it."""
        self.held |= with_implied(frozenset({name}))
        for present in self.held:
            self.unavailable.pop(present, None)


def lock_down_worker(room: Room, profile: WorkerProfile, zeroing: Zeroing) -> LockdownReport:
    """Lock this process down as a worker that has not yet seen a secret; returns what holds. Both stages at once.

    Raises `IsolationError` where a property that is not waived has no layer. The process must end then: the layers that
    were applied stay.
    """
    return lock_worker_with_threads(lock_worker_before_threads(room, profile), zeroing)


def lock_worker_before_threads(room: Room, profile: WorkerProfile) -> Layers:
    """First stage of a worker, with one thread: everything but seccomp. A GPU is opened after it.

    Pass the result to `lock_worker_with_threads`, before any secret.
    """
    layers = Layers(room, PROFILES[profile])
    _apply_before_threads(layers, bind_ports=())
    return layers


def lock_worker_with_threads(layers: Layers, zeroing: Zeroing) -> LockdownReport:
    """Second stage of a worker: seccomp for every thread that there is, and the decision.

    Raises `IsolationError` where a property that is not waived has no layer, and where a thread stays outside.
    """
    return _filter_and_decide(layers, zeroing)


def end_loading(layers: Layers) -> None:
    """Third stage of a worker whose profile `loads_code`: from here on it opens nothing, and maps no code of a file.

    For every thread; `IsolationError` where one stays outside, or where there is no such profile.
    """
    if not layers.profile.loads_code:
        raise IsolationError(f"lock-down: wanted a profile that loads code, got {layers.profile.name}")
    if SECCOMP in layers.held:
        seccomp.narrow(seccomp.assemble(rules_after_loading(layers.profile), default=seccomp.ALLOW))


def lock_front_end_before_threads(room: Room, port: int) -> Layers:
    """First step of a front end, after its imports and while it has one thread: everything but seccomp.

    It may still listen on TCP `port` (0: any free one) and nowhere else, as far as the kernel's Landlock can tell. Pass
    the result to `lock_front_end_after_listening`. Files are gone: certificates must have been read.
    """
    layers = Layers(room, FRONT_END)
    _apply_before_threads(layers, bind_ports=(port,))
    return layers


def lock_front_end_after_listening(layers: Layers, zeroing: Zeroing) -> LockdownReport:
    """Second step of a front end, once it listens: no more sockets, binds, connects or processes, in any thread.

    Raises `IsolationError` where a property that is not waived has no layer.
    """
    return _filter_and_decide(layers, zeroing)


def _apply_before_threads(layers: Layers, *, bind_ports: Iterable[int]) -> None:
    if (threads := process.thread_count()) != 1:
        raise IsolationError(f"lock-down: wanted a process with one thread, got {threads}")
    room, uid, root = layers.room, os.geteuid(), identity.is_root()
    # Asked now: /proc is about to go.
    mapped = limits.mapped_bytes()
    others = limits.tasks_of_uid(uid) if layers.wants(RLIMIT_THREADS) and not root else 0
    _note_cgroup(layers)
    if root:
        # (1) Namespaces, where root may make them. Without a uid of its own a process could leave a chroot again.
        _make_namespaces(layers)
        if OWN_UID in room.layers and not layers.devices and not layers.in_root:
            layers.attempt(EMPTY_ROOT, namespaces.chroot_into_empty_folder)
        # (2) Own uid.
        if layers.wants(NO_CAPABILITIES):
            identity.drop_bounding_set()  # a capability is needed for that
        layers.attempt(OWN_UID, lambda: identity.become(room.uid, room.gid))
    elif layers.wants(OWN_UID):
        layers.unavailable[OWN_UID] = "only root has others to give"
    # (3) Else inside a user namespace.
    if EMPTY_ROOT not in layers.held and (not root or _wanted_namespaces(layers)):
        process.make_dumpable()  # else /proc/self/uid_map belongs to root
        layers.attempt(USER_NAMESPACE, namespaces.enter_user_namespace)
        if USER_NAMESPACE in layers.held:
            _make_namespaces(layers)
        elif USER_NAMESPACE in layers.unavailable:
            for name in _wanted_namespaces(layers):
                layers.unavailable.setdefault(name, layers.unavailable[USER_NAMESPACE])
    layers.attempt(NO_CAPABILITIES, identity.drop_capabilities)
    # (4) Limits.
    _apply_limits(layers, mapped, 0 if USER_NAMESPACE in layers.held else others)
    # (5) What a process sets on itself. A change of uid has cleared the first.
    layers.attempt(DIES_WITH_PARENT, lambda: process.die_with_parent(os.getppid()))
    layers.attempt(NOT_DUMPABLE, process.make_undumpable)
    layers.attempt(NO_NEW_PRIVILEGES, process.refuse_new_privileges)
    layers.attempt(WRITE_XOR_EXECUTE, process.refuse_executable_memory)
    # (6) Landlock.
    _apply_landlock(layers, bind_ports)


def _note_cgroup(layers: Layers) -> None:
    """Count a control group that is tight enough: whoever started this process has made it."""
    around, room = cgroup.bounds(), layers.room
    if around.memory_bytes is not None and around.memory_bytes <= layers.profile.resident_bytes + room.memory_bytes:
        layers.hold(CGROUP_MEMORY)
        layers.bounds.append(f"cgroup {around.memory_version}: {around.memory_bytes // _MIB} MiB resident")
    if around.tasks is not None and around.tasks <= room.threads:
        layers.hold(CGROUP_TASKS)


def _wanted_namespaces(layers: Layers) -> list[str]:
    return [name for name in (NETWORK_NAMESPACE, IPC_NAMESPACE, EMPTY_ROOT) if layers.wants(name)]


def _make_namespaces(layers: Layers) -> None:
    """Make each that is wanted and not there; the root comes last, because there is no /proc afterwards."""
    layers.attempt(NETWORK_NAMESPACE, namespaces.without_network)
    layers.attempt(IPC_NAMESPACE, namespaces.own_ipc)
    layers.attempt(EMPTY_ROOT, lambda: namespaces.empty_root(layers.devices, layers.in_root))


def _apply_limits(layers: Layers, mapped: int, other_tasks: int) -> None:
    room = layers.room

    def bound_threads() -> None:
        if identity.is_root():
            raise OSError("RLIMIT_NPROC does not bind root")
        limits.bound_threads(other_tasks + room.threads)

    layers.attempt(NO_CORE, limits.forbid_core_dumps)
    layers.attempt(RLIMIT_FILES, lambda: limits.bound_files(layers.profile.open_files, room.memory_bytes))
    layers.attempt(RLIMIT_MEMORY, lambda: limits.bound_memory(mapped + room.memory_bytes))
    layers.attempt(RLIMIT_THREADS, bound_threads)
    if RLIMIT_MEMORY in layers.held:
        layers.bounds.append(f"rlimit: {(mapped + room.memory_bytes) // _MIB} MiB of address space")


def _apply_landlock(layers: Layers, bind_ports: Iterable[int]) -> None:
    available = {name: reason for name, reason in landlock.available().items() if layers.wants(name)}
    layers.unavailable.update({name: reason for name, reason in available.items() if reason})
    wanted = [name for name, reason in available.items() if not reason]
    if wanted:
        try:
            rooted = EMPTY_ROOT in layers.held
            readable = [item.place if rooted else item.source for item in layers.readable]
            landlock.restrict(wanted, bind_ports=bind_ports, devices=layers.devices, readable=readable)
        except OSError as error:
            layers.unavailable.update(dict.fromkeys(wanted, error.strerror or str(error)))
        else:
            for name in wanted:
                layers.hold(name)


def _filter_and_decide(layers: Layers, zeroing: Zeroing) -> LockdownReport:
    # (7) Seccomp, in every thread.
    program = seccomp.assemble(rules(layers.profile, empty_root=EMPTY_ROOT in layers.held))
    layers.attempt(SECCOMP, lambda: seccomp.apply(program))
    # (8) The decision.
    decision = properties.decide(layers.profile, layers.held, layers.room.waived, layers.unavailable)
    return LockdownReport(
        properties=decision.holds,
        waived=decision.waived,
        warnings=decision.warnings,
        zeroing=zeroing.state,
        zeroing_by=zeroing.by,
        lost=decision.lost,
        layers=tuple(name for name in LAYERS if name in layers.held),
        memory_bounds=tuple(layers.bounds),
    )
