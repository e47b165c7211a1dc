"""A large message as it comes: it gets its memory when half of it is there, and moves there as the rest comes.

Until then it lies in blocks, so whoever announces much and sends little costs little: memory of a message's size is
overwritten when it is freed, 40 ms for 64 MiB where nobody had touched it. A buffer that grows would be copied and
overwritten again and again, and half a message that is moved at once would keep everybody else waiting; here twice as
much moves with each piece as has come. docs/adr/0250 has the measurements.
"""

from collections import deque
from typing import Final

from hermetic.enclave.zero_on_free import wipe
from hermetic.server.http2.unfilled import Unfilled

BLOCK_BYTES: Final = 128 << 10  # at which a block takes no more
EARNED_PART: Final = 2  # a message gets its memory when such a part of it has come
MOVED: Final = 2  # bytes that move with each one that comes: all have before the message is whole


class Earned:
    """One message of `size` bytes, which is not small."""

    __slots__ = ("_blocks", "_moved", "_started", "_whole", "filled", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.filled = 0
        self._blocks: deque[bytearray] = deque()  # what came first, from `_moved` on
        self._moved = 0  # bytes at the message's beginning that are in its memory
        self._started = 0  # the place from which on they are, too
        self._whole: Unfilled | None = None

    def put(self, data: memoryview) -> int:
        """Take as much of `data` as is wanting; return how many bytes that was."""
        count = min(len(data), self.size - self.filled)
        if self._whole is None:
            self._keep(data[:count])
        else:
            self._whole.write(self.filled, data[:count])
            self._move(self._whole, MOVED * count)
        self.filled += count
        if self._whole is None and self.filled * EARNED_PART >= self.size:
            self._whole, self._started = Unfilled(self.size), self.filled
        return count

    def take(self) -> bytes:
        """Return the whole of it, once, when `filled` is `size`."""
        whole = self._whole
        if whole is None or self.filled < self.size:
            raise ValueError(f"message: expected {self.size} bytes before it is taken, got {self.filled}")
        self._move(whole, self.size)  # nothing, unless it came in a few large pieces
        self._whole = None
        whole.filled = self.size
        return whole.take()

    def forget(self) -> None:
        """Overwrite what has come, and take nothing more."""
        if self._whole is not None:
            self._whole.overwrite(0, self._moved)
            self._whole.overwrite(self._started, self.filled)
            self._whole = None
        for block in self._blocks:
            wipe(block)
        self._blocks.clear()
        self.size = self.filled = 0

    def _keep(self, data: memoryview) -> None:
        if self._blocks and len(self._blocks[-1]) < BLOCK_BYTES:
            self._blocks[-1] += data
        else:
            self._blocks.append(bytearray(data))

    def _move(self, whole: Unfilled, most: int) -> None:
        """Move blocks to where they belong, until at least `most` bytes are."""
        while self._blocks and most > 0:
            block = self._blocks.popleft()
            with memoryview(block) as view:
                whole.write(self._moved, view)
            self._moved += len(block)
            most -= len(block)
            wipe(block)
