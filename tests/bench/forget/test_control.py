"""What is planted in a process is found and taken back; where it is not found, nothing counts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.bench.forget import control
from hermetic.bench.forget.canaries import KINDS
from hermetic.bench.forget.look import look
from hermetic.errors import MeasurementError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root writes into other processes")

PROGRAM = """
import hashlib, mmap, os, sys
kept = [bytes([number % 251]) * 5000 for number in range(400)]
shared = None
if sys.argv[1] == "shared":
    descriptor = os.memfd_create("rows")
    os.ftruncate(descriptor, 1 << 20)
    shared = mmap.mmap(descriptor, 1 << 20)
for line in iter(sys.stdin.readline, ""):
    print(hashlib.sha256(b"".join(kept) + (bytes(shared) if shared else b"")).hexdigest(), flush=True)
"""


class Other:
    """A process with memory of each kind, that says what it holds."""

    def __init__(self, how: str) -> None:
        environment = os.environ | {"PYTHONMALLOC": "malloc"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def says(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[Other]:
    other = Other(request.param)
    yield other
    other.process.communicate()


@pytest.mark.parametrize("other", ["shared"], indirect=True)
def test_every_kind_is_found_in_every_kind_of_memory_and_taken_back(other: Other) -> None:
    before = other.says()
    planted = control.plant("worker", other.process.pid)
    assert [one.memory for one in planted] == list(control.MEMORY)
    for one in planted:
        assert one.forms.keys() == set(KINDS)
        assert min(one.forms.values()) >= 5  # raw, hex, three alignments of base64; some in both alphabets
    assert other.says() == before
    assert "T (stopped)" not in Path(f"/proc/{other.process.pid}/status").read_text()


@pytest.mark.parametrize("other", ["nothing"], indirect=True)
def test_memory_that_a_process_does_not_have_is_said(other: Other) -> None:
    other.says()
    planted = {one.memory: one.forms for one in control.plant("broker", other.process.pid)}
    assert planted.pop("shared memory") == {}
    assert all(planted.values())


@pytest.mark.parametrize("other", ["shared"], indirect=True)
def test_a_search_that_does_not_find_it_fails_the_run(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    other.says()

    def blind(*arguments: Any) -> list[Any]:
        return [found for found in look(*arguments) if found.form != "base64, 2"]

    monkeypatch.setattr("hermetic.bench.forget.control.look", blind)
    with pytest.raises(MeasurementError, match="the search proves nothing"):
        control.plant("worker", other.process.pid)
    assert other.says()  # it goes on
