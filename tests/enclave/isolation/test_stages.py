"""The stages of a lock-down: what a process may do between them, and that each is for every thread that is there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

SOURCE = "int answer(void) { return 42; }"

# A worker that loads code from a descriptor of its own, and a thread that was there before: it tries what we try.
LOADING = """
import ctypes, json, mmap, os, sys, threading
from dataclasses import replace
from hermetic.enclave.isolation import lockdown
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.isolation.properties import PROPERTIES
from hermetic.enclave.zero_on_free import NOT_LOOKED_AT

PROFILES["torch-cpu"] = replace(PROFILES["torch-cpu"], loads_code=True)
code, more = (os.memfd_create(name) for name in ("code", "more"))
for descriptor in (code, more):
    os.write(descriptor, open(sys.argv[1], "rb").read())
room = lockdown.Room(61999, 61999, 1 << 30, 8, waived=tuple(PROPERTIES))

def tried(act):
    try:
        return act()
    except OSError as error:
        return "refused"

def load(descriptor):
    return ctypes.CDLL(f"/fd/{descriptor}").answer()

def map_code():
    mmap.mmap(more, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    return "mapped"

def own_code():
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC).close()
    return "mapped"

def open_file(path):
    os.close(os.open(path, os.O_RDONLY))
    return "opened"

class Elsewhere(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.go, self.done, self.said = threading.Semaphore(0), threading.Semaphore(0), {}
    def run(self):
        while True:
            self.go.acquire()
            self.said = attempts()
            self.done.release()
    def ask(self):
        self.go.release()
        self.done.acquire()
        return self.said

def attempts():
    return {
        "map code": tried(map_code),
        "own code": tried(own_code),
        "own descriptor": tried(lambda: open_file(f"/fd/{more}")),
        "files": [path for path in ("/etc/passwd", "/proc/self/mem") if tried(lambda: open_file(path)) == "opened"],
    }

layers = lockdown.lock_worker_before_threads(room, "torch-cpu")
elsewhere = Elsewhere()
elsewhere.start()
lockdown.lock_worker_with_threads(layers, NOT_LOOKED_AT)
said = {"loaded": load(code), "before": [attempts(), elsewhere.ask()]}
lockdown.end_loading(layers)
said |= {"later": tried(lambda: load(more)), "after": [attempts(), elsewhere.ask()]}
os.write(1, json.dumps(said).encode())
os._exit(0)
"""

# A thread of a library that has put itself under a filter of its own.
OUTSIDE = """
import os, sys, threading
from hermetic.enclave.isolation import lockdown, seccomp
from hermetic.enclave.isolation.properties import PROPERTIES
from hermetic.enclave.zero_on_free import NOT_LOOKED_AT
from hermetic.errors import IsolationError

ready, never = threading.Event(), threading.Event()

def alone():
    seccomp._FILTER_FLAG_TSYNC = 0
    seccomp.apply(seccomp.assemble([], default=seccomp.ALLOW))
    seccomp._FILTER_FLAG_TSYNC = 1
    ready.set()
    never.wait()

layers = lockdown.lock_worker_before_threads(
    lockdown.Room(61999, 61999, 1 << 30, 8, waived=tuple(PROPERTIES)), "onnx-cpu")
thread = threading.Thread(target=alone, daemon=True)
thread.start()
ready.wait()
try:
    lockdown.lock_worker_with_threads(layers, NOT_LOOKED_AT)
except IsolationError as error:
    os.write(1, f"{thread.native_id} {error}".encode())
os._exit(0)
"""


# A thread from before Landlock, and one from after it, each of which opens a file.
TOO_LATE = """
import json, os, threading
from hermetic.enclave.isolation import landlock, lockdown
from hermetic.enclave.isolation.layers import LANDLOCK_FILES
from hermetic.errors import IsolationError

go, said = threading.Event(), {}

def read(name):
    go.wait()
    try:
        os.close(os.open("/etc/passwd", os.O_RDONLY))
        said[name] = "opened"
    except OSError as error:
        said[name] = type(error).__name__

before = threading.Thread(target=read, args=("before",))
before.start()
try:
    lockdown.lock_worker_before_threads(lockdown.Room(61999, 61999, 1 << 30, 8), "onnx-cpu")
except IsolationError as error:
    said["stage"] = str(error)
landlock.restrict([LANDLOCK_FILES])
after = threading.Thread(target=read, args=("after",))
after.start()
go.set()
before.join()
after.join()
os.write(1, json.dumps(said).encode())
os._exit(0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "code.c").write_text(SOURCE)
    library = folder / "code.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "code.c"], check=True)
    return library


def said_by(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout


def test_code_is_mapped_from_descriptors_until_loading_ends_and_then_in_no_thread(library: Path) -> None:
    said = json.loads(said_by(LOADING, str(library)))
    while_loading = {"map code": "mapped", "own code": "mapped", "own descriptor": "opened", "files": []}
    assert (said["loaded"], said["before"]) == (42, [while_loading] * 2)
    afterwards = {"map code": "refused", "own code": "mapped", "own descriptor": "refused", "files": []}
    assert (said["later"], said["after"]) == ("refused", [afterwards] * 2)


def test_a_thread_under_a_filter_of_its_own_refuses_the_load_by_its_number_whatever_is_waived() -> None:
    thread, _, error = said_by(OUTSIDE).partition(" ")
    assert error == f"seccomp: wanted every thread under the filter, got thread {thread} outside"


def test_what_a_thread_has_before_landlock_it_keeps_so_the_first_stage_wants_one_thread() -> None:
    """Why the order is what it is: a driver's threads that were there first would go on opening files."""
    assert json.loads(said_by(TOO_LATE)) == {
        "stage": "lock-down: wanted a process with one thread, got 2",
        "before": "opened",
        "after": "PermissionError",
    }
