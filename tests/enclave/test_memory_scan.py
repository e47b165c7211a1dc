"""The scanner finds what is there, in every kind of memory, and does not find what is not."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from hermetic.enclave.memory_scan import Region, forms, scan

# Plants a canary, given in hexadecimal and turned inside out so that nothing else holds it, in the memory named.
PLANT = """
import ctypes, mmap, os, sys
kind, inverted = sys.argv[1], bytes.fromhex(sys.argv[2])
canary = bytearray(inverted)
if kind != "nothing":
    for at in range(len(canary)): canary[at] ^= 0xff
if kind == "heap": keep = canary
elif kind == "anonymous": keep = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
elif kind == "shared": keep = mmap.mmap(-1, 1 << 20)
elif kind == "memfd":
    fd = os.memfd_create("planted"); os.ftruncate(fd, 9 << 20); keep = mmap.mmap(fd, 9 << 20)
def wipe(): ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(canary)), 0, len(canary))
if kind in ("anonymous", "shared"): keep[5000:5000 + len(canary)] = canary
# Across the border of two parts that the scanner reads.
if kind == "memfd": keep[(4 << 20) - 10:(4 << 20) - 10 + len(canary)] = canary
if kind in ("anonymous", "shared", "memfd"): wipe()
if kind == "hex": keep = bytearray(canary.hex().encode())
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.read()
"""
CANARY = bytes(range(7, 39))


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> Iterator[int]:
    inverted = bytes(byte ^ 0xFF for byte in CANARY).hex()
    process = subprocess.Popen(
        [sys.executable, "-c", PLANT, request.param, inverted], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    yield process.pid
    process.stdin.close()
    process.stdout.close()
    process.wait(60)


@pytest.mark.parametrize(
    ("planted", "region"),
    [("heap", ""), ("anonymous", ""), ("shared", "/dev/zero (deleted)"), ("memfd", "/memfd:planted (deleted)")],
    indirect=["planted"],
)
def test_it_finds_a_canary_in_every_kind_of_memory(planted: int, region: str) -> None:
    result = scan(planted, {"canary": CANARY, "absent": bytes(reversed(CANARY))})
    assert result.count("canary") >= 1
    assert result.count("absent") == 0
    assert result.scanned_bytes > 1 << 20
    # Planting leaves debris on the stack, which the scanner sees too.
    assert sum(hit.region == region for hit in result.hits) >= (0 if region == "" else 1)
    if region.startswith("/memfd"):
        assert sum(hit.region == region for hit in result.hits) == 1


@pytest.mark.parametrize("planted", ["nothing"], indirect=True)
def test_it_finds_nothing_where_nothing_was_planted(planted: int) -> None:
    assert scan(planted, {"canary": CANARY}).hits == ()


@pytest.mark.parametrize("planted", ["hex"], indirect=True)
def test_it_finds_other_forms(planted: int) -> None:
    assert scan(planted, forms("canary", CANARY)).count("canary (hex)") >= 1


@pytest.mark.parametrize("length", [5, 6, 7, 10, 11, 32, 4096])
def test_it_finds_each_one_wherever_it_lies(length: int) -> None:
    """Only every eighth byte is looked at, or fewer where a canary is short: a word of each lies at one of them."""
    random = np.random.default_rng(length)
    canaries, wanted = {}, set()
    memory = os.memfd_create("planted")
    os.ftruncate(memory, 1 << 20)
    for number in range(16):
        zeros = 3 if number % 2 else 0
        canaries[str(number)] = random.integers(1, 256, length - zeros, np.uint8).tobytes() + bytes(zeros)
        at = 8192 * number + 4091 + number  # across the end of a page, whose neighbours hold nothing
        os.pwrite(memory, canaries[str(number)], at)
        wanted.add((str(number), at))
    holder = subprocess.Popen(["sleep", "1000"], pass_fds=(memory,))  # a small process, and its memfd from 0 on
    try:
        hits = scan(holder.pid, canaries).hits
    finally:
        os.close(memory)
        holder.kill()
        holder.wait(60)
    assert wanted <= {(hit.canary, hit.address) for hit in hits if hit.region.startswith("/memfd:planted")}


@pytest.mark.parametrize("canary", [b"four", bytes(32), b""])
def test_what_cannot_be_searched_for_is_refused(canary: bytes) -> None:
    with pytest.raises(ValueError, match="wanted 5 bytes that are not all zeros"):
        scan(os.getpid(), {"canary": canary})


def test_base64_is_found_at_any_place_in_a_text() -> None:
    searched = [form for name, form in forms("c", CANARY).items() if "base64" in name]
    for before in range(6):
        text = base64.b64encode(os.urandom(before) + CANARY + os.urandom(5))
        assert any(form in text for form in searched)


@pytest.mark.parametrize(
    ("permissions", "name", "scanned"),
    [
        ("rw-p", "", True), ("rw-p", "[heap]", True), ("r--p", "", True), ("rw-s", "/memfd:x (deleted)", True),
        ("r--p", "/memfd:x (deleted)", True), ("r-xp", "/usr/lib/libc.so.6", False),
        ("rw-p", "/usr/lib/libc.so.6", True), ("rw-s", "/dev/shm/x", True), ("---p", "", False),
        ("r--p", "[vvar]", False), ("r-xp", "[vdso]", False), ("rw-p", "[stack]", True),
    ],
)  # fmt: skip
def test_which_regions_are_looked_at(permissions: str, name: str, scanned: bool) -> None:
    assert Region(0, 4096, permissions, name).can_hold_data is scanned


def test_a_process_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        scan(2**22 - 1, {"canary": CANARY})
