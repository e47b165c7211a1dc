"""A worker's pulse: one word of shared memory that counts begins and ends of its turns, so it is odd while one runs.

The worker writes it, the supervisor reads it; a turn is one batch of one front end. Nothing else is in it: no moment,
since a worker's clock would be its own word. How long a turn takes is the supervisor's own observation (server/
watchdog.py), and so is the CPU time that a process has used, which comes from the kernel.
"""

import ctypes
import mmap
import os
import time
from typing import Final, NamedTuple

from hermetic.enclave.channel import map_shared_memory, shared_memory

__all__ = ["Observation", "Pulse", "Wrist"]

PULSE_BYTES: Final = mmap.PAGESIZE
_CPU_CLOCK: Final = 2  # CPUCLOCK_SCHED of linux/posix-timers.h: the CPU time of all threads of a process


class Observation(NamedTuple):
    """What is seen of a worker at a moment: its pulse, and the CPU seconds that all its threads have used so far."""

    beats: int
    cpu_s: float

    @property
    def in_turn(self) -> bool:
        """Whether it says that a turn runs."""
        return bool(self.beats % 2)


class Pulse:
    """The worker's side."""

    def __init__(self, memory: int) -> None:
        """Take the descriptor, which is closed. `BorderError` where it is not such a memory."""
        try:
            self._memory = map_shared_memory(memory, PULSE_BYTES)
        finally:
            os.close(memory)
        self._word = ctypes.c_uint64.from_buffer(self._memory)

    def begin(self) -> None:
        """A turn begins."""
        self._word.value = self._word.value + 1 | 1

    def end(self) -> None:
        """The turn has ended."""
        self._word.value = (self._word.value + 1) & ~1


class Wrist:
    """The supervisor's side: where the pulse of one worker is felt. What is read is a number, whatever it is."""

    def __init__(self) -> None:
        """Make the memory."""
        self.descriptor: Final = shared_memory(PULSE_BYTES)
        """To be handed to the worker."""
        self._memory = mmap.mmap(self.descriptor, PULSE_BYTES, prot=mmap.PROT_READ)

    def observe(self, pid: int) -> Observation:
        """Return what is to be seen of the worker `pid` now; `ProcessLookupError` where it is gone."""
        beats = int.from_bytes(self._memory[:8], "little")
        try:
            return Observation(beats, time.clock_gettime(~pid << 3 | _CPU_CLOCK))
        except OSError:
            raise ProcessLookupError(f"worker {pid}: wanted a process, got none") from None

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
