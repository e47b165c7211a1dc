"""Core dumps and other processes of the same user are shut out: each layer alone, and each shown open first."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern").read_text()
ABORTS = """
import os, sys
from hermetic.cli.private_memory import keep_memory_private
from hermetic.enclave.isolation.limits import forbid_core_dumps
from hermetic.enclave.isolation.process import make_undumpable
layers = {"open": lambda: None, "limit": forbid_core_dumps, "undumpable": make_undumpable}
layers.get(sys.argv[1], keep_memory_private)()
os.abort()
"""
# One process of a user holds something, another of the same user reads its memory.
READS = """
import os, sys
from hermetic.cli.private_memory import keep_memory_private
from hermetic.enclave.isolation import limits, process
ready, says = os.pipe()
waits, goes = os.pipe()
holder = os.fork()
if not holder:
    os.close(goes)
    os.setresuid(65534, 65534, 65534)
    process.make_dumpable()  # a change of uid has made it undumpable
    if sys.argv[1] == "private":
        keep_memory_private()
    os.write(says, b"x")
    os.read(waits, 1)
    os._exit(0)
os.read(ready, 1)
os.setresuid(65534, 65534, 65534)
try:
    os.open(f"/proc/{holder}/mem", os.O_RDONLY)
    sys.stdout.write("read")
except PermissionError:
    sys.stdout.write("refused")
"""


@pytest.mark.skipif(CORE_PATTERN.startswith("|") or "/" in CORE_PATTERN, reason="core files are written elsewhere")
@pytest.mark.parametrize(("how", "cores"), [("open", 1), ("limit", 0), ("undumpable", 0), ("both", 0)])
def test_an_abort_leaves_no_core_dump(how: str, cores: int, tmp_path: Path) -> None:
    def dumping() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    command = [sys.executable, "-c", ABORTS, how]
    done = subprocess.run(command, check=False, cwd=tmp_path, stderr=subprocess.DEVNULL, preexec_fn=dumping)
    assert done.returncode == -signal.SIGABRT
    assert len(list(tmp_path.glob("core*"))) == cores


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of another user")
@pytest.mark.parametrize(("how", "outcome"), [("open", "read"), ("private", "refused")])
def test_other_processes_of_the_user_do_not_read_it(how: str, outcome: str) -> None:
    done = subprocess.run([sys.executable, "-c", READS, how], check=True, capture_output=True, text=True)
    assert done.stdout == outcome
