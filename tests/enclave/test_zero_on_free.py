"""Freed memory is overwritten under the environment, the self-test sees the difference, and what does it is named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hermetic
from hermetic.enclave import zero_on_free
from hermetic.enclave.zero_on_free import (
    environment,
    interpreter,
    wipe,
    wipe_immutable_bytes_that_nobody_else_holds,
)
from hermetic.enclave.zero_on_free_library import LIBRARY, SOURCE, find
from hermetic.errors import ConfigurationError
from tests.enclave.zero_on_free_builds import CC, built, needs_compiler, preloading, told_glibc

STATUS = """
import dataclasses, json, sys
from hermetic.enclave import zero_on_free as z
sys.stdout.write(json.dumps(dataclasses.asdict(z.status())))
"""
RESTART = """
import os, sys
from hermetic.enclave import zero_on_free as z
z.ensure()
preloaded = os.environ.get("LD_PRELOAD", "none")
sys.stdout.write(" ".join([z.status().state, preloaded, os.environ["KEPT"], *sys.argv[1:]]))
"""


def run(environ: dict[str, str], *arguments: str) -> str:
    return subprocess.run([*interpreter(), *arguments], env=environ, capture_output=True, text=True, check=True).stdout


def status(environ: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = json.loads(run(environ, "-c", STATUS))
    return found


def library() -> str:
    """What processes of ours preload here: "" where there is no library."""
    try:
        return str(find().path)
    except ConfigurationError:
        return ""


def test_it_is_enforced_under_the_environment() -> None:
    found = status(environment())
    assert found["state"] == "enforced"
    assert re.fullmatch("preload:[0-9a-f]{64}" if library() else "glibc-tunables", found["by"])
    assert (found["why"] == "") is bool(library())


def test_glibc_alone_can_do_it_too_and_says_so() -> None:
    found = status(told_glibc())
    assert (found["state"], found["by"]) == ("enforced", "glibc-tunables")
    assert found["why"]


def test_it_is_best_effort_without_any_part_of_it() -> None:
    assert status(preloading(None))["state"] == "best effort"
    without_malloc = {name: value for name, value in environment().items() if name != "PYTHONMALLOC"}
    found = status(without_malloc)
    assert (found["state"], found["why"]) == ("best effort", "not overwritten: Python's objects")


def test_the_per_thread_cache_alone_is_seen() -> None:
    with_cache = told_glibc() | {"GLIBC_TUNABLES": "glibc.malloc.perturb=165"}
    found = status(with_cache)
    assert (found["state"], found["by"]) == ("best effort", "nothing")
    assert "small blocks" in found["why"]


def test_python_under_isolation_would_ignore_it() -> None:
    command = [sys.executable, "-I", "-c", STATUS]
    said = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["state"] == "best effort"


def test_a_process_without_it_replaces_itself_once_and_keeps_its_arguments() -> None:
    plain = {"PATH": os.environ.get("PATH", ""), "KEPT": "kept"}
    expected = f"enforced {library() or 'none'} kept one two words"
    assert run(plain, "-c", RESTART, "one", "two words") == expected
    # Where the allocator takes no such orders it goes on, and says so.
    stubborn = plain | {"HERMETIC_ZERO_ON_FREE": "1"}
    assert run(stubborn, "-c", RESTART, "x") == "best effort none kept x"


@needs_compiler
def test_what_somebody_else_preloads_is_gone_after_the_restart(tmp_path: Path) -> None:
    """Attack: an environment with a library that wipes nothing, put before everything, and after ours."""
    evil = _compiled(tmp_path / "evil.so", "extern void __libc_free(void *); void free(void *p) { __libc_free(p); }")
    expected = f"enforced {library() or 'none'} kept x"
    for preload in (str(evil), f"{LIBRARY}:{evil}", f"{evil}:{LIBRARY}"):
        assert run({"KEPT": "kept", "LD_PRELOAD": preload}, "-c", RESTART, "x") == expected


@needs_compiler
def test_another_library_in_its_place_is_noticed(tmp_path: Path) -> None:
    """Attack: the environment keeps the process from restarting, and the library there wipes nothing, or seems to."""
    kept = {"HERMETIC_ZERO_ON_FREE": "1"}
    evil = _compiled(tmp_path / "evil.so", "extern void __libc_free(void *); void free(void *p) { __libc_free(p); }")
    found = status(preloading(evil) | kept)
    assert (found["state"], found["by"]) == ("best effort", "nothing")
    assert "small blocks" in found["why"]
    copy = built(tmp_path / "copy")  # made of our very source, and wiping everything: but not ours
    for preload in (str(copy), f"{copy}:{LIBRARY}"):
        found = status(preloading(None) | kept | {"LD_PRELOAD": preload})
        assert (found["state"], found["by"]) == ("best effort", "nothing")
        assert str(copy) in found["why"]


def test_the_environment_holds_nothing_of_ours() -> None:
    allocator = {"LD_PRELOAD", "GLIBC_TUNABLES"} if library() else {"GLIBC_TUNABLES"}
    others = {
        "AOTI_RUNTIME_CHECK_INPUTS",
        "PYTHONMALLOC",
        "MKL_DISABLE_FAST_MM",
        "ORT_DISABLE_TELEMETRY",
        "OPENBLAS_NUM_THREADS",
        "PYTHONUTF8",
    }
    assert set(environment()) == allocator | others


def test_the_source_is_where_the_library_is() -> None:
    assert SOURCE.exists()
    assert LIBRARY.is_absolute()
    assert LIBRARY.parent == SOURCE.parent


def test_wiping() -> None:
    buffer = bytearray(b"secret")
    wipe(memoryview(buffer)[1:3])
    assert buffer == b"s\0\0ret"
    wipe(buffer)
    wipe(bytearray())
    assert buffer == bytes(6)
    text = bytes(bytearray(b"own copy"))
    wipe_immutable_bytes_that_nobody_else_holds(text)
    assert text == bytes(8)
    wipe_immutable_bytes_that_nobody_else_holds(b"")
    wipe_immutable_bytes_that_nobody_else_holds(b"a")
    assert bytes([97]) == b"a"


def _compiled(library: Path, text: str) -> Path:
    assert CC is not None
    source = library.with_suffix(".c")
    source.write_text(text)
    subprocess.run([CC, "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True)
    return library


WIPES = """
import sys
from hermetic.enclave import zero_on_free

