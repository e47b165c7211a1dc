"""kill -9, and a power failure, at every write point: no acknowledged entry is lost, and the log opens and verifies."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.log import Log, LogReader, NoteSigner, verify_log
from tests.attestation.log.conftest import ORIGIN

MODES = ["before", "half", "power"]
WRITER = Path(__file__).with_name("crash_writer.py")


def record(index: int) -> dict[str, Any]:
    return {"kind": "test", "fields": {"i": index}}


def check(copy: Path, acknowledged: list[int], before: int, asked: int, signer: NoteSigner) -> None:
    if (copy / "checkpoint").exists():
        assert verify_log(copy, signer.verifier()).head.size >= before + len(acknowledged)
    with Log.open(copy, ORIGIN, signer) as log:
        size = log.size
        assert log.append(record(size)) == size
    assert acknowledged == list(range(before, before + len(acknowledged)))
    assert before + len(acknowledged) <= size <= before + asked
    verify_log(copy, signer.verifier())
    found = [entry.fields["i"] for entry in LogReader(copy, signer.verifier()).records()]
    assert found == list(range(size + 1))


@pytest.fixture
def results() -> Iterator[Path]:
    """In memory where the host has that: what is durable is simulated, so the disk's own syncs only cost time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def run(folder: Path, results: Path, signer: NoteSigner, mode: str, before: int, count: int) -> int:
    environment = {**os.environ, "SIGNER": signer.encode_private_key()}
    command = [sys.executable, str(WRITER), str(folder), mode, str(count), str(results)]
    subprocess.run(command, env=environment, check=True, timeout=60)
    points = sorted(int(path.name) for path in results.iterdir() if path.suffix != ".log")
    for point in points:
        acknowledged = [int(line) for line in (results / str(point)).read_text().splitlines()]
        check(results / f"{point}.log", acknowledged, before, count, signer)
        shutil.rmtree(results / f"{point}.log", ignore_errors=True)
    assert [int(line) for line in (results / str(points[-1])).read_text().splitlines()][-1] == before + count - 1
    return len(points)


@pytest.mark.parametrize("mode", MODES)
def test_a_new_log(folder: Path, results: Path, signer: NoteSigner, mode: str) -> None:
    assert run(folder, results, signer, mode, before=0, count=2) > (4 if mode == "half" else 30)


@pytest.mark.parametrize("mode", MODES)
def test_across_a_full_tile(folder: Path, results: Path, signer: NoteSigner, mode: str) -> None:
    with Log.open(folder, ORIGIN, signer) as log:
        log.append_all([record(index) for index in range(254)])
    assert run(folder, results, signer, mode, before=254, count=4) > (9 if mode == "half" else 40)


@pytest.mark.parametrize("mode", MODES)
def test_while_recovering_from_a_crash(folder: Path, results: Path, signer: NoteSigner, mode: str) -> None:
    log = Log.open(folder, ORIGIN, signer)
    log.append_all([record(index) for index in range(200)])
    log.publish()
    log.append_all([record(index) for index in range(200, 255)])
    log._journal._write(b"HLJF torn")
    log._journal.close()
    log._lock.release()
    assert run(folder, results, signer, mode, before=255, count=2) > (9 if mode == "half" else 40)
