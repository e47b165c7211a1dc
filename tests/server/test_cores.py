"""The cores and the CPU quota of this process, as kernel and cgroups say them."""

import os
from pathlib import Path

import pytest

from hermetic.server.cores import cores_here


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "cpu.max": "400000 100000"}, 2.0),
        ({"a/b/cpu.max": "nonsense"}, None),
        ({"a/b/cpu.max": "1 0"}, None),
    ],
)
def test_the_tightest_quota_of_version_2_counts(proc: Path, files: dict[str, str], quota: float | None) -> None:
    write(proc / "cgroup", "0::/a/b\n")
    for name, text in files.items():
        write(proc.parent / "mounts" / name, text)
    assert cores_here(proc, proc.parent / "mounts").quota == quota


def test_the_quota_of_version_1(proc: Path) -> None:
    write(proc / "cgroup", "4:cpu,cpuacct:/a\n3:memory:/a\n")
    write(proc.parent / "mounts/cpu/a/cpu.cfs_quota_us", "250000\n")
    write(proc.parent / "mounts/cpu/a/cpu.cfs_period_us", "100000\n")
    write(proc.parent / "mounts/cpu/cpu.cfs_quota_us", "-1\n")
    write(proc.parent / "mounts/cpu/cpu.cfs_period_us", "100000\n")
    assert cores_here(proc, proc.parent / "mounts").quota == 2.5


def test_the_cores_are_those_that_this_process_may_use() -> None:
    assert set(cores_here().usable) == os.sched_getaffinity(0)
