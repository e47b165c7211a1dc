"""The assembler, by running its programs in a machine of our own: for both architectures, without the kernel."""

import errno
import os
import struct
from collections import Counter
from dataclasses import replace

import pytest

from hermetic.enclave.isolation import profiles, seccomp
from hermetic.enclave.isolation.layers import SECCOMP
from hermetic.enclave.isolation.profiles import PROFILES, rules, rules_after_loading
from hermetic.enclave.isolation.properties import required
from hermetic.enclave.isolation.seccomp import ALLOW, INSTRUCTIONS_LIMIT, KILL, Argument, Rule, assemble, refuse
from hermetic.enclave.isolation.syscalls import AUDIT_ARCH, NUMBERS

MACHINES = sorted(NUMBERS)


def run(program: bytes, number: int, *arguments: int, architecture: str) -> int:
    """What the kernel would answer: classic BPF over struct seccomp_data."""
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[architecture], 0, *(arguments + (0,) * 6)[:6])
    accumulator = at = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        else:
            assert code in (0x15, 0x35)
            holds = accumulator == value if code == 0x15 else accumulator >= value
            at += if_true if holds else if_false


@pytest.mark.parametrize("architecture", MACHINES)
def test_rules_decide_in_their_order(architecture: str) -> None:
    numbers = NUMBERS[architecture]
    alternatives = ((Argument(0, 1), Argument(1, 2)), (Argument(0, 7, high=True),))
    some_rules = [
        Rule("read", ALLOW),
        Rule("read", KILL),
        Rule("write", refuse()),
        Rule("close", ALLOW, alternatives, refuse(errno.EACCES)),
    ]
    program = assemble(some_rules, architecture=architecture)

    def answer(name: str, *arguments: int) -> int:
        return run(program, numbers[name], *arguments, architecture=architecture)

    assert answer("read") == ALLOW
    assert answer("write") == refuse(errno.EPERM)
    assert answer("close", 1, 2) == ALLOW
    assert answer("close", 1, 3) == refuse(errno.EACCES)
    assert answer("close", 7 << 32) == ALLOW
    assert answer("execve") == KILL
    assert run(program, 0x40000000 | numbers["read"], architecture=architecture) == KILL
    other = next(name for name in MACHINES if name != architecture)
    assert run(program, numbers["read"], architecture=other) == KILL


@pytest.mark.parametrize("architecture", MACHINES)
@pytest.mark.parametrize("front_end", [False, True])
def test_the_policies_on_every_machine(architecture: str, front_end: bool) -> None:
    profile = PROFILES["front-end" if front_end else "onnx-cpu"]
    program = assemble(rules(profile, empty_root=False), architecture=architecture)
    assert len(program) // 8 < INSTRUCTIONS_LIMIT
    numbers = NUMBERS[architecture]

    def answer(name: str, *arguments: int) -> int:
        return run(program, numbers[name], *arguments, architecture=architecture)

    killed = (
        "execve execveat ptrace process_vm_readv process_vm_writev io_uring_setup bpf keyctl add_key userfaultfd "
        "perf_event_open mount unshare setns pidfd_open pidfd_getfd kill tkill chroot pivot_root personality seccomp"
    )
    assert {name for name in killed.split() if answer(name) != KILL} == set()
    for name in ("openat", "socket", "connect", "bind", "newfstatat", "statx", "sched_setaffinity"):
        assert answer(name) == refuse()
    assert (answer("accept4") == ALLOW) is front_end
    assert answer("memfd_create") in (KILL, refuse())
    assert answer("mmap", 0, 4096, 3) == ALLOW
    assert answer("mmap", 0, 4096, 7) == refuse(errno.EACCES)
    assert answer("clone", 0x3D0F00) == (refuse() if front_end else ALLOW)
    assert answer("clone", 17) == refuse()
    assert answer("tgkill", os.getpid()) == ALLOW
    assert answer("tgkill", os.getpid() + 1) == KILL
    assert answer("prlimit64", 0, 7, 0) == ALLOW
    assert answer("prlimit64", 0, 7, 1 << 40) == refuse()
    assert answer("fcntl", 3, 8) == refuse()  # F_SETOWN
    fast_open = 0x20000000
    assert answer("sendto", 3, 0, 4, 0x4000, 0, 0) == ALLOW
    assert answer("sendto", 3, 0, 4, fast_open, 0, 0) == refuse()
    assert answer("sendto", 3, 0, 4, 0, 1 << 40, 16) == refuse()
    assert answer("sendmsg", 3, 0, 0x4000) == ALLOW
    assert answer("sendmsg", 3, 0, fast_open | 0x4000) == refuse()
    assert answer("setsockopt", 3, 6, 1) == ALLOW  # TCP_NODELAY
    assert answer("setsockopt", 3, 1, 26) == refuse()  # SO_ATTACH_FILTER
    assert answer("setsockopt", 3, 6, 31) == refuse()  # TCP_ULP
    assert answer("getsockopt", 3, 1, 3) == answer("getsockopt", 3, 1, 38) == ALLOW  # SO_TYPE, SO_PROTOCOL
    assert answer("getsockopt", 3, 1, 77) == refuse()  # SO_PEERPIDFD
    assert answer("getsockopt", 3, 6, 35) == refuse()  # TCP_ZEROCOPY_RECEIVE


