"""gRPC messages put together from the DATA of one stream. Pure; no flow control.

A message is five octets, whether it is compressed and how long it is, and itself (gRPC's "Length-Prefixed-Message").
Most lie whole in one frame and never come here (connection.py). What does come here is held as it is until somebody
wants a message and there is room for it; only then it gets memory of its size, and every piece is copied once from then
on. A large one earns its memory (earned.py): who announces much and sends little costs little.
"""

from typing import Final

from hermetic.enclave.zero_on_free import wipe
from hermetic.errors import HermeticError, InvalidRequestError, OverloadedError
from hermetic.server.http2.earned import Earned
from hermetic.server.http2.unfilled import Unfilled

PREFIX_BYTES: Final = 5
AT_ONCE_BYTES: Final = 1 << 20  # a message of at most so many gets its memory with its first piece


class Incoming:
    """What has come of one stream and was not taken. `largest` bounds a message, in bytes."""

    __slots__ = ("_held", "_largest", "_message", "_packed")

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._held = bytearray()
        self._message: Unfilled | Earned | None = None  # once there is room for it
        self._packed = False

    def put(self, data: memoryview) -> None:
        """Take what has come; it is copied."""
        if self._message is not None:
            taken = self._message.put(data)  # not within the slice: mypyc evaluates its bounds twice
            data = data[taken:]
        if data:
            self._held += data

    def announced(self) -> int:
        """Return the size of the next message, -1 where its prefix is not there.

        `OverloadedError` where it is too large, `InvalidRequestError` where its prefix is none.
        """
        if self._message is not None:
            return self._message.size
        if len(self._held) < PREFIX_BYTES:
            return -1
        size = int.from_bytes(self._held[1:PREFIX_BYTES], "big")
        fault = prefix_fault(self._held[0], size, self._largest)
        if fault is not None:
            self.forget()
            raise fault
        return size

    def take(self) -> tuple[bool, bytes] | None:
        """Return the message that was announced, and whether it is compressed; None where it is not whole.

        There must be room for it: what is there of it moves to memory of its size.
        """
        message = self._message or self._begin()
        if message.filled < message.size:
            return None
        self._message = None
        return self._packed, message.take()

    @property
    def begun(self) -> bool:
        """Whether something has come that was not taken."""
        return self._message is not None or bool(self._held)

    def lacks(self, size: int) -> int:
        """Return how many bytes have not come of the next message, which was announced with `size`."""
        return size - (len(self._held) - PREFIX_BYTES if self._message is None else self._message.filled)

    def forget(self) -> None:
        """Overwrite what is held."""
        wipe(self._held)
        if self._message is not None:
            self._message.forget()
        self._held.clear()
        self._message = None

    def _begin(self) -> Unfilled | Earned:
        """Make room for the message, and move what has come of it."""
        held = self._held
        self._packed = bool(held[0])
        size = int.from_bytes(held[1:PREFIX_BYTES], "big")
        self._message = message = Unfilled(size) if size <= AT_ONCE_BYTES else Earned(size)
        with memoryview(held) as view:
            end = PREFIX_BYTES + message.put(view[PREFIX_BYTES:])
        self._held = held[end:]
        wipe(held)
        return message


def prefix_fault(flag: int, size: int, largest: int) -> HermeticError | None:
    """Return what is wrong with a message's prefix, None where nothing is."""
    if size > largest:
        return OverloadedError(f"SERVER: Received message larger than max ({size} vs. {largest})")  # as gRPC says it
    if flag > 1:
        return InvalidRequestError(f"message: expected a compressed flag of 0 or 1, got {flag}")
    return None
