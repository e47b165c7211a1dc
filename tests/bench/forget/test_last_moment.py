"""A process is looked at in the moment of its end, with what it holds then; and it ends as it would have."""

import os
import signal
import subprocess
import sys

import pytest

from hermetic.bench.forget.last_moment import LastMoments
from hermetic.enclave.memory_scan import scan
from hermetic.errors import MeasurementError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root traces other processes")

PROGRAM = """
import os, sys
canary = bytearray(number ^ 0x5a for number in bytes.fromhex(sys.argv[1]))
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
if sys.argv[2] == "wiped":
    canary[:] = bytes(len(canary))
os._exit(7) if sys.argv[2] != "killed" else os.kill(os.getpid(), 15)
"""


@pytest.mark.parametrize(("how", "found", "status"), [("held", True, 7), ("wiped", False, 7), ("killed", True, -15)])
def test_what_a_process_holds_when_it_ends(how: str, found: bool, status: int) -> None:
    told = os.urandom(48)
    canary = bytes(number ^ 0x5A for number in told)
    command = [sys.executable, "-c", PROGRAM, told.hex(), how]
    environment = os.environ | {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.perturb=165"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        process.stdout.readline()
        counts: list[int] = []
        with LastMoments([process.pid], lambda pid: counts.append(scan(pid, {"c": canary}).count("c"))):
            process.stdin.write(b"\n")
            process.stdin.flush()
        assert process.wait(60) == status
    assert [count > 0 for count in counts] == [found]


def test_signals_reach_a_process_that_is_watched() -> None:
    program = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3)); print('x', flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", program + "signal.pause(); signal.pause()"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        with LastMoments([process.pid], lambda _: None):
            os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(60) == 3


def test_a_process_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="wanted to watch their ends"), LastMoments([2**22 - 1], lambda _: None):
        pass
