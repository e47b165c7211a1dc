"""Memory that another process can write to while we read it: what is decided by is copied once, and then judged.

A worker has the same pages as we have, and may change them between any two reads of ours. So no other file of a front
end reads them, and here there are two ways only:

- `copied` is a private copy. What is looked at is such a copy: lengths of BYTES, states, flags, files, rows that move
  to another worker. Whoever judges it and whoever uses it then see the same bytes.
- `passed_on` is for elements of fixed size of which nothing is decided, whatever they are. It is read once, by what
  copies it into a reply; it saves large answers a copy.

Not here: how many bytes, and where. That is arithmetic of our own (buffers.py), and what a worker says of it is
checked before (outputs.py).
"""

import contextlib
import mmap
import os

from hermetic.server.wiping import wipe

__all__ = ["Foreign", "ForeignMemory"]


class ForeignMemory:
    """Mapped memory that is shared with a process which is not trusted. Most of it may never have been touched."""

    def __init__(self, mapped: mmap.mmap, descriptor: int | None = None) -> None:
        """`descriptor` is the memory's own, owned from now on; without it all of the memory counts as touched."""
        self._mapped = mapped
        self._view = memoryview(mapped)
        self._descriptor = descriptor

    def __len__(self) -> int:
        """Return its size in bytes."""
        return len(self._mapped)

    def part(self, start: int, end: int) -> "Foreign":
        """Return the piece from `start` to `end`."""
        return Foreign(self._view[start:end])

    def wipe_touched(self, start: int, end: int, most: int | None = None) -> int:
        """Overwrite with zeros what either side has ever touched from `start` to `end`; `most` bytes of it at most.

        Returns where it has come to. What nobody has touched is zeros, and no page of it is made now: there may be
        gigabytes of it.
        """
        left = end - start if most is None else most
        while start < end and left > 0:
            touched, untouched = self._touched(start, end)
            stop = min(untouched, touched + left)
            wipe(self._view[touched:stop])
            left -= stop - touched
            start = stop
        return start

    def close(self) -> None:
        """Unmap it: where an exception still holds a piece, when that is gone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        with contextlib.suppress(BufferError):
            self._view.release()
            self._mapped.close()

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """Return where the first touched piece begins and ends; both are `end` where there is none."""
        if self._descriptor is None:
            return start, end
        try:
            touched = os.lseek(self._descriptor, start, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing up to the end of the memory
            return end, end
        if touched >= end:
            return end, end
        return touched, min(end, os.lseek(self._descriptor, touched, os.SEEK_HOLE))


class Foreign:
    """A piece of memory that is shared with a process which is not trusted. All numbers are bytes."""

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        """`view` is writable, and nobody else reads it."""
        self._view = view

    def __len__(self) -> int:
        """Return its size."""
        return len(self._view)

    def copied(self, nbytes: int, start: int = 0) -> bytes:
        """Return a private copy of `nbytes` from `start` on: one read, after which the other side changes nothing."""
        return self._view[start : start + nbytes].tobytes()

    def passed_on(self, nbytes: int) -> memoryview:
        """Return the first `nbytes`, to be copied into a reply and never to be looked at."""
        return self._view[:nbytes]

    def put(self, content: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Write `content` from `start` on."""
        self._view[start : start + len(content)] = content

    def close_gap(self, start: int, length: int, end: int) -> None:
        """Move what lies behind `start + length`, up to `end`, to `start`; wipe what it leaves."""
        self._view[start : end - length] = self._view[start + length : end]
        wipe(self._view[end - length : end])

    def wipe(self, nbytes: int | None = None) -> None:
        """Overwrite the first `nbytes`, or all, with zeros."""
        wipe(self._view if nbytes is None else self._view[:nbytes])
