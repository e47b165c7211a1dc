"""Both borders of a worker, as sockets and memory: SEQPACKET frames with descriptors, and sealed shared memory.

One datagram is one frame (control_frames.py, batch_frames.py). What arrives is cut off at a limit and refused, never
reassembled. Shared memory carries F_SEAL_SHRINK and F_SEAL_GROW, so that neither side can make the other fault by
resizing it.
"""

import contextlib
import fcntl
import mmap
import os
import select
import socket
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, Self

from mypy_extensions import mypyc_attr

from hermetic.enclave.batch_frames import DATA_FRAME_LIMIT
from hermetic.enclave.control_frames import CONTROL_FRAME_LIMIT
from hermetic.errors import BorderClosedError, BorderError

__all__ = ["Channel", "data_channel", "map_shared_memory", "shared_memory"]

DESCRIPTORS_LIMIT: Final = 4  # descriptors beside one frame
_NOT_RESIZABLE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@mypyc_attr(allow_interpreted_subclasses=True)
class Channel:
    """One end of a SEQPACKET socket pair. Closing is the owner's business; use as a context manager or `close`."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Self:
        """Return the channel over a descriptor that was inherited or received; it owns the descriptor then."""
        try:
            end = socket.socket(fileno=descriptor)
            kind = (end.family, end.type)
        except OSError as error:
            os.close(descriptor)
            raise BorderError(f"channel: wanted a socket, got {error.strerror}") from None
        if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.close()
            raise BorderError(f"channel: wanted a Unix SEQPACKET socket, got {kind}")
        return cls(end)

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends of a new channel."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        return cls(one), cls(other)

    def __enter__(self) -> Self:
        """Return the channel."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def fileno(self) -> int:
        """The descriptor, for `poll`."""
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """How long `send` and `receive` wait before `TimeoutError`; None: for ever; 0: not at all."""
        self._socket.settimeout(seconds)

    def has_frame(self) -> bool:
        """Whether a frame waits to be received; False where the other end has closed.

        Raises `BorderClosedError` where this end has: another thread may have buried the process behind it.
        """
        if (descriptor := self._socket.fileno()) < 0:
            raise BorderClosedError("channel: wanted this end open, got it closed")
        look = select.poll()
        look.register(descriptor, select.POLLIN)
        return any(event & select.POLLIN and not event & select.POLLHUP for _, event in look.poll(0))

    def shut(self) -> None:
        """Have whoever receives here, in another thread, hear of the end now, whoever holds the other end."""
        with contextlib.suppress(OSError):  # the other end has closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; the other end then receives `BorderError`."""
        self._socket.close()

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one frame, with descriptors. `BorderError` where the other end is gone."""
        try:
            if descriptors:
                socket.send_fds(self._socket, [frame], list(descriptors), socket.MSG_NOSIGNAL)
            else:
                self._socket.send(frame, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise BorderClosedError("channel: wanted the other end, got none: it has closed") from None

    def receive(self) -> tuple[bytes, list[int]]:
        """Return the next control frame and its descriptors, which the caller then owns.

        Raises `BorderError` where the other end has closed, or sent more bytes or descriptors than a frame may have.
        """
        try:
            # Not socket.recv_fds: it loses the flag, and the descriptors would be inherited.
            frame, ancillary, flags, _ = self._socket.recvmsg(
                CONTROL_FRAME_LIMIT, socket.CMSG_SPACE(4 * DESCRIPTORS_LIMIT), socket.MSG_CMSG_CLOEXEC
            )
            descriptors = _descriptors_in(ancillary)
        except ConnectionResetError:
            frame, descriptors, flags = b"", [], 0
        too_many = len(descriptors) > DESCRIPTORS_LIMIT
        if not frame or too_many or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            for descriptor in descriptors:
                os.close(descriptor)
            raise BorderError(
                f"channel: wanted a frame of at most {CONTROL_FRAME_LIMIT} bytes and {DESCRIPTORS_LIMIT} descriptors, "
                f"got {'more' if frame else 'the end: the other side has closed'}"
            )
        return frame, descriptors

    def receive_data(self) -> bytes:
        """Return the next data frame.

        Raises `BorderClosedError` where the other end has closed, and `BorderError` for a frame with descriptors, which
        the kernel has closed: there is no room for them. A frame that is too long is left to the decoder, which refuses
        it by its length.
        """
        try:
            frame, _, flags, _ = self._socket.recvmsg(DATA_FRAME_LIMIT + 1)
        except ConnectionResetError:
            frame, flags = b"", 0
        if flags & socket.MSG_CTRUNC:
            raise BorderError("channel: wanted a data frame, got one with descriptors")
        if not frame:
            raise BorderClosedError("channel: wanted a data frame, got the end: the other side has closed")
        return frame


def _descriptors_in(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) // descriptors.itemsize * descriptors.itemsize])
    return list(descriptors)


def data_channel() -> tuple[int, int]:
    """Return the descriptors of a new data channel: the front end's and the worker's. The caller closes both."""
    front_end, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    return front_end.detach(), worker.detach()


def shared_memory(size: int) -> int:
    """Return the descriptor of new shared memory of `size` bytes that can never be resized. The caller closes it."""
    memory = os.memfd_create("hermetic-buffers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _NOT_RESIZABLE | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(memory)
        raise
    return memory


def map_shared_memory(memory: int, size: int) -> mmap.mmap:
    """Map shared memory that another process made; the descriptor stays the caller's.

    Raises `BorderError` unless it is a memfd of `size` bytes that is sealed against resizing.
    """
    try:
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BorderError(f"shared memory: wanted a memfd, got {error.strerror}") from None
    if seals & _NOT_RESIZABLE != _NOT_RESIZABLE:
        raise BorderError(f"shared memory: wanted seals {_NOT_RESIZABLE:#x} against resizing, got {seals:#x}")
    # By seeking: glibc's fstat is a system call that takes a path, which a locked-down process may not make.
    if (got := os.lseek(memory, 0, os.SEEK_END)) != size:
        raise BorderError(f"shared memory: wanted {size} bytes, got {got}")
    try:
        mapped = mmap.mmap(memory, size)
    except (OSError, ValueError) as error:
        raise BorderError(f"shared memory: wanted to map {size} bytes, got {error}") from None
    mapped.madvise(mmap.MADV_DONTDUMP)
    return mapped
