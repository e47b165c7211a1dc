"""A prepared parent that locks one child at a time and lets it try one thing: `python -m ...locked HOST PROFILE`.

HOST says what kind of host this parent plays: `root`; `user`, an ordinary user; `container`, root without the right to
make namespaces; `user-container`, both. It reads cells from its standard input, one JSON object a line: {"attempt",
"profile", "layers" (null: no lock-down), "thread"}; it answers each with {"outcome": "refused" | "killed" | "succeeded"
| "broken", "detail", "report"}. The children are forks of one that has imported everything, so they are cheap.
A worker on a GPU opens one on its way, whose driver is a stand-in (tests/enclave/standin_cuda).
"""

import errno
import gc
import json
import linecache  # noqa: F401 - a traceback after the lock-down could not import it
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hermetic.enclave.isolation import cgroup, identity, kernel, lockdown, process, seccomp
from hermetic.enclave.isolation.cgroup import Cgroup
from hermetic.enclave.isolation.layers import CGROUP_MEMORY, CGROUP_TASKS, SEALED_MEMORY
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.isolation.properties import PROPERTIES
from hermetic.enclave.zero_on_free import NOT_LOOKED_AT
from tests.enclave.isolation import escape_memory, escape_outside, escape_processes
from tests.enclave.isolation.surroundings import MEMORY, THREADS, Surroundings, surroundings
from tests.enclave.standin_cuda import worker as standin

ATTEMPTS: dict[str, Callable[[Surroundings], str]] = {
    function.__name__: function for function in (*escape_outside.SUITE, *escape_processes.SUITE, *escape_memory.SUITE)
}
USER = 1001
# The kernel counts the threads of a uid together: runs side by side would take each other's.
ROOM_UID = 60007 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PATIENCE_S = 60
PR_SET_CHILD_SUBREAPER = 36
REFUSED, MISTAKE, NOT_LOCKED = 3, 4, 5
CGROUP_MEMORY_BYTES = 64 << 20
CORE_BYTES = 1 << 20
EXECUTING = {"execute", "execute_memory", "gain_by_setuid"}  # where they succeed there is nobody left to say so
# What Docker leaves to a container's root: no SYS_ADMIN, SYS_PTRACE, SYS_RESOURCE, BPF, PERFMON.
CONTAINER_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
CONTAINER_REFUSES = ("unshare", "setns", "mount", "pivot_root", "bpf", "perf_event_open", "keyctl", "userfaultfd")


def play(host: str) -> None:
    """Become what the host's processes are."""
    if "container" in host:
        rules = [seccomp.Rule(name, seccomp.refuse()) for name in CONTAINER_REFUSES]
        seccomp.apply(seccomp.assemble(rules, default=seccomp.ALLOW))
        kept = sum(1 << number for number in CONTAINER_CAPABILITIES)
        low, high = kept & 0xFFFFFFFF, kept >> 32
        kernel.syscall("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", low, low, 0, high, high, 0))
    if "user" in host and identity.is_root():
        identity.become(USER, USER)
    process.make_dumpable()  # a change of uid has cleared it, and others are to be reached


def neighbour(end: socket.socket) -> NoReturn:
    """Read the memory of whoever asks: a process id and an address come, what lies there goes back, or an error."""
    while request := end.recv(12):
        pid, address = struct.unpack("=iQ", request)
        try:
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(address)
                answer = memory.read(8)
        except OSError as error:
            answer = str(error.errno).encode()
        end.send(answer)
    os._exit(0)


