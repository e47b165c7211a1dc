"""kill -9, and a power failure, at every write point: no acknowledged entry is lost, and the log opens and verifies."""

import os
import subprocess
import sys
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


def run(folder: Path, tmp_path: Path, signer: NoteSigner, mode: str, before: int, count: int) -> int:
    results = tmp_path / "results"
    results.mkdir()
    environment = {**os.environ, "SIGNER": signer.encode_private_key()}
    command = [sys.executable, str(WRITER), str(folder), mode, str(count), str(results)]
    subprocess.run(command, env=environment, check=True, timeout=50)
    points = sorted(int(path.name) for path in results.iterdir() if path.suffix != ".log")
    for point in points:
        acknowledged = [int(line) for line in (results / str(point)).read_text().splitlines()]
        check(results / f"{point}.log", acknowledged, before, count, signer)
    assert [int(line) for line in (results / str(points[-1])).read_text().splitlines()][-1] == before + count - 1
    return len(points)


@pytest.mark.parametrize("mode", MODES)
def test_a_new_log(folder: Path, tmp_path: Path, signer: NoteSigner, mode: str) -> None:
    assert run(folder, tmp_path, signer, mode, before=0, count=2) > 30


@pytest.mark.parametrize("mode", MODES)
def test_across_a_full_tile(folder: Path, tmp_path: Path, signer: NoteSigner, mode: str) -> None:
    with Log.open(folder, ORIGIN, signer) as log:
        log.append_all([record(index) for index in range(254)])
    assert run(folder, tmp_path, signer, mode, before=254, count=4) > 40


@pytest.mark.parametrize("mode", MODES)
def test_while_recovering_from_a_crash(folder: Path, tmp_path: Path, signer: NoteSigner, mode: str) -> None:
    log = Log.open(folder, ORIGIN, signer)
    log.append_all([record(index) for index in range(200)])
    log.publish()
    log.append_all([record(index) for index in range(200, 255)])
    log._journal._write(b"HLJF torn")
    log._journal.close()
    log._lock.release()
    assert run(folder, tmp_path, signer, mode, before=255, count=2) > 40
