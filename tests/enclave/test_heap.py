"""What a batch has freed is there for the next one."""

import subprocess
import sys

from hermetic.enclave.zero_on_free import environment, interpreter

BATCHES = """
import ctypes, resource, sys
from hermetic.enclave.heap import keep_what_is_freed
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
if sys.argv[1] == "kept" and not keep_what_is_freed():
    sys.exit("mallopt")

def batch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size << 10) for size in (100, 3000, 900, 20000, 50)]
    for block, size in zip(blocks, (100, 3000, 900, 20000, 50)):
        ctypes.memset(block, 1, size << 10)
    for block in reversed(blocks):
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*[batch() for _ in range(4)])
"""
PAGES = 24_050 << 10 >> 12


def faults(how: str) -> list[int]:
    """Pages that each of four equal batches had to fetch."""
    command = [*interpreter(), "-c", BATCHES, how]
    path = {"PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(command, env={**environment(), **path}, capture_output=True, text=True, check=True, timeout=60)
    return [int(number) for number in ran.stdout.split()]


def test_a_batch_finds_the_pages_of_the_one_before() -> None:
    first, *later = faults("kept")
    assert first >= PAGES
    assert max(later) < PAGES // 10


def test_it_does_not_by_itself() -> None:
    """Else this would be for nothing."""
    assert max(faults("as it is")[1:]) > PAGES // 10