def test_paths_are_answered_only_in_an_empty_root() -> None:
    for empty, wanted in ((True, ALLOW), (False, refuse())):
        program = assemble(rules(PROFILES["torch-cpu"], empty_root=empty), architecture="x86_64")
        assert run(program, NUMBERS["x86_64"]["stat"], architecture="x86_64") == wanted
        assert run(program, NUMBERS["x86_64"]["openat"], architecture="x86_64") == refuse()


@pytest.mark.parametrize("name", PROFILES)
def test_the_order_of_rules_decides_nothing_but_time(name: str) -> None:
    """One rule for each call, so any order allows the same; but for what an empty root, or a GPU, allows first."""
    times = Counter(rule.name for rule in rules(PROFILES[name], empty_root=False))
    of_files = {"openat", "getdents64", *profiles._PATHS.split()}
    while_loading = {"openat", "mmap", "mprotect"} if PROFILES[name].loads_code else set()  # of its own descriptors
    wanted = of_files if PROFILES[name].devices else while_loading
    assert {call for call, count in times.items() if count > 1} == wanted


def test_whether_a_profile_has_threads_is_one_line_of_it() -> None:
    without, having = PROFILES["front-end"], replace(PROFILES["front-end"], threads=True)
    for profile, wanted in ((without, refuse()), (having, ALLOW)):
        program = assemble(rules(profile, empty_root=True), architecture="x86_64")
        assert run(program, NUMBERS["x86_64"]["clone"], 0x3D0F00, architecture="x86_64") == wanted
    assert SECCOMP in required(without)["bounded-threads"]
    assert SECCOMP not in required(having)["bounded-threads"]


