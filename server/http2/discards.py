"""Answers that nobody will read: overwritten and freed, some in each turn of the loop.

Somebody who asks for much, reads none of it and hangs up leaves hundreds of MiB; to overwrite them at once takes a
tenth of a second, in which nobody else is served. docs/adr/0250 has the measurements.
"""

from typing import Final

from hermetic.enclave.zero_on_free import wipe_bytes_about_to_be_freed, wipe_immutable_bytes_that_nobody_else_holds

AT_ONCE_BYTES: Final = 64 << 10  # a smaller one is overwritten at once: that is done before it could be put away
WIPED_BYTES: Final = 2 << 20  # in one turn, and one message at least
MOST_BYTES: Final = 256 << 20  # that wait; beyond, they are overwritten at once: memory is bounded


class Discards:
    """Messages of one loop that are to be overwritten."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, secret: bytes) -> None:
        """Overwrite `secret`, now or soon. Nobody else may hold it, and it is in no dictionary."""
        size = len(secret)
        if size <= AT_ONCE_BYTES or self._size + size > MOST_BYTES:
            wipe_immutable_bytes_that_nobody_else_holds(secret)
            return
        self._waiting.append(secret)
        self._size += size

    def wipe_some(self) -> bool:
        """Overwrite as much as a turn has time for; whether there is more."""
        left = WIPED_BYTES
        # The last that came is the first to go: it lies at the heap's end, which shrinks with it, a piece at a time.
        while self._waiting and left > 0:
            secret = self._waiting.pop()
            self._size -= len(secret)
            left -= len(secret)
            wipe_bytes_about_to_be_freed(secret)
        return bool(self._waiting)

    def close(self) -> None:
        """Overwrite everything."""
        while self.wipe_some():
            pass
