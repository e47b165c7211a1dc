"""Control groups of version 2 as a kernel has them, not as files say: on a kernel of its own, in a delegated group."""

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
    """What a worker says there, and the tests that run on this host's groups too, each in a delegated group."""
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    tests += [str(Path(__file__).with_name("test_cgroup.py"))]
    worker = [sys.executable, "-m", "tests.enclave.isolation.bounded_worker"]
    ended = own_kernel.run([worker, tests], tmp_path_factory.mktemp("kernel"))
    assert ended.statuses == (0, 0), ended.output
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
