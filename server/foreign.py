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

from hermetic.server.wiping import wipe

__all__ = ["Foreign"]


class Foreign:
    """A piece of memory that is shared with a process which is not trusted. All numbers are bytes."""

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        """`view` is writable, and nobody else reads it."""
        self._view = view

    def __len__(self) -> int:
        """Return its size."""
        return len(self._view)

    def part(self, start: int, end: int) -> "Foreign":
        """Return the piece from `start` to `end`."""
        return Foreign(self._view[start:end])

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
