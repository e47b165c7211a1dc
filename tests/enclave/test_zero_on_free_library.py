"""The library: wipes what is freed through every door, keeps glibc's checks, is taken from where root alone writes."""

import ctypes
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.enclave.memory_scan import scan
from hermetic.enclave.zero_on_free import interpreter
from hermetic.enclave.zero_on_free_library import SOURCE, find
from hermetic.errors import ConfigurationError
from tests.enclave.zero_on_free_builds import CC, built, is_root, needs_compiler, preloading

pytestmark = needs_compiler
HERE = Path(__file__).parent

LEFT = "import sys; from hermetic.enclave import freed_memory as f; sys.stdout.write(', '.join(f.left_behind()))"
# Python's own objects, in several threads; says so when all are gone, and waits to be looked at.
PYTHON = """
import sys, threading
MASKED = bytes.fromhex(sys.argv[1])
def unmasked():
    # bytes(generator) would collect small ones on the stack, which no free wipes.
    return (int.from_bytes(MASKED) ^ int.from_bytes(bytes([0xA5]) * len(MASKED))).to_bytes(len(MASKED))
def use():
    for size in (1, 3, 20, 100, 5000):
        kept = [bytearray(unmasked() * size) for _ in range(50)]
        kept += [(unmasked() * size).decode() for _ in range(50)]
        kept += [{one: [one]} for one in kept[-20:]]
        grown = bytearray()
        for _ in range(500):
            grown += unmasked()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
del threads, thread
print("gone", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def every_door(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("doors") / "every_door")


def compiled(program: Path) -> Path:
    """The program whose source lies beside this file, under the same name."""
    assert CC is not None
    flags = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-pthread")
    subprocess.run([CC, *flags, "-o", program, HERE / f"{program.name}.c"], check=True)
    return program


def found_through(program: Path, environ: dict[str, str]) -> dict[str, int]:
    """Door -> canaries that were found in memory after everything was freed through it."""
    # Bound now: else the loader saves registers, with what memcpy left in them, on the stack while it looks names up.
    environ = {**environ, "LD_BIND_NOW": "1"}
    said = subprocess.run([program], env=environ, capture_output=True, text=True, check=True).stdout
    return {name: int(count) for name, count in (line.split() for line in said.splitlines())}


# Puts a file in memory under a block that has a mapping of its own: the file keeps what was there when it was unmapped.
MAPPED = """
import ctypes, mmap, os
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 << 20
block = libc.malloc(size)
start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
length = (size - (start - block)) // mmap.PAGESIZE * mmap.PAGESIZE
file = os.memfd_create("under")
os.ftruncate(file, length)
fixed = 0x10
assert libc.mmap(start, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, file, 0) == start
ctypes.memset(block, 0xA5, size)
libc.free(block)
maps = open("/proc/self/maps").read()
print(f"{start:x}-" in maps, os.pread(file, length, 0).count(0xA5))
"""


def test_what_goes_back_to_the_kernel_is_overwritten_first(library: Path) -> None:
    def left(environ: dict[str, str]) -> list[str]:
        command = [sys.executable, "-c", MAPPED]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()

    unmapped, count = left({})
    assert (unmapped, int(count) > 63 << 20) == ("False", True)
    assert left({"LD_PRELOAD": str(library)}) == ["False", "0"]


def test_nothing_is_left_through_any_door(every_door: Path, library: Path) -> None:
    control = found_through(every_door, {})
    assert len(control) >= 15
    assert all(count > 1000 for count in control.values()), control
    assert set(found_through(every_door, {"LD_PRELOAD": str(library)}).values()) == {0}


@pytest.mark.parametrize(
    ("taken_out", "door"),
    [
        (("wipe((char *)block + spared, size - spared);", ""), "small blocks"),
        (("wipe((char *)block + size, had - size);", ""), "what realloc cuts off"),
        (("memcpy(moved, block, had);\n    free(block);", "memcpy(moved, block, had);\n    __libc_free(block);"),
         "what realloc moves away from"),
        (("wipe(block, size);\n    atomic_fetch_sub", "atomic_fetch_sub"), "large aligned blocks"),
    ],
)  # fmt: skip
def test_the_self_test_names_the_door_that_stays_open(tmp_path: Path, taken_out: tuple[str, str], door: str) -> None:
    weaker = built(tmp_path, taken_out)
    command = [*interpreter(), "-c", LEFT]
    said = subprocess.run(command, env=preloading(weaker), capture_output=True, text=True, check=True).stdout
    assert door in said.split(", ")


def test_inherited_marks_do_not_keep_memory(every_door: Path, tmp_path: Path) -> None:
    """A block may carry glibc's mark without having been freed twice: to skip it would be to keep what it holds."""
    mark = "second_word(block) == mark_of_freed ? "
    skipping = built(tmp_path, (mark + "LINKS : 0", mark + "size : 0"))
    assert found_through(every_door, {"LD_PRELOAD": str(skipping)})["inherited-marks"] > 0


