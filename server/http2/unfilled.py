"""Bytes that are made before their content is there: a message is written once, where the application reads it.

Python has none. A bytearray of the size is filled with zeros first, which takes a tenth of a second for 64 MiB, and has
to be copied into the `bytes` that everyone else takes. Here the C interface's own way is used: an object of the size,
whose memory nobody has written to, and which nobody else sees until it is full. Memory of the heap holds nothing of
others then: what is freed is overwritten (enclave/zero_on_free.py).

Source: Python's C API, "PyMemoryView_FromMemory" and "PyBytes_FromStringAndSize" (the first argument may be NULL).
"""

import ctypes
from typing import Final

from hermetic.enclave.zero_on_free import wipe

_new: Final = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_new.restype = ctypes.py_object
_view_of: Final = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view_of.restype = ctypes.py_object
_WRITABLE: Final = 0x200  # PyBUF_WRITE
_HEADER: Final = bytes.__basicsize__ - 1
_NOTHING: Final = memoryview(b"")


class Unfilled:
    """One message of `size` bytes as it comes. Memory that was not written to takes no pages."""

    __slots__ = ("_view", "_whole", "filled", "size")

    def __init__(self, size: int) -> None:
        """`size` may be 0."""
        whole: bytes = _new(None, size)
        self._whole: bytes | None = whole
        self._view: memoryview = _view_of(id(whole) + _HEADER, size, _WRITABLE)
        self.size = size
        self.filled = 0

    def put(self, data: memoryview) -> int:
        """Write as much of `data` as is wanting; return how many bytes that was."""
        start = self.filled
        count = min(len(data), self.size - start)
        if count:
            self._view[start : start + count] = data[:count]
            self.filled = start + count
        return count

    def write(self, start: int, data: memoryview) -> None:
        """Write `data` from `start` on, within the size; who writes out of order counts and overwrites for itself."""
        self._view[start : start + len(data)] = data

    def overwrite(self, start: int, end: int) -> None:
        """Fill with zeros what was written out of order."""
        if end > start:
            wipe(self._view[start:end])

    def take(self) -> bytes:
        """Return the whole of it, once, when `filled` is `size`: nothing here writes to it any more."""
        whole = self._whole
        if whole is None or self.filled < self.size:
            raise ValueError(f"message: expected {self.size} bytes before it is taken, got {self.filled}")
        self._whole = None
        self._view = _NOTHING
        return whole

    def forget(self) -> None:
        """Overwrite what has come, and take nothing more; the rest was never touched, and may be much."""
        if self._whole is not None:
            wipe(self._view[: self.filled])
            self._whole = None
            self._view = _NOTHING
            self.size = self.filled = 0
