"""A worker's pulse is what it says, and no more than a number to the supervisor."""

import os
import struct
import subprocess
import sys

import pytest

from hermetic.enclave.pulse import PULSE_BYTES, Observation, Pulse, Wrist
from hermetic.errors import BorderError


def felt(wrist: Wrist) -> int:
    return wrist.observe(os.getpid()).beats


def test_a_turn_is_odd_and_every_change_is_seen() -> None:
    wrist = Wrist()
    pulse = Pulse(os.dup(wrist.descriptor))
    seen = [wrist.observe(os.getpid())]
    for _ in range(3):
        pulse.begin()
        seen.append(wrist.observe(os.getpid()))
        pulse.end()
        seen.append(wrist.observe(os.getpid()))
    assert [one.beats for one in seen] == list(range(7))
    assert [one.in_turn for one in seen] == [False, True] * 3 + [False]
    wrist.close()


def test_whatever_a_worker_writes_is_a_number_and_the_memory_stays_as_large_as_it_is() -> None:
    wrist = Wrist()
    memory = os.dup(wrist.descriptor)
    os.pwrite(memory, struct.pack("<Q", 2**64 - 1), 0)
    assert felt(wrist) == 2**64 - 1
    for size in (0, 2 * PULSE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    pulse = Pulse(memory)
    pulse.begin()
    pulse.end()
    assert not wrist.observe(os.getpid()).in_turn, "it wraps"
    wrist.close()


def test_a_memory_that_could_shrink_is_no_pulse() -> None:
    memory = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, PULSE_BYTES)
    with pytest.raises(BorderError, match="seals"):
        Pulse(memory)


def test_the_cpu_time_of_all_threads_comes_from_the_kernel() -> None:
    work = "import threading\ndef burn():\n while True: pass\nfor _ in range(2): threading.Thread(target=burn).start()"
    wrist = Wrist()
    with subprocess.Popen([sys.executable, "-c", work]) as process:
        try:
            first = wrist.observe(process.pid)
            while (now := wrist.observe(process.pid)).cpu_s < first.cpu_s + 0.2:
                assert process.poll() is None
            assert now.beats == 0
        finally:
            process.kill()
        process.wait()
        with pytest.raises(ProcessLookupError):
            wrist.observe(process.pid)
    wrist.close()


def test_an_observation_says_whether_a_turn_runs() -> None:
    assert Observation(2**64 - 1, 0.0).in_turn
    assert not Observation(0, 0.0).in_turn