def test_a_double_free_is_refused_as_glibc_does(library: Path, tmp_path: Path) -> None:
    assert CC is not None
    source = tmp_path / "twice.c"
    source.write_text(
        "#include <stdlib.h>\nint main(void) { void *volatile p = malloc(40), *volatile q = malloc(40);\n"
        "free(p); free(q); free(p); return 0; }"
    )
    program = tmp_path / "twice"
    subprocess.run([CC, "-O0", "-fno-builtin", "-o", program, source], check=True)
    ended = subprocess.run([program], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False)
    assert ended.returncode < 0
    assert "double free detected" in ended.stderr
    # The attack that this is about: the mark is wiped, and glibc gives the same block to two owners.
    naive = built(tmp_path / "naive", ("second_word(block) == mark_of_freed ? LINKS : 0", "0 ? LINKS : 0"))
    assert subprocess.run([program], env={"LD_PRELOAD": str(naive)}, capture_output=True, check=False).returncode == 0


def test_realloc_keeps_what_it_must(library: Path) -> None:
    """Random sizes, up and down, in this process: through the library's own symbols, glibc's heap beneath."""
    loaded = ctypes.CDLL(str(library))
    loaded.realloc.restype = ctypes.c_void_p
    loaded.realloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    loaded.free.argtypes = (ctypes.c_void_p,)
    order = random.Random(161)
    sizes = (1, 24, 25, 500, 1033, 5000, 130_000, 140_000, 600_000)
    held: dict[int, tuple[int, bytes]] = {}
    for step in range(4000):
        key = order.randrange(40)
        address, content = held.pop(key, (None, b""))
        size = order.choice(sizes) if order.random() < 0.9 else 0
        if size == 0:
            loaded.free(address)
            continue
        moved = loaded.realloc(address, size)
        assert moved % 16 == 0
        kept = min(len(content), size)
        assert ctypes.string_at(moved, kept) == content[:kept], f"step {step}"
        fresh = order.randbytes(min(size, 64)).ljust(size, b"\x5a")
        ctypes.memmove(moved, fresh, size)
        held[key] = (moved, fresh)
    for address, _ in held.values():
        loaded.free(address)


