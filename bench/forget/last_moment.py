"""Stopping processes at the very end of their lives, to look at what they hold when nothing of theirs runs any more.

The pages of a process that has ended go back to the kernel as they are (without `init_on_free`), so what was not wiped
by then is what is left. ptrace with PTRACE_O_TRACEEXIT stops a process in its exit, with all of its memory. Source:
ptrace(2). Needs root; the processes notice nothing.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from hermetic.errors import MeasurementError

__all__ = ["LastMoments"]

_CONT, _DETACH, _SEIZE = 7, 17, 0x4206
_OPTION_TRACE_EXIT: Final = 0x40
_EVENT_EXIT, _EVENT_STOP = 6, 128
_WALL: Final = 0x40000000
POLL_S: Final = 0.002
START_TIMEOUT_S: Final = 10
END_TIMEOUT_S: Final = 120  # for processes to come to their ends

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class LastMoments:
    """While this is entered, `at_end` is called for each of `pids` in the moment in which it ends, by a thread here.

    Leaving waits for all of them. Raises `MeasurementError` where one cannot be traced or does not end.
    """

    def __init__(self, pids: Sequence[int], at_end: Callable[[int], None]) -> None:
        self._pids = list(pids)
        self._at_end = at_end
        self._traced = threading.Event()
        self._failure: Exception | None = None
        self._over = False
        # ptrace belongs to a thread.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        if not self._traced.wait(START_TIMEOUT_S) or self._failure is not None:
            raise MeasurementError(f"processes: wanted to watch their ends, got {self._failure}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the ends; not where an error passes."""
        self._over = kind is not None
        self._thread.join(END_TIMEOUT_S)
        left = self._thread.is_alive()
        self._over = True
        if kind is None and (left or self._failure is not None):
            raise MeasurementError(f"processes {self._pids}: wanted their ends, got {self._failure or 'none'}")

    def _run(self) -> None:
        try:
            for pid in self._pids:
                _ptrace(_SEIZE, pid, _OPTION_TRACE_EXIT)
            self._traced.set()
            while self._pids and not self._over:
                for pid in list(self._pids):
                    self._serve(pid)
                time.sleep(POLL_S)
            for pid in self._pids:
                with contextlib.suppress(OSError):
                    _ptrace(_DETACH, pid, 0)
        except Exception as error:  # noqa: BLE001 - told by whoever waits
            self._failure = error
            self._traced.set()

    def _serve(self, pid: int) -> None:
        """Look whether the process has stopped, and have it go on."""
        stopped, status = os.waitpid(pid, os.WNOHANG | _WALL)
        if not stopped:
            return
        if not os.WIFSTOPPED(status):
            raise MeasurementError(f"process {pid}: wanted to see its end, got it too late")
        if status >> 16 == _EVENT_EXIT:
            self._pids.remove(pid)
            try:
                self._at_end(pid)
            finally:
                _ptrace(_DETACH, pid, 0)
        else:
            # A signal on its way is delivered; other stops are none of its own.
            number = os.WSTOPSIG(status)
            passed = 0 if status >> 16 == _EVENT_STOP or number == signal.SIGTRAP else number
            _ptrace(_CONT, pid, passed)


def _ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace of {pid}: {os.strerror(code)}")
