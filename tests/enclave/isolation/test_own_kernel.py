"""What is a whole machine's, on a kernel of its own: delegated control groups of version 2, a program for cores."""

import json
import sys
from pathlib import Path

import pytest

from tests.enclave.isolation import own_kernel

pytestmark = [
    pytest.mark.skipif(not own_kernel.available(), reason="needs root and linux.uml (Debian: user-mode-linux)"),
    pytest.mark.timeout(own_kernel.START_S + 30),
]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a worker says there, in a delegated group, as do tests that run on this host's too; and who leaves cores."""
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    tests += [str(Path(__file__).with_name("test_cgroup.py"))]
    worker = [sys.executable, "-m", "tests.enclave.isolation.bounded_worker"]
    cores = [sys.executable, "-m", "tests.enclave.isolation.core_to_a_program"]
    ended = own_kernel.run([worker, tests, cores], tmp_path_factory.mktemp("kernel"))
    assert ended.statuses == (0, 0, 0), ended.output
    return ended.output


def test_limits_of_memory_and_processes_hold(printed: str) -> None:
    """None of the tests is skipped."""
    assert " passed" in printed
    assert "skipped" not in printed, printed
    assert "Memory cgroup out of memory: Killed process" in printed, "the kernel's own word"


def test_a_worker_has_a_group_of_its_own_and_says_so(printed: str) -> None:
    """Also the first process that its supervisor starts."""
    (report,) = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert report["properties"]["bounded-memory"] == ["cgroup-memory", "rlimit-memory"]
    assert report["properties"]["bounded-threads"] == ["cgroup-tasks", "rlimit-threads"]
    assert report["memory_bounds"][0] == "cgroup v2: 2560 MiB resident"
    assert not report["waived"]


def test_a_limit_of_zero_would_not_keep_a_core_from_a_program(printed: str) -> None:
    """Each of our two layers alone does."""
    (line,) = [line for line in printed.splitlines() if line.startswith("cores ")]
    assert json.loads(line.removeprefix("cores ")) == {"open": True, "zero": True, "limit": False, "undumpable": False}