def left(size):
    secret = bytes(bytearray(b"s") * size)
    zero_on_free.wipe_bytes_about_to_be_freed(secret)
    return secret.count(b"s")

before = left(100)
by = zero_on_free.status().by
print(before, left(100), left(1 << 20), by.partition(":")[0])
"""


@pytest.mark.parametrize("by", [zero_on_free.PRELOAD, zero_on_free.BY_GLIBC, zero_on_free.BY_NOTHING])
def test_bytes_that_free_overwrites_are_not_overwritten_twice(by: str) -> None:
    """Only after the self-test has seen it, and only by the library; then large ones too."""
    environment = {
        zero_on_free.PRELOAD: zero_on_free.environment(),
        zero_on_free.BY_GLIBC: {"GLIBC_TUNABLES": zero_on_free.TUNABLES, "PYTHONMALLOC": "malloc"},
        zero_on_free.BY_NOTHING: {},
    }[by]
    said = subprocess.run(
        [sys.executable, "-c", WIPES], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    if by == zero_on_free.PRELOAD and said[3] != by:
        pytest.skip("no library here")
    left = ["100", str(1 << 20)] if by == zero_on_free.PRELOAD else ["0", "0"]
    assert said == ["0", *left, by]


LOOK = "from hermetic.enclave import zero_on_free as z; print(z.status().by.partition(':')[0])"
DEBIAN = Path("/usr/bin/python3")


@pytest.mark.skipif(not DEBIAN.exists(), reason="no Python of the system's here")
@pytest.mark.parametrize("by", [zero_on_free.PRELOAD, zero_on_free.BY_GLIBC])
def test_whose_free_it_is_in_a_program_with_a_fixed_address(by: str) -> None:
    """Debian's Python has entries of its own for functions whose address it takes: they are not who frees."""
    source = {"PYTHONPATH": str(Path(hermetic.__file__).parent.parent)}
    orders = {"GLIBC_TUNABLES": zero_on_free.TUNABLES, "PYTHONMALLOC": "malloc"}
    environment = source | (orders if by == zero_on_free.BY_GLIBC else zero_on_free.environment())
    if by == zero_on_free.PRELOAD and not library():
        pytest.skip("no library here that only root can write")
    said = subprocess.run([DEBIAN, "-c", LOOK], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [by]