def test_a_worker_may_open_its_native_code_and_then_nothing_more() -> None:
    numbers = NUMBERS["x86_64"]
    profile = PROFILES["torch-native"]
    first = assemble(rules(profile, empty_root=True), architecture="x86_64")
    last = assemble(rules_after_loading(profile), default=ALLOW, architecture="x86_64")

    def answers(name: str, *arguments: int) -> tuple[int, int]:
        """While it loads, and afterwards: of two filters the stricter answer counts, which is the lower number."""
        one, other = (run(program, numbers[name], *arguments, architecture="x86_64") for program in (first, last))
        return one, min(one, other, key=lambda answer: (answer != KILL, answer))

    denied = refuse(errno.EACCES)
    assert answers("mmap", 0, 4096, 3, 0x22) == (ALLOW, ALLOW)  # anonymous memory, to be written
    assert answers("mmap", 0, 4096, 5, 0x802) == (ALLOW, denied)  # a file, to be executed
    assert answers("mmap", 0, 4096, 7, 0x802) == answers("mmap", 0, 4096, 5, 0x22) == (denied, denied)
    assert answers("mprotect", 0, 4096, 5) == (denied, denied)
    cloexec = 0x80000
    assert answers("openat", 0, 0, cloexec) == (ALLOW, refuse())
    for flags in (1, 2, 0o100, 0o1000, 0x10000):  # write, both, create, truncate, a folder
        assert answers("openat", 0, 0, cloexec | flags) == (refuse(), refuse())
    assert answers("seccomp", 1, 1) == (ALLOW, KILL)
    assert answers("seccomp", 1, 9) == answers("seccomp", 0, 0) == (KILL, KILL)  # no listener to filters
    for name in ("socket", "execve", "execveat", "memfd_create", "ptrace", "pkey_mprotect"):
        assert ALLOW not in answers(name)
    assert required(profile)["no-files"] == ("empty-root", "landlock-files")


def test_native_code_on_a_gpu_leaves_the_driver_its_nodes_and_maps_no_file_afterwards() -> None:
    numbers, profile = NUMBERS["x86_64"], PROFILES["torch-native-cuda"]
    first = assemble(rules(profile, empty_root=True), architecture="x86_64")
    last = assemble(rules_after_loading(profile), default=ALLOW, architecture="x86_64")
    for program, mapped, filters in ((first, ALLOW, ALLOW), (last, refuse(errno.EACCES), KILL)):
        assert run(program, numbers["mmap"], 0, 4096, 5, 0x802, architecture="x86_64") == mapped
        assert run(program, numbers["seccomp"], 1, 1, architecture="x86_64") == filters
        assert run(program, numbers["openat"], 0, 0, 2, architecture="x86_64") == ALLOW


def test_a_gpu_worker_may_speak_to_its_driver_and_to_nothing_else() -> None:
    program = assemble(rules(PROFILES["torch-cuda"], empty_root=True), architecture="x86_64")

    def ioctl(command: int) -> int:
        return run(program, NUMBERS["x86_64"]["ioctl"], 3, command, architecture="x86_64")

    # RM_ALLOC, RM_CONTROL, the same of another version's size, UVM_INITIALIZE, UVM_REGISTER_CHANNEL
    for command in (0xC0C8462B, 0xC020462A, 0xC030462A, 0x30000001, 27):
        assert ioctl(command) == ALLOW
    # Of other files: TIOCSTI, SIOCGIFCONF, FS_IOC_SETFLAGS, FIBMAP. Of the driver: its registry, I2C, export of an
    # object, a request without a direction, UVM's tools that read and write a process's memory.
    for command in (0x5412, 0x8912, 0x40086602, 1, 0xC038464D, 0xC0204639, 0xC010465C, 0x462A, 62, 63):
        assert ioctl(command) == refuse()
    given = required(PROFILES["torch-cuda"])
    assert given["no-files"] == ("empty-root", "landlock-files")
    assert given["bounded-memory"] == ("cgroup-memory",)
    assert SECCOMP in given["no-network"]


def test_a_filter_is_for_every_thread_and_asks_for_no_speculation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SPEC_ALLOW a kernel that was told to mitigate for filtered processes would not (ADR 0160)."""
    calls: list[tuple[object, ...]] = []

    def syscall(*call: object) -> int:
        calls.append(call)
        return 0

    monkeypatch.setattr(seccomp, "syscall", syscall)
    monkeypatch.setattr(seccomp, "refuse_new_privileges", lambda: None)
    seccomp.apply(assemble([], default=ALLOW))
    ((name, mode, flags, _),) = calls
    set_mode_filter, thread_sync = 1, 1
    assert (name, mode, flags) == ("seccomp", set_mode_filter, thread_sync)
