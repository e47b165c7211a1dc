"""gRPC messages put together from the DATA of one stream. Pure; no flow control.

A message is five octets, whether it is compressed and how long it is, and itself (gRPC's "Length-Prefixed-Message").
Most lie whole in one frame and never come here (connection.py). What does come here is held as it is until somebody
wants a message; only then a buffer of its own is made, which grows with it.
"""

from typing import Final

from hermetic.enclave.zero_on_free import wipe
from hermetic.errors import HermeticError, InvalidRequestError, OverloadedError

PREFIX_BYTES: Final = 5
FIRST_BYTES: Final = 256 * 1024  # of a message's buffer, where it is as large
GROWTH: Final = 4  # times as large is the next one


class Incoming:
    """What has come of one stream and was not taken. `largest` bounds a message, in bytes."""

    __slots__ = ("_filled", "_held", "_largest", "_message", "_packed", "_size")

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._held = bytearray()
        self._message: bytearray | None = None  # once there is room for it
        self._size = 0  # of that message, in bytes
        self._filled = 0
        self._packed = False

    def put(self, data: memoryview) -> None:
        """Take what has come; it is copied."""
        message = self._message
        if message is not None:
            size = min(len(data), self._size - self._filled)
            self._put_into(message, data[:size])
            data = data[size:]
        if data:
            self._held += data

    def announced(self) -> int:
        """Return the size of the next message, -1 where its prefix is not there.

        `OverloadedError` where it is too large, `InvalidRequestError` where its prefix is none.
        """
        if self._message is not None:
            return self._size
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

        There must be room for it: what is there of it moves to a buffer of its size.
        """
        if self._message is None:
            self._begin()
        message = self._message
        if message is None or self._filled < self._size:
            return None
        whole = bytes(message)
        wipe(message)
        self._message = None
        self._filled = 0
        return self._packed, whole

    @property
    def begun(self) -> bool:
        """Whether something has come that was not taken."""
        return self._message is not None or bool(self._held)

    def lacks(self, size: int) -> int:
        """Return how many bytes have not come of the next message, which was announced with `size`."""
        return size - (len(self._held) - PREFIX_BYTES if self._message is None else self._filled)

    def forget(self) -> None:
        """Overwrite what is held."""
        wipe(self._held)
        if self._message is not None:
            wipe(memoryview(self._message)[: self._filled])  # the rest was never touched, and may be much
        self._held.clear()
        self._message = None

    def _put_into(self, message: bytearray, data: memoryview) -> None:
        """Take what has come of a message. Its buffer grows with it: making one of 64 MiB takes a tenth of a second."""
        end = self._filled + len(data)
        if end > len(message):
            room = min(self._size, max(end, FIRST_BYTES, GROWTH * len(message)))
            message.extend(bytes(room - len(message)))
        message[self._filled : end] = data
        self._filled = end

    def _begin(self) -> None:
        """Make the message's buffer, and move what has come of it."""
        held = self._held
        size = int.from_bytes(held[1:PREFIX_BYTES], "big")
        here = min(size, len(held) - PREFIX_BYTES)
        self._packed = bool(held[0])
        self._message, self._filled, self._size = bytearray(), 0, size
        with memoryview(held) as view:
            self._put_into(self._message, view[PREFIX_BYTES : PREFIX_BYTES + here])
        self._held = held[PREFIX_BYTES + here :]
        wipe(held)


def prefix_fault(flag: int, size: int, largest: int) -> HermeticError | None:
    """Return what is wrong with a message's prefix, None where nothing is."""
    if size > largest:
        return OverloadedError(f"SERVER: Received message larger than max ({size} vs. {largest})")  # as gRPC says it
    if flag > 1:
        return InvalidRequestError(f"message: expected a compressed flag of 0 or 1, got {flag}")
    return None
