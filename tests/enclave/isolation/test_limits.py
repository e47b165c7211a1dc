"""Which cgroup limits hold, v2 and v1, from the files that say so."""

from pathlib import Path

from hermetic.enclave.isolation.limits import CgroupLimits, cgroup_limits


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/cgroup", "0::/system.slice/hermetic.service\n")
    write(tmp_path / "fs/memory.max", "max\n")
    write(tmp_path / "fs/system.slice/memory.max", "1000\n")
    write(tmp_path / "fs/system.slice/hermetic.service/memory.max", "2000\n")
    write(tmp_path / "fs/system.slice/hermetic.service/pids.max", "50\n")
    assert cgroup_limits(tmp_path / "proc", tmp_path / "fs") == CgroupLimits(1000, 50)


def test_version_1_says_no_limit_by_a_huge_number(tmp_path: Path) -> None:
    write(tmp_path / "proc/cgroup", "8:pids:/a\n4:cpu,memory:/a/b\n0::/\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path / "fs/memory/a/memory.limit_in_bytes", "4096\n")
    write(tmp_path / "fs/pids/a/pids.max", "max\n")
    assert cgroup_limits(tmp_path / "proc", tmp_path / "fs") == CgroupLimits(4096, None)


def test_without_cgroups_nothing_is_bounded(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path, tmp_path) == CgroupLimits(None, None)
