"""The worker's own clock for its lease: when it is over, the worker wipes itself and ends, whoever says what.

    CLOCK_BOOTTIME   counts from the machine's start, suspend included; nobody sets it
    a thread         looks at it, cuts the front ends off, has the main thread wipe, or does it itself
    a kernel timer   ends the process `FORCED_AFTER_S` later where the thread could not: SIGALRM's default

A lease is counted from the moment before the worker's key was made: no lease can name that key any earlier. So whoever
holds a lease back on its way shortens it. docs/adr/0190 has the reasons.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["ENDED_AMID_WORK_STATUS", "ENDED_STATUS", "FORCED_AFTER_S", "IN_ORDER_S", "LeaseTimer", "boottime"]

ENDED_STATUS: Final = 80
"""Exit status: the lease was over, everything was wiped in order."""

ENDED_AMID_WORK_STATUS: Final = 81
"""Exit status: the lease was over while the runtime was at work; the decrypted model was overwritten under it."""

SLICE_S: Final = 1.0
"""Longest sleep: how late an end can be noticed after a suspend, which the sleep does not count."""

IN_ORDER_S: Final = 1.0
"""How long the main thread has to notice, wipe in order and end."""

FORCED_AFTER_S: Final = 3.0
"""How long after the end the kernel ends the process, where nothing else did."""

_SIGEV_SIGNAL: Final = 0
_TIMER_ABSTIME: Final = 1
_SIGEVENT_BYTES: Final = 64


def boottime() -> float:
    """Return the seconds since the machine's start, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseTimer:
    """Counts one worker's lease. `arm` is called anew for each lease; the thread begins with the first."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        """Make the kernel's timer, which a locked worker cannot; nothing is armed. `clock` counts as `boottime`."""
        self._clock = clock
        self._alarm = _KernelTimer()
        self._ends = 0.0
        self._changed = threading.Event()
        self._begun = False
        self.cut_off: Callable[[], None] = lambda: None
        """Lets nothing more out, at once; any thread."""
        self.wipe: Callable[[], None] = lambda: None
        """Overwrites what there is of the model, whoever uses it; any thread. The process ends then."""
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        """Readable once the lease is over: for the main thread, to wipe in order and end."""

    @property
    def over(self) -> bool:
        """Whether a lease was armed, and is over."""
        return self._begun and self._clock() >= self._ends

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self._ends - self._clock()

    def arm(self, ends: float) -> None:
        """The lease in force ends at this moment of the clock; it replaces the one before."""
        self._ends = ends
        # By the kernel's own clock, whatever `clock` is.
        self._alarm.arm(max(0.0, ends - self._clock()) + FORCED_AFTER_S)
        self._changed.set()
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._run, name="lease", daemon=True).start()

    def _run(self) -> None:
        while (left := self.left_s) > 0:
            self._changed.wait(min(left, SLICE_S))
            self._changed.clear()
        try:
            self.cut_off()
        finally:
            os.eventfd_write(self.ended, 1)
            time.sleep(IN_ORDER_S)  # the main thread ends the process meanwhile
            try:
                self.wipe()
            finally:
                os._exit(ENDED_AMID_WORK_STATUS)


class _KernelTimer:
    """A POSIX timer on CLOCK_BOOTTIME that raises SIGALRM, whose default ends the process. Source: timer_create(2)."""

    def __init__(self) -> None:
        # Whoever started us may have had it ignored or held back, and both are inherited.
        if signal.getsignal(signal.SIGALRM) is signal.SIG_IGN:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        self._libc = ctypes.CDLL(None, use_errno=True)
        event = (ctypes.c_char * _SIGEVENT_BYTES)()
        # struct sigevent: the value's 8 bytes, sigev_signo, sigev_notify.
        ctypes.c_int.from_buffer(event, 8).value = signal.SIGALRM
        ctypes.c_int.from_buffer(event, 12).value = _SIGEV_SIGNAL
        self._id = ctypes.c_void_p()
        if self._libc.timer_create(time.CLOCK_BOOTTIME, event, ctypes.byref(self._id)) != 0:
            raise OSError(ctypes.get_errno(), "timer_create")

    def arm(self, after_s: float) -> None:
        """Raise the signal after so many seconds; replaces what was armed before."""
        moment = boottime() + after_s
        whole = int(moment)
        # struct itimerspec: the interval (none), then the moment.
        value = (ctypes.c_long * 4)(0, 0, whole, int((moment - whole) * 1e9))
        if self._libc.timer_settime(self._id, _TIMER_ABSTIME, ctypes.byref(value), None) != 0:
            raise OSError(ctypes.get_errno(), "timer_settime")
