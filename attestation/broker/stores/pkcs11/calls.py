"""Calls that may never return, bounded in time and number: a module is foreign code, and its device may hang.

Each runs in a thread of its own. One that takes longer than it may is left behind: its caller gets a clear error, its
place stays taken until it ends, and what it then returns is discarded.
"""

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from hermetic.errors import KeyStoreUnavailableError

_T = TypeVar("_T")

CALL_S: Final = 10.0
WAIT_S: Final = 5.0


class _Call(Generic[_T]):
    def __init__(self, work: Callable[[], _T], discard: Callable[[_T], None], leave: Callable[[], None]) -> None:
        self._work = work
        self._discard = discard
        self._leave = leave
        self._mutex = threading.Lock()
        self._abandoned = False
        self._ended = threading.Event()
        self._result: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            result = self._work()
            with self._mutex:
                if not self._abandoned:
                    self._result.append(result)
                    return
            self._discard(result)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, who raises it
            self._error = error
        finally:
            self._leave()
            self._ended.set()

    def outcome(self, within_s: float) -> _T:
        self._ended.wait(within_s)
        with self._mutex:
            if not self._result and self._error is None:
                self._abandoned = True
                raise KeyStoreUnavailableError(f"token: expected an answer within {within_s} s, got none")
        if self._error is not None:
            raise self._error
        return self._result.pop()


class BoundedCalls:
    """At most `places` calls at once, none waited for longer than it may take."""

    def __init__(self, places: int, *, call_s: float = CALL_S, wait_s: float = WAIT_S) -> None:
        """`call_s` and `wait_s` are the longest time of a call, and for a free place, in seconds."""
        self._places = threading.BoundedSemaphore(places)
        self._count = places
        self._call_s = call_s
        self._wait_s = wait_s

    def run(self, work: Callable[[], _T], discard: Callable[[_T], None]) -> _T:
        """What `work` returns or raises; `discard` gets what comes too late. Raises `KeyStoreUnavailableError`."""
        if not self._places.acquire(timeout=self._wait_s):
            raise KeyStoreUnavailableError(
                f"token: expected one of {self._count} sessions to be free within {self._wait_s} s, got none"
            )
        call = _Call(work, discard, self._places.release)
        try:
            threading.Thread(target=call.run, name="pkcs11", daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        return call.outcome(self._call_s)
