"""A full disk: LogError, nothing acknowledged, and the log goes on once there is room."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.attestation.log import LogReader, NoteSigner, verify_log

WRITER = Path(__file__).with_name("full_disk_writer.py")


def check(output: subprocess.CompletedProcess[str], folder: Path, signer: NoteSigner, reason: str) -> None:
    assert output.returncode == 0, output.stderr
    assert reason in output.stderr
    before, after = map(int, output.stdout.split())
    assert before > 20
    assert after == before + 1
    assert verify_log(folder, signer.verifier()).torn_bytes == 0
    records = LogReader(folder, signer.verifier()).records()
    assert [record.fields["i"] for record in records] == list(range(after))


def test_a_file_that_may_not_grow(folder: Path, signer: NoteSigner) -> None:
    environment = {**os.environ, "SIGNER": signer.encode_private_key()}
    command = [sys.executable, str(WRITER), str(folder), "rlimit"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    check(output, folder, signer, "File too large")


def test_a_full_file_system(tmp_path: Path, signer: NoteSigner) -> None:
    """In a mount namespace of its own, on a tmpfs of 1 MiB."""
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {shlex.quote(str(small))}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this host lets nobody mount a tmpfs in a namespace")
    writer = shlex.join([sys.executable, str(WRITER), str(small / "log"), "filler"])
    script = f"{mount} && {writer} && cp -r {shlex.quote(str(small / 'log'))} {shlex.quote(str(kept))}"
    environment = {**os.environ, "SIGNER": signer.encode_private_key()}
    output = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    check(output, kept, signer, "No space left on device")
    shutil.rmtree(kept)
