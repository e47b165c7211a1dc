"""Freed memory is overwritten under the environment, and the self-test sees the difference."""

import os
import subprocess
import sys

import pytest

from hermetic.enclave.zero_on_free import (
    ENVIRONMENT,
    environment,
    interpreter,
    wipe,
    wipe_immutable_bytes_that_nobody_else_holds,
)

STATUS = "from hermetic.enclave import zero_on_free as z; import sys; sys.stdout.write(z.status())"
RESTART = """
import os, sys
from hermetic.enclave import zero_on_free as z
z.ensure()
sys.stdout.write(z.status() + " " + " ".join(sys.argv[1:]))
"""


def run(environ: dict[str, str], *arguments: str) -> str:
    return subprocess.run([*interpreter(), *arguments], env=environ, capture_output=True, text=True, check=True).stdout


def test_it_is_enforced_under_the_environment() -> None:
    assert run(environment(), "-c", STATUS) == "enforced"


@pytest.mark.parametrize("missing", ["GLIBC_TUNABLES", "PYTHONMALLOC"])
def test_it_is_best_effort_without_any_part_of_it(missing: str) -> None:
    assert run({k: v for k, v in environment().items() if k != missing}, "-c", STATUS) == "best effort"


def test_the_per_thread_cache_alone_is_seen() -> None:
    with_cache = environment() | {"GLIBC_TUNABLES": "glibc.malloc.perturb=165"}
    assert run(with_cache, "-c", STATUS) == "best effort"


def test_python_under_isolation_would_ignore_it() -> None:
    command = [sys.executable, "-I", "-c", STATUS]
    assert (
        subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout == "best effort"
    )


def test_a_process_without_it_replaces_itself_once_and_keeps_its_arguments() -> None:
    plain = {"PATH": os.environ.get("PATH", "")}
    assert run(plain, "-c", RESTART, "one", "two words") == "enforced one two words"
    # Where the allocator takes no such orders it goes on, and says so.
    stubborn = plain | {"HERMETIC_ZERO_ON_FREE": "1"}
    assert run(stubborn, "-c", RESTART, "x") == "best effort x"


def test_the_environment_holds_nothing_of_ours() -> None:
    assert set(environment()) == {*ENVIRONMENT, "ORT_DISABLE_TELEMETRY", "OPENBLAS_NUM_THREADS", "PYTHONUTF8"}


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
