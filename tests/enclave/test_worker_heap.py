"""A worker's heap: whose it is changed for, and that large blocks come and go by themselves then."""

import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.enclave import worker_heap, zero_on_free
from hermetic.enclave.isolation.profiles import PROFILES

WITHOUT_LIBRARY = pytest.mark.skipif("LD_PRELOAD" not in zero_on_free.environment(), reason="no library here")
LOOK = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def mapped(size):
    block = libc.malloc(size)
    word = ctypes.c_size_t.from_address(block - 8).value
    libc.free(block)
    return bool(word & 2)
mapped(16 << 20)  # after the first one, glibc left to itself would map none of this size any more
print(mapped(4 << 20), mapped(16 << 20), mapped(512 << 10))
"""


@pytest.fixture
def huge_pages(tmp_path: Path) -> Path:
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    return file


@WITHOUT_LIBRARY
def test_large_blocks_of_a_worker_have_mappings_of_their_own(huge_pages: Path) -> None:
    command = [sys.executable, "-c", LOOK]
    plain = zero_on_free.environment()
    told = {**plain, **worker_heap.orders("onnx-cpu", huge_pages)}
    for environment, wanted in ((plain, "False False False"), (told, "True True False")):
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said.strip() == wanted


@WITHOUT_LIBRARY
def test_what_wipes_is_told_the_same_as_before(huge_pages: Path) -> None:
    told = worker_heap.orders("onnx-cpu", huge_pages)["GLIBC_TUNABLES"]
    assert told.startswith(zero_on_free.environment()["GLIBC_TUNABLES"] + ":")


@pytest.mark.parametrize("profile", sorted(PROFILES.keys() - {"onnx-cpu"}))
def test_other_profiles_keep_the_heap_that_they_have(profile: str, huge_pages: Path) -> None:
    assert worker_heap.orders(profile, huge_pages) == {}


def test_a_kernel_without_huge_pages_changes_nothing(tmp_path: Path, huge_pages: Path) -> None:
    huge_pages.write_text("always madvise [never]\n")
    assert worker_heap.orders("onnx-cpu", huge_pages) == {}
    assert worker_heap.orders("onnx-cpu", tmp_path / "none") == {}


def test_where_glibc_overwrites_it_is_told_nothing_else(huge_pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_on_free, "_library", lambda: "no compiler")
    assert worker_heap.orders("onnx-cpu", huge_pages) == {}