def test_realloc_without_memory_keeps_the_block(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    loaded.realloc.restype = ctypes.c_void_p
    loaded.realloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    loaded.free.argtypes = (ctypes.c_void_p,)
    block = loaded.realloc(None, 1000)
    ctypes.memmove(block, b"kept" * 250, 1000)
    assert loaded.realloc(block, 1 << 60) is None
    assert ctypes.string_at(block, 1000) == b"kept" * 250
    loaded.free(block)


def test_pythons_own_frees_in_several_threads(library: Path) -> None:
    canary = b"PythonsObjectsFreed!"
    command = [*interpreter(), "-c", PYTHON, bytes(byte ^ 0xA5 for byte in canary).hex()]

    def left(environ: dict[str, str]) -> list[str]:
        environ = {**environ, "LD_BIND_NOW": "1"}
        with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"gone\n"
            hits = scan(process.pid, {"freed": canary}).hits
            process.stdin.close()
        return [hit.region for hit in hits]

    assert len(left(preloading(None))) > 100
    assert left(preloading(library)) == []


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        ((), 0),
        (("memcpy(moved, block, had);", "memcpy(moved, block, had / 2);"), 1),
        (("wipe((char *)block + size, had - size);", "wipe((char *)block + size / 2, had - size);"), 1),
    ],
    ids=["as it is", "copies too little", "wipes too much"],
)
def test_threads_that_resize_and_free_each_others_blocks(tmp_path: Path, broken: tuple[str, ...], status: int) -> None:
    library = built(tmp_path / "library", *([(broken[0], broken[1])] if broken else []))
    program = [str(compiled(tmp_path / "heap_stress")), "2000"]
    ended = subprocess.run(program, env={"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False)
    assert (ended.returncode, "is not what was written" in ended.stderr) == (status, status == 1), ended.stderr


def test_it_exports_its_doors_and_nothing_else(library: Path) -> None:
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    frees = {"free", "realloc", "free_sized", "free_aligned_sized", "cfree"}
    allocates = {"memalign", "aligned_alloc", "posix_memalign"}
    doors = {*frees, *allocates, "hermetic_give_kept_blocks_back", "hermetic_zero_on_free_source"}
    assert {line.split()[-1] for line in listed.splitlines()} == doors


def test_the_same_source_gives_the_same_library(library: Path, tmp_path: Path) -> None:
    assert built(tmp_path / "again").read_bytes() == library.read_bytes()


@pytest.mark.skipif(not is_root(), reason="files that are made here belong to somebody else than root")
def test_it_is_found_where_root_alone_can_write(library: Path) -> None:
    found = find(library, library.with_name(SOURCE.name))
    assert found.path == library.resolve()
    assert len(found.source_sha256) == 64


@pytest.mark.skipif(not is_root(), reason="only root can give files away")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.chmod(0o664), "can be written by others than root (mode 664)"),
        (lambda file: os.chown(file, 65534, 0), "belongs to uid 65534, not to root"),
        (lambda file: file.parent.chmod(0o777), "can be written by others than root (mode 777)"),
        (lambda file: os.chown(file.parent, 65534, 0), "belongs to uid 65534"),
        (lambda file: file.unlink(), "no library here"),
        (lambda file: file.write_bytes(b"no library"), "file too short"),
        (lambda file: file.with_name(SOURCE.name).write_text("another source"), "wanted a library made of"),
        (lambda file: (file.unlink(), file.symlink_to("/dev/null")), "no regular file"),
    ],
)
def test_a_library_that_others_may_have_put_there_is_refused(tmp_path: Path, spoil: object, said: str) -> None:
    file = built(tmp_path / "place")
    assert callable(spoil)
    spoil(file)
    with pytest.raises(ConfigurationError) as refused:
        find(file, file.with_name(SOURCE.name))
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["a space", "a:colon", "$ORIGIN"])
def test_a_path_that_the_loader_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    file = built(tmp_path / name)
    with pytest.raises(ConfigurationError, match="LD_PRELOAD cannot name a path with"):
        find(file, file.with_name(SOURCE.name))


def test_a_library_that_says_nothing_of_its_source_is_refused(tmp_path: Path) -> None:
    assert CC is not None
    (tmp_path / "other.c").write_text("int nothing;")
    other = tmp_path / "other.so"
    subprocess.run([CC, "-shared", "-fPIC", "-o", other, tmp_path / "other.c"], check=True)
    if sys.platform == "linux" and is_root():
        with pytest.raises(ConfigurationError, match="hermetic_zero_on_free_source"):
            find(other, SOURCE)
