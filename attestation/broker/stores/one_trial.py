"""A KEK that answers slowly or never must not take the broker's workers: leases are renewed by the same ones.

Once a call has failed after more than a moment, one call at a time tries on, and every other one is refused at once,
until one succeeds.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from hermetic.attestation.broker.stores.kek import Kek
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import KeyStoreError, KeyStoreUnavailableError

_T = TypeVar("_T")

SLOW_S: Final = 1.0
"""A failure that took this long keeps a worker from other work."""


class OneTrial:
    """A `Kek` before another one."""

    def __init__(self, kek: Kek, clock: Callable[[], float] = time.monotonic) -> None:
        """Take `kek` over; `clock` gives seconds."""
        self._kek = kek
        self._clock = clock
        self._mutex = threading.Lock()
        self._slow = False
        self._trying = False

    @property
    def identifier(self) -> str:
        """The KEK's own."""
        return self._kek.identifier

    def wrap(self, secret: memoryview, facts: bytes) -> bytes:
        """As the KEK does."""
        return self._call(lambda: self._kek.wrap(secret, facts))

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        """As the KEK does."""
        return self._call(lambda: self._kek.unwrap(wrapped, facts))

    def close(self) -> None:
        """Close the KEK."""
        self._kek.close()

    def _call(self, work: Callable[[], _T]) -> _T:
        trial = self._begin()
        began = self._clock()
        try:
            result = work()
        except KeyStoreUnavailableError:
            self._end(trial=trial, slow=self._slow or self._clock() - began >= SLOW_S)
            raise
        except KeyStoreError:  # an answer too
            self._end(trial=trial, slow=False)
            raise
        except BaseException:
            self._end(trial=trial, slow=self._slow)
            raise
        self._end(trial=trial, slow=False)
        return result

    def _begin(self) -> bool:
        """Whether this call is the one that tries; raises `KeyStoreUnavailableError` where another one does."""
        with self._mutex:
            if not self._slow:
                return False
            if self._trying:
                raise KeyStoreUnavailableError(f"{self.identifier}: it did not answer in time; another call is trying")
            self._trying = True
            return True

    def _end(self, *, trial: bool, slow: bool) -> None:
        with self._mutex:
            self._slow = slow
            if trial:
                self._trying = False
