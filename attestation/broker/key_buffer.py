"""The one place where a model key stands in the clear: anonymous memory, locked, kept out of dumps and forks, wiped.

It is as good as the host lets it be: where RLIMIT_MEMLOCK is 0 the pages are not locked, which `locked` says. Copies
that a library makes of what it is handed are the business of the zero-on-free environment (docs/spec/key-broker.md).
"""

import ctypes
import mmap
from types import TracebackType
from typing import Final, Self

_MADV_DONTDUMP: Final = 16
_MADV_WIPEONFORK: Final = 18

_libc = ctypes.CDLL(None, use_errno=True)


class KeyBuffer:
    """`size` bytes of secret; a context manager that wipes at its end, also when an exception passes."""

    def __init__(self, size: int) -> None:
        """Map at least `size` bytes, all zero."""
        self._map = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._size = size
        self._map.madvise(_MADV_DONTDUMP)
        self._map.madvise(_MADV_WIPEONFORK)
        self.locked = self._lock()
        """Whether the kernel promised not to swap the pages."""

    @property
    def view(self) -> memoryview:
        """The secret's bytes, writable; release the view before the buffer is closed."""
        return memoryview(self._map)[: self._size]

    def wipe(self) -> None:
        """Overwrite with zeros and unmap; a view still held makes the unmapping an error, never the overwriting."""
        if self._map.closed:
            return
        self._map[:] = bytes(len(self._map))
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    def _lock(self) -> bool:
        anchor = ctypes.c_char.from_buffer(self._map)
        try:
            return bool(_libc.mlock(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(self._map))) == 0)
        finally:
            del anchor
