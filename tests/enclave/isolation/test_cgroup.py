"""Control groups: what bounds already, in both versions, from the files that say so; and real ones, where we may."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.enclave.isolation import cgroup
from hermetic.enclave.isolation.cgroup import Bounds, Cgroup

UNLIMITED_V1 = "9223372036854771712\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Host:
    """Files as a kernel would show them: /proc/self, and mounted control groups."""

    def __init__(self, folder: Path, groups: str, *mounts: tuple[str, str, str, str]) -> None:
        self.proc, self.mounted = folder / "proc", folder / "fs"
        lines = [
            f"{number} 1 0:{number} {root} {self.mounted / point} rw - {kind} {kind} rw,{options}\n"
            for number, (kind, point, root, options) in enumerate(mounts)
        ]
        write(self.proc / "cgroup", groups)
        write(self.proc / "mountinfo", "1 0 0:1 / / rw - ext4 /dev/vda rw\n" + "".join(lines))

    def put(self, path: str, text: str) -> None:
        write(self.mounted / path, text)


def version_2(folder: Path, *, inside: str) -> Host:
    host = Host(folder, "0::/a.service\n", ("cgroup2", "", "/", ""))
    host.put("cgroup.controllers", "cpu memory pids\n")
    host.put("a.service/cgroup.controllers", "memory pids\n")
    host.put("a.service/cgroup.subtree_control", "")
    host.put("a.service/cgroup.procs", inside)
    return host


def test_the_tightest_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    host = version_2(tmp_path, inside="1\n")
    host.put("memory.max", "900\n")
    host.put("a.service/memory.max", "2000\n")
    host.put("a.service/pids.max", "50\n")
    assert cgroup.bounds(host.proc) == Bounds(900, "v2", 50)


def test_version_1_says_no_limit_by_a_huge_number(tmp_path: Path) -> None:
    memory, pids = ("cgroup", "memory", "/", "memory"), ("cgroup", "pids", "/", "pids")
    host = Host(tmp_path, "8:pids:/a\n4:memory:/a/b\n0::/\n", memory, pids)
    host.put("memory/memory.limit_in_bytes", UNLIMITED_V1)
    host.put("memory/a/memory.limit_in_bytes", "4096\n")
    host.put("pids/a/pids.max", "max\n")
    assert cgroup.bounds(host.proc) == Bounds(4096, "v1", None)


def test_in_a_container_the_own_group_is_what_is_mounted(tmp_path: Path) -> None:
    host = Host(tmp_path, "4:memory:/docker/abc\n", ("cgroup", "memory", "/docker/abc", "memory"))
    host.put("memory/memory.limit_in_bytes", "4096\n")
    assert cgroup.bounds(host.proc).memory_bytes == 4096


def test_a_second_version_without_the_controller_leaves_it_to_the_first(tmp_path: Path) -> None:
    host = Host(tmp_path, "4:memory:/a\n0::/\n", ("cgroup2", "unified", "/", ""), ("cgroup", "memory", "/", "memory"))
    host.put("unified/cgroup.controllers", "hugetlb\n")
    host.put("memory/a/memory.limit_in_bytes", "4096\n")
    assert cgroup.bounds(host.proc) == Bounds(4096, "v1", None)


def test_without_cgroups_nothing_is_bounded_or_made(tmp_path: Path) -> None:
    assert cgroup.bounds(tmp_path) == Bounds()
    with pytest.raises(OSError, match="got none mounted"):
        Cgroup.make(4096, 4, tmp_path)


def test_a_group_that_others_are_in_is_not_ours_to_divide(tmp_path: Path) -> None:
    host = version_2(tmp_path, inside=f"1\n{os.getpid()}\n")
    with pytest.raises(OSError, match=r"this process alone, got 2 \(systemd: Delegate=yes\)"):
        cgroup.delegation(host.proc)


def test_a_process_that_is_alone_moves_out_of_the_way_and_shares_out(tmp_path: Path) -> None:
    host = version_2(tmp_path, inside=f"{os.getpid()}\n")
    assert cgroup.delegation(host.proc) == "v2"
    own = host.mounted / "a.service"
    (own / "hermetic-itself").mkdir()
    write(own / "hermetic-itself/cgroup.procs", "")
    Cgroup.make(4096, None, host.proc).add(1)
    assert (own / "hermetic-itself/cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+pids"  # the last of two: a file does not add up
    (made,) = own.glob(f"hermetic-{os.getpid()}-*")
    assert (made / "memory.max").read_text() == "4096"
    assert (made / "cgroup.procs").read_text() == "1"


def test_once_moved_it_makes_groups_beside_itself(tmp_path: Path) -> None:
    host = version_2(tmp_path, inside="")
    write(host.proc / "cgroup", "0::/a.service/hermetic-itself\n")
    host.put("a.service/hermetic-itself/cgroup.controllers", "memory pids\n")
    host.put("a.service/cgroup.subtree_control", "memory pids\n")
    gone = host.mounted / f"a.service/hermetic-{1 << 30}-0"
    gone.mkdir()
    Cgroup.make(None, None, host.proc)
    assert gone.exists()  # nothing was asked for
    Cgroup.make(None, 7, host.proc)
    assert not gone.exists()
    (made,) = host.mounted.glob(f"a.service/hermetic-{os.getpid()}-*")
    assert (made / "pids.max").read_text() == "7"


@pytest.fixture
def group() -> Cgroup:
    try:
        return Cgroup.make(32 << 20, 4)
    except OSError as error:
        pytest.skip(f"this host delegates no control group: {error.strerror or error}")


def in_group(group: Cgroup, program: str) -> int:
    waiting = [sys.executable, "-c", f"import sys; sys.stdin.read()\n{program}"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as process:
        group.add(process.pid)
        process.communicate(b"")
    group.remove()
    group.remove()
    return process.returncode


def test_a_process_that_takes_more_memory_is_killed(group: Cgroup) -> None:
    assert in_group(group, "b = bytearray(b'x') * (64 << 20)") == -9


def test_and_one_that_does_not_is_not(group: Cgroup) -> None:
    bounded = "from hermetic.enclave.isolation import cgroup; sys.exit(cgroup.bounds().memory_bytes != 32 << 20)"
    assert in_group(group, bounded) == 0


def test_a_fork_too_many_is_refused(group: Cgroup) -> None:
    forks = """
import os, signal
children = []
try:
    while len(children) < 8:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except BlockingIOError:
    pass
for child in children:
    os.kill(child, 9)
    os.wait()
sys.exit(len(children))
"""
    assert in_group(group, forks) == 3


def test_it_leaves_nothing_behind(group: Cgroup) -> None:
    group.remove()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/hermetic-{os.getpid()}-*"))
