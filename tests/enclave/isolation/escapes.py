"""What a hostile process would try, and a template process that tries one thing at a time in a locked child of its own.

Run as a program it reads requests from its standard input, one JSON object a line: {"attempt", "room", "uid", ...},
forks, locks the child down as asked, lets it try, and answers {"outcome": "escaped" | "refused" | "killed", "detail"}.
An attempt returns where it got what it wanted, and raises where it was refused.
"""

import ctypes
import errno
import json
import linecache  # noqa: F401 - a traceback after the lock-down could not import it
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hermetic.enclave.isolation import kernel, lockdown, namespaces, process, seccomp
from hermetic.enclave.isolation.properties import OWN_LAYERS, PROPERTIES
from hermetic.enclave.zero_on_free import NOT_LOOKED_AT

MEMORY = 512 << 20  # bytes that a room may map
THREADS = 6
VICTIM = 0  # process id of a bystander; set when the program starts
LISTENER = 0  # TCP port of the test
ABSTRACT = ""  # abstract Unix socket of the test

ESCAPED, REFUSED = 0, 3


def call(name: str, *arguments: Any) -> int:
    return kernel.syscall(name, *arguments)


def read_file() -> None:
    Path("/etc/passwd").read_bytes()


def list_folder() -> None:
    if not list(Path("/etc").iterdir()):
        raise OSError("empty")


def stat_file() -> None:
    Path("/etc/passwd").stat()


def write_file() -> None:
    file = Path(f"/tmp/hermetic-escape-{os.getpid()}")
    file.write_bytes(b"out")
    file.unlink()


def own_memory_file() -> None:
    Path("/proc/self/mem").open("rb").close()


def victims_memory_file() -> None:
    Path(f"/proc/{VICTIM}/mem").open("rb").close()


def accept() -> None:
    """What a front end must still be able to do: take a connection and answer it. The test connects."""
    LISTENING.settimeout(10)
    connection, _ = LISTENING.accept()
    with connection:
        connection.sendall(b"hello")


def connect_tcp() -> None:
    with socket.socket() as end:
        end.connect(("127.0.0.1", LISTENER))


def send_udp() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.sendto(b"out", ("127.0.0.1", LISTENER))


def connect_abstract() -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect("\0" + ABSTRACT)


def bind_tcp() -> None:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))


def netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def fork() -> None:
    """Wait for no child: that is another system call."""
    alive = mmap.mmap(-1, 1)
    if os.fork() == 0:
        alive[0] = 1
        os._exit(0)
    while not alive[0]:
        time.sleep(0.001)


def execute() -> NoReturn:
    os.execv("/bin/true", ["true"])  # ends with status 0: escaped


def execute_memory() -> NoReturn:
    memory = os.memfd_create("program", 0)
    os.write(memory, Path("/bin/true").read_bytes())
    os.execve(memory, ["true"], {})


def ptrace() -> None:
    attach, detach = 16, 17
    call("ptrace", attach, VICTIM, 0, 0)
    os.waitpid(VICTIM, 0x40000000)  # __WALL
    call("ptrace", detach, VICTIM, 0, 0)


def read_victim() -> None:
    target = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(target), 8)
    remote = struct.pack("QQ", ctypes.addressof(target), 8)  # may be unmapped there: that is no refusal
    try:
        call("process_vm_readv", VICTIM, local, 1, remote, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def signal_victim() -> None:
    os.kill(VICTIM, 0)


def open_pidfd() -> None:
    os.close(os.pidfd_open(VICTIM))


def make_memfd() -> None:
    os.close(os.memfd_create("x"))


def io_uring() -> None:
    os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120)))


def keyring() -> None:
    call("keyctl", 0, -3, 1)  # KEYCTL_GET_KEYRING_ID, session keyring, create


def userfaultfd() -> None:
    os.close(call("userfaultfd", 1))


def perf() -> None:
    os.close(call("perf_event_open", struct.pack("II", 1, 112) + bytes(104), 0, -1, -1, 0))


def bpf() -> None:
    os.close(call("bpf", 0, struct.pack("IIII", 2, 4, 8, 1) + bytes(112), 128))


def mount() -> None:
    namespaces.enter(network=False, user=os.geteuid() != 0)
    kernel.mount("tmpfs", "/tmp", "tmpfs", 0)


def new_user_namespace() -> None:
    call("unshare", 0x10000000)


def change_root() -> None:
    os.chroot("/tmp")


def writable_and_executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def executable_later() -> None:
    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call("mprotect", address, 4096, 5)


def raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))


def be_dumpable() -> None:
    process.make_dumpable()


def much_memory() -> None:
    mmap.mmap(-1, 2 * MEMORY).close()


