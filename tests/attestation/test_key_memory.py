"""Keys lie where no other process reads them, are gone after a wipe, and a wipe that leaves one behind is noticed."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.key_memory import KeyMemory, KeyMemoryKind, probe, wipe_bytes_that_nobody_else_holds
from hermetic.enclave.memory_scan import scan
from hermetic.errors import KeyNotWipedError

HOLDS = """
import os, sys
from hermetic.attestation.key_memory import KeyMemory
memory = KeyMemory(32, kinds=(sys.argv[1],))
view = memory.view
for at, number in enumerate(bytes.fromhex(sys.argv[2])):
    view[at] = number ^ 0x5a
print(memory.kind, flush=True)
sys.stdin.readline()
if sys.argv[3:]:
    plain = bytearray(number ^ 0xa5 for number in bytes.fromhex(sys.argv[2]))
    os.abort()
"""
KINDS: tuple[KeyMemoryKind, ...] = ("secret", "locked", "unlocked")
needs_secret = pytest.mark.skipif(probe() != "secret", reason="this host has no secret memory")


def turned(key: bytes, by: int) -> bytes:
    """What the other process makes of what it is told, so that its arguments do not hold it."""
    return bytes(number ^ by for number in key)


class Holder:
    """A process that holds a key."""

    def __init__(self, kind: KeyMemoryKind, *more: str, **options: Any) -> None:
        told = os.urandom(32)
        self.key, self.plain = turned(told, 0x5A), turned(told, 0xA5)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, kind, told.hex(), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **options,
        )
        assert self.process.stdout is not None
        self.kind = self.process.stdout.readline().decode().strip()

    def end(self) -> int:
        self.process.communicate(b"\n")
        return self.process.returncode


@pytest.fixture
def holder(request: pytest.FixtureRequest) -> Iterator[Holder]:
    holder = Holder(request.param)
    yield holder
    holder.end()


@needs_secret
@pytest.mark.parametrize("holder", ["secret"], indirect=True)
def test_nobody_reads_secret_memory_from_outside(holder: Holder) -> None:
    found = scan(holder.process.pid, {"key": holder.key})
    assert found.hits == ()
    assert any("secretmem" in name for name in found.unreadable)


@pytest.mark.parametrize("holder", ["locked", "unlocked"], indirect=True)
def test_other_memory_is_read_from_outside(holder: Holder) -> None:
    """The control: the same search finds the key there, so its layer is what hides it above."""
    assert scan(holder.process.pid, {"key": holder.key}).count("key") >= 1


@needs_secret
@pytest.mark.parametrize("holder", ["secret"], indirect=True)
def test_no_descriptor_of_secret_memory_is_left_to_be_taken(holder: Holder) -> None:
    """Whoever may trace a process takes its descriptors (pidfd_getfd), and could map this one and read."""
    descriptors = Path(f"/proc/{holder.process.pid}/fd").iterdir()
    assert [entry for entry in descriptors if "secretmem" in str(entry.readlink())] == []


@needs_secret
@pytest.mark.parametrize("holder", ["secret"], indirect=True)
def test_neither_a_vector_read_nor_a_mapping_by_address_reaches_it(holder: Holder) -> None:
    pid = holder.process.pid
    (line,) = (line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "secretmem" in line)
    place = line.split()[0]
    start = int(place.split("-")[0], 16)

    class Piece(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    into = ctypes.create_string_buffer(32)
    here, there = Piece(ctypes.addressof(into), 32), Piece(start, 32)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == -1
    with pytest.raises(OSError, match="No such device"):
        os.open(f"/proc/{pid}/map_files/{place}", os.O_RDONLY)


@pytest.mark.parametrize("kind", KINDS)
def test_a_core_dump_has_no_key(kind: KeyMemoryKind, tmp_path: Path) -> None:
    """The core holds what the process wrote on its heap: that is the control."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if kind == "secret" != probe() or pattern.startswith("|") or "/" in pattern:
        pytest.skip("this host has no secret memory, or writes core files elsewhere")

    def dumping() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    holder = Holder(kind, "dump", cwd=tmp_path, preexec_fn=dumping)
    assert holder.end() == -signal.SIGABRT
    (core,) = tmp_path.glob("core*")
    content = core.read_bytes()
    assert holder.plain in content
    assert holder.key not in content


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_does_not_inherit_it(kind: KeyMemoryKind) -> None:
    program = (
        "import os, sys; from hermetic.attestation.key_memory import KeyMemory\n"
        f"memory = KeyMemory(32, kinds=({kind!r},)); memory.view[:] = b'k' * 32\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(1 if bytes(memory.view) == b'k' * 32 else 0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1)"
    )
    if kind == "secret" != probe():
        pytest.skip("this host has no secret memory")
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_wiped_when_an_error_passes(kind: KeyMemoryKind) -> None:
    if kind == "secret" != probe():
        pytest.skip("this host has no secret memory")
    memory = KeyMemory(32, kinds=(kind,))
    assert memory.kind == kind
    held = memory.view

    def fails() -> None:
        with memory:
            memory.view[:] = bytes(range(32))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert bytes(held) == bytes(32)  # who still has a view sees zeros
    memory.wipe()  # twice does nothing
    with pytest.raises(ValueError, match="wiped"):
        _ = memory.view


def locked_kib() -> int:
    """KiB of memory that the kernel has promised not to swap."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
    return int(line.split()[1])


@pytest.mark.parametrize(("kind", "grows"), [("secret", True), ("locked", True), ("unlocked", False)])
def test_it_is_never_swapped(kind: KeyMemoryKind, grows: bool) -> None:
    if kind == "secret" != probe():
        pytest.skip("this host has no secret memory")
    before = locked_kib()
    with KeyMemory(32, kinds=(kind,)):
        assert (locked_kib() > before) is grows


class Careless(KeyMemory):
    """Forgets a byte."""

    def _overwrite(self, whole: ctypes.Array[ctypes.c_char]) -> None:
        ctypes.memset(ctypes.addressof(whole), 0, 31)


def test_a_wipe_that_leaves_a_byte_behind_is_noticed() -> None:
    memory = Careless(32)
    memory.view[:] = b"k" * 32
    with pytest.raises(KeyNotWipedError, match="got 1 others"):
        memory.wipe()


def test_areas_do_not_overlap_and_end_where_the_memory_ends() -> None:
    with KeyMemory(64) as memory:
        first, second = memory.take(20), memory.take(32)
        first[:], second[:] = b"a" * 20, b"b" * 32
        assert bytes(memory.view) == b"a" * 20 + bytes(12) + b"b" * 32
        with pytest.raises(ValueError, match="wanted 1 bytes, got 0"):
            memory.take(1)


def test_a_host_without_any_of_the_kinds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError("not here")

    monkeypatch.setattr("hermetic.attestation.key_memory._secret", refuse)
    with pytest.raises(OSError, match="wanted one of secret"):
        KeyMemory(32, kinds=("secret",))
    assert KeyMemory(32).kind in {"locked", "unlocked"}


def test_bytes_are_wiped_in_place_but_for_shared_ones() -> None:
    text = bytes(bytearray(b"own copy"))
    wipe_bytes_that_nobody_else_holds(text)
    assert text == bytes(8)
    wipe_bytes_that_nobody_else_holds(b"a")
    assert bytes([97]) == b"a"
