"""Memory that was freed goes back to the kernel when much of it was in use and little of it is.

glibc keeps what lies below something that is still in use: after 900 replies of 1 MiB that nobody took, a front end
kept all of their memory for good. `malloc_trim` gives back every free page. That takes 20 ms for 256 MiB, in which
nobody is served: so it is done when the last of it is likely to be free, and not again at once, whoever asks for much
and hangs up again and again.
"""

import ctypes
import math
from typing import Final

WORTH_TRIMMING: Final = 128 << 20  # bytes in flight at once, after which there may be something to give back
SHARE: Final = 4  # of which no more than a fourth is left
SETTLED_S: Final = 1.0  # seconds for which no more has been left: freeing takes a while, too
REST_S: Final = 30.0  # seconds between two times

_LIBC: Final = ctypes.CDLL(None)


class Trimmer:
    """Looks at the bytes in flight, and trims when they have fallen."""

    def __init__(self) -> None:
        self._most = 0
        self._low_since = math.inf
        self._rests_until = -math.inf

    def look(self, bytes_in_flight: int, now: float) -> bool:
        """Take note of what is in flight at `now` (monotonic seconds); whether memory was given back."""
        self._most = max(self._most, bytes_in_flight)
        if self._most < WORTH_TRIMMING or bytes_in_flight * SHARE > self._most:
            self._low_since = math.inf
            return False
        self._low_since = min(self._low_since, now)
        if now < max(self._low_since + SETTLED_S, self._rests_until):
            return False
        self._most, self._low_since = bytes_in_flight, math.inf
        self._rests_until = now + REST_S
        _LIBC.malloc_trim(ctypes.c_size_t(0))
        return True