class Elsewhere:
    """A thread that was there before the filter: what it may do shows whether the filter covers every thread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.evidence = ""
        self.attempt: Callable[[], str] = str

    def run(self) -> None:
        self.go.wait()
        try:
            self.evidence = self.attempt()
        except BaseException as error:  # noqa: BLE001 - told to the thread that asked
            self.error = error
        self.done.set()

    def make(self, attempt: Callable[[], str]) -> str:
        self.attempt = attempt
        self.go.set()
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.evidence


def lock(cell: dict[str, Any], around: Surroundings, elsewhere: Elsewhere) -> str:
    """Lock this process down as the cell says; returns the report as JSON."""
    layers = frozenset(cell["layers"] or ())
    around.readable = {True: around.readable[True]} if SEALED_MEMORY in layers else {False: around.readable[False]}
    around.growable = os.memfd_create("growable", os.MFD_ALLOW_SEALING)
    os.ftruncate(around.growable, 4096)
    profile = PROFILES[cell["profile"]]
    around.descriptors = profile.open_files
    front_end = profile.name == "front-end"
    on_gpu = bool(profile.devices)
    driver = around.folder / "driver"
    half = None
    if cell["layers"] is not None:
        room = lockdown.Room(
            uid=ROOM_UID,
            gid=ROOM_UID,
            memory_bytes=MEMORY,
            threads=THREADS,
            waived=tuple(sorted(PROPERTIES)) if cell.get("waive") else (),
            layers=layers,
            libraries=(str(driver),) if on_gpu else (),
        )
        if on_gpu:
            first = lockdown.lock_worker_before_threads(room, cell["profile"])
            if cell.get("thread"):
                threading.Thread(target=elsewhere.run, daemon=True).start()
            standin.open_driver(driver)
            return lockdown.lock_worker_with_threads(first, NOT_LOOKED_AT).model_dump_json()
        if not front_end:
            return lockdown.lock_down_worker(room, cell["profile"], NOT_LOOKED_AT).model_dump_json()
        half = lockdown.lock_front_end_before_threads(room, 0)
    if front_end:
        if cell.get("thread"):
            threading.Thread(target=elsewhere.run, daemon=True).start()
        around.listener = socket.create_server(("127.0.0.1", 0))
    return "" if half is None else lockdown.lock_front_end_after_listening(half, NOT_LOOKED_AT).model_dump_json()


def accept(around: Surroundings, pipe: int) -> str:
    """What a front end must still be able to do: take a connection and answer it. The parent connects."""
    assert around.listener is not None
    os.write(pipe, f"{around.listener.getsockname()[1]}\n".encode())
    around.listener.settimeout(PATIENCE_S)
    connection, _ = around.listener.accept()
    with connection:
        connection.sendall(b"hello")
    return "answered"


def try_in_child(cell: dict[str, Any], around: Surroundings, pipe: int) -> NoReturn:
    elsewhere = Elsewhere()
    try:
        os.write(pipe, lock(cell, around, elsewhere).encode() + b"\n")
    except BaseException as error:  # noqa: BLE001 - everything is told
        os.write(pipe, f"\n{type(error).__name__}: {error}".encode())
        os._exit(NOT_LOCKED)
    name = cell["attempt"]

    def attempt() -> str:
        return accept(around, pipe) if name == "accept" else ATTEMPTS[name](around)

    try:
        evidence = elsewhere.make(attempt) if cell.get("thread") else attempt()
    except (OSError, RuntimeError, MemoryError) as error:
        code = getattr(error, "errno", None)
        os.write(pipe, (errno.errorcode.get(code, "") if code else type(error).__name__).encode())
        os._exit(REFUSED)
    except BaseException:  # noqa: BLE001 - a mistake in the attempt must not look like a refusal
        os.write(2, f"{name}: {traceback.format_exc()}".encode())
        os._exit(MISTAKE)
    os.write(pipe, evidence.encode())
    os._exit(0)


class Parent:
    """Forks, watches and judges the locked children."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._groups: dict[frozenset[str], Cgroup] = {}

    def answer(self, cell: dict[str, Any]) -> dict[str, str]:
        """Have one cell tried."""
        reading, writing = os.pipe()
        go_reading, go_writing = os.pipe()
        child = self._fork(cell, writing, go_reading)
        os.close(writing)
        os.close(go_reading)
        try:
            self._into_group(cell, child)
            os.write(go_writing, b"!")
            report, detail = self._listen(cell, reading, child)
        finally:
            os.close(reading)
            os.close(go_writing)
        _, status = os.waitpid(child, 0)
        _bury_orphans()
        outcome, detail = judge(cell["attempt"], status, detail)
        return {"outcome": outcome, "detail": detail, "report": report}

    def _fork(self, cell: dict[str, Any], pipe: int, go: int) -> int:
        """Fork the child; for one that is to outlive its parent with a parent of its own, which is us in the end."""
        dying = cell["attempt"] == "outlive_parent"
        telling, told = os.pipe()
        child = os.fork()
        if child == 0:
            if dying:
                child = os.fork()
                if child:
                    os.write(told, struct.pack("=i", child))
                    os.read(self._around.answers, 1)
                    os._exit(0)
            os.read(go, 1)
            try_in_child(cell, self._around, pipe)
        os.close(told)
        middle = child if dying else 0
        if dying:
            (child,) = struct.unpack("=i", os.read(telling, 4))
            self._middle = middle
        os.close(telling)
        return child

    def _into_group(self, cell: dict[str, Any], child: int) -> None:
        wanted = frozenset(cell["layers"] or ()) & {CGROUP_MEMORY, CGROUP_TASKS}
        if wanted:
            if wanted not in self._groups:
                memory = CGROUP_MEMORY_BYTES if CGROUP_MEMORY in wanted else None
                self._groups[wanted] = Cgroup.make(memory, THREADS if CGROUP_TASKS in wanted else None)
            self._groups[wanted].add(child)

    def _listen(self, cell: dict[str, Any], pipe: int, child: int) -> tuple[str, str]:
        text = b""
        connected = False
        while True:
            if not select.select([pipe], [], [], PATIENCE_S)[0]:
                os.kill(child, signal.SIGKILL)
                self._end_middle(cell)
                return "", "hung"
            piece = os.read(pipe, 1 << 16)
            text += piece
            if cell["attempt"] == "accept" and not connected and text.count(b"\n") == 2:
                connected = True
                port = int(text.split(b"\n")[1])
                with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
                    client.recv(16)
            if not piece:
                report, _, detail = text.decode().partition("\n")
                self._end_middle(cell)
                return report, detail

    def _end_middle(self, cell: dict[str, Any]) -> None:
        """Have the parent in between end, if there is one and it has not: its child is ours then."""
        if cell["attempt"] == "outlive_parent":
            with suppress(BlockingIOError):
                os.write(self._around.letters, b"!")
            os.waitpid(self._middle, 0)
            self._drain()

    def _drain(self) -> None:
        answers = socket.socket(fileno=os.dup(self._around.answers))
        with answers, suppress(BlockingIOError):
            answers.recv(16, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Remove the control groups."""
        for group in self._groups.values():
            group.remove()


def _bury_orphans() -> None:
    """Wait for what attempts have forked: while nobody has, it counts as a thread of its uid."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def judge(attempt: str, status: int, detail: str) -> tuple[str, str]:
    """How an attempt ended, from the child's status and what it said."""
    if detail == "hung":
        return "broken", detail
    code = os.waitstatus_to_exitcode(status)
    if attempt == "leave_core" and code == -signal.SIGABRT:
        return ("succeeded", "a core file") if os.WCOREDUMP(status) else ("refused", "no core")
    if code < 0:
        return "killed", signal.Signals(-code).name
    if attempt in EXECUTING and not detail:
        return ("succeeded", "it ran") if code == 0 else ("refused", "nothing gained")
    return {0: "succeeded", REFUSED: "refused"}.get(code, "broken"), detail or f"status {code}"


def unavailable() -> dict[str, str]:
    """The layers that whoever starts processes could not give them here, with the reason."""
    try:
        cgroup.delegation()
    except OSError as error:
        return dict.fromkeys((CGROUP_MEMORY, CGROUP_TASKS), error.strerror or str(error))
    return {}


def main(host: str, profile: str) -> None:
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="hermetic-escapes-") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        with surroundings(folder, ours.fileno()) as around:
            os.chdir(folder)
            if PROFILES[profile].devices:
                PROFILES[profile] = replace(PROFILES[profile], devices=(*standin.DEVICES, standin.NODE))
                (folder / "driver").mkdir()
                standin.build(folder / "driver")
            if (child := os.fork()) == 0:
                ours.close()
                play("user")  # nothing keeps root out
                neighbour(theirs)
            theirs.close()
            serving = os.fork()
            if serving == 0:
                serve(host, around)
            os.waitpid(serving, 0)
            ours.close()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def serve(host: str, around: Surroundings) -> NoReturn:
    """Be the parent of the locked children, and answer cells until there are no more."""
    status = 1
    try:
        kernel.prctl(PR_SET_CHILD_SUBREAPER, 1)
        play(host)
        parent = Parent(replace(around, parent=os.getpid()))
        gc.collect()
        gc.freeze()  # children share what they do not touch
        sys.stdout.write(json.dumps({"unavailable": unavailable()}) + "\n")
        sys.stdout.flush()
        try:
            for line in sys.stdin:
                sys.stdout.write(json.dumps(parent.answer(json.loads(line))) + "\n")
                sys.stdout.flush()
        finally:
            parent.close()
        status = 0
    except BaseException:  # noqa: BLE001 - what was made around us is not ours to clean up
        os.write(2, traceback.format_exc().encode())
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