def much_memory_in_pieces() -> None:
    pieces = [mmap.mmap(-1, MEMORY // 8) for _ in range(16)]
    for piece in pieces:
        piece.close()


def many_threads() -> None:
    hold = threading.Event()
    threads = [threading.Thread(target=hold.wait, daemon=True) for _ in range(3 * THREADS)]
    try:
        for thread in threads:
            thread.start()
    finally:
        hold.set()


ATTEMPTS: dict[str, Callable[[], object]] = {
    function.__name__: function
    for function in (
        accept,
        read_file, list_folder, stat_file, write_file, own_memory_file, victims_memory_file, connect_tcp, send_udp,
        connect_abstract, bind_tcp, netlink, fork, execute, execute_memory, ptrace, read_victim, signal_victim,
        open_pidfd, make_memfd, io_uring, keyring, userfaultfd, perf, bpf, mount, new_user_namespace, change_root,
        writable_and_executable_memory, executable_later, raise_limit, be_dumpable, much_memory,
        much_memory_in_pieces, many_threads,
    )
}  # fmt: skip

# Not every kernel lets even root do these.
OPTIONAL = {"io_uring", "keyring", "userfaultfd", "perf", "bpf"}


def lock(request: dict[str, Any]) -> None:
    """Lock this process down as the request says; `layers` None: not at all."""
    if request.get("uid"):
        os.setgroups([])
        os.setresgid(request["uid"], request["uid"], request["uid"])
        os.setresuid(request["uid"], request["uid"], request["uid"])
    if request["layers"] is None:
        return
    room = lockdown.Room(
        uid=60007,
        gid=60007,
        memory_bytes=MEMORY,
        threads=THREADS,
        waived=tuple(sorted(PROPERTIES)) if request.get("waive") else (),
        layers=OWN_LAYERS - frozenset(request["without"]) if "without" in request else frozenset(request["layers"]),
    )
    if request.get("no_namespaces"):  # as in a container: its seccomp filter says EPERM
        rules = [seccomp.Rule("unshare", seccomp.refuse())]
        seccomp.apply(seccomp.assemble(rules, default=seccomp.ALLOW))
    if request["kind"] == "worker":
        report = lockdown.lock_down_worker(room, request.get("profile", "onnx-cpu"), NOT_LOOKED_AT)
    else:
        half = lockdown.lock_front_end_before_threads(room, 0)
        report = _listen_and_lock(half, request["pipe"])
    os.write(request["pipe"], report.model_dump_json().encode())


def _listen_and_lock(half: lockdown.Layers, pipe: int) -> Any:
    """A front end: a second thread and a listening socket, then the second step."""
    threading.Thread(target=ELSEWHERE.run, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    global LISTENING  # noqa: PLW0603 - one per forked child
    LISTENING = listener
    os.write(pipe, f"{listener.getsockname()[1]}\n".encode())
    return lockdown.lock_front_end_after_listening(half, NOT_LOOKED_AT)


class Elsewhere:
    """A thread that was there before the filter: what it may do shows whether the filter covers every thread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.attempt: Callable[[], object] = lambda: None

    def run(self) -> None:
        self.go.wait()
        try:
            self.attempt()
        except BaseException as error:  # noqa: BLE001 - told to the thread that asked
            self.error = error
        self.done.set()


ELSEWHERE = Elsewhere()
LISTENING: socket.socket


def try_in_child(request: dict[str, Any]) -> None:
    try:
        lock(request)
    except BaseException as error:  # noqa: BLE001 - everything is told
        os.write(request["pipe"], f"not locked: {type(error).__name__}: {error}".encode())
        os._exit(5)
    attempt = ATTEMPTS[request["attempt"]]
    try:
        if request.get("thread"):
            ELSEWHERE.attempt = attempt
            ELSEWHERE.go.set()
            ELSEWHERE.done.wait()
            if ELSEWHERE.error is not None:
                raise ELSEWHERE.error
        else:
            attempt()
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        os.write(request["pipe"], f"\n{type(error).__name__}: {error}".encode())
        os._exit(REFUSED)
    except BaseException:  # noqa: BLE001 - a mistake in the attempt must not look like a refusal
        os.write(2, traceback.format_exc().encode())
        os._exit(4)
    os._exit(ESCAPED)


def answer(request: dict[str, Any]) -> dict[str, str]:
    reading, writing = os.pipe()
    request["pipe"] = writing
    child = os.fork()
    if child == 0:
        os.close(reading)
        try_in_child(request)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        if request["kind"] == "front-end":
            port = int(file.readline() or b"0")
            if request["attempt"] == "accept":
                with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                    client.recv(16)
        text = file.read().decode()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    outcome = {ESCAPED: "escaped", REFUSED: "refused"}.get(code, "killed" if code < 0 else "broken")
    report, _, detail = text.partition("\n")
    return {"outcome": outcome, "detail": detail or (signal.Signals(-code).name if code < 0 else ""), "report": report}


def main() -> None:
    global VICTIM, LISTENER, ABSTRACT  # noqa: PLW0603 - set once
    LISTENER, ABSTRACT = int(sys.argv[1]), sys.argv[2]
    victim = subprocess.Popen(["/bin/sleep", "600"])
    VICTIM = victim.pid
    try:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        victim.kill()
        victim.wait()


if __name__ == "__main__":
    main()
