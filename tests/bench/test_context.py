"""What stands beside the numbers, and what is read from /proc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.bench.context import context, git_revision
from hermetic.bench.cpu_time import cpu_seconds
from hermetic.bench.point import Point, check_clean, percentile
from hermetic.bench.process_memory import resident
from hermetic.errors import MeasurementError

NO_PROCESS = 2**22 + 1  # above the largest number that a kernel gives


def test_machine_versions_and_time_are_there() -> None:
    facts = context()
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["machine"]["processor"]
    assert {"python", "hermetic", "grpcio", "onnxruntime"} <= facts["versions"].keys()


def test_the_revision_tells_of_changed_files(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_revision(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "a")
    revision = git_revision(tmp_path)
    assert revision is not None
    assert len(revision) == 40
    (tmp_path / "file").write_text("b")
    assert git_revision(tmp_path) == f"{revision}-dirty"


def test_cpu_time_and_memory_of_a_process() -> None:
    script = (
        "import time\nb = bytearray(64 << 20)\nwhile time.process_time() < 0.2: pass\ndel b\nprint(flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu_seconds([child.pid]) >= 0.15
        now, peak = resident(child.pid)
        assert peak >= now + (60 << 20)
        child.communicate(b"\n")
    assert cpu_seconds([]) == 0


def test_processes_that_are_gone_are_named() -> None:
    with pytest.raises(MeasurementError, match=str(NO_PROCESS)):
        cpu_seconds([NO_PROCESS])
    with pytest.raises(MeasurementError, match=str(NO_PROCESS)):
        resident(NO_PROCESS)


def test_percentiles_are_nearest_rank() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [percentile(ordered, share) for share in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7


def test_a_point_without_answers_or_with_errors_is_no_number() -> None:
    clean = Point(3, 1.0, 1.0, 1.0)
    assert check_clean(clean, "x") is clean
    with pytest.raises(MeasurementError, match="got none"):
        check_clean(Point(0, 0.0, 0.0, 0.0), "x")
    with pytest.raises(MeasurementError, match=r"x: .*UNAVAILABLE gone: 2, wrong answer: 1 \(beside 3 right\)"):
        check_clean(Point(3, 1.0, 1.0, 1.0, {"wrong answer": 1, "UNAVAILABLE gone": 2}), "x")
