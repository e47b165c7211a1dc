"""Memory that was freed goes back to the kernel when much of it was in use and little of it is.

glibc keeps what lies below something that is still in use: after 900 replies of 1 MiB that nobody took, a front end
kept all of their memory for good. `malloc_trim` gives back every free page.
"""

import ctypes
from typing import Final

WORTH_TRIMMING: Final = 128 << 20  # bytes in flight at once, after which there may be something to give back
SHARE: Final = 4  # of which no more than a fourth is left

_LIBC: Final = ctypes.CDLL(None)


class Trimmer:
    """Looks at the bytes in flight, and trims when they have fallen."""

    def __init__(self) -> None:
        self._most = 0

    def look(self, bytes_in_flight: int) -> bool:
        """Take note of what is in flight; whether memory was given back."""
        self._most = max(self._most, bytes_in_flight)
        if self._most < WORTH_TRIMMING or bytes_in_flight * SHARE > self._most:
            return False
        self._most = bytes_in_flight
        _LIBC.malloc_trim(ctypes.c_size_t(0))
        return True
