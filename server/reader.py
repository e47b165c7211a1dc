"""Reads what workers and the supervisor send, when the transport's loop finds that something has come.

One frame of each side in a turn of the loop: there is almost always one, and asking for a second costs much of a turn.
A side that sends faster than its frames are handled waits in its socket: the kernel bounds it, and it starves nobody.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from hermetic.enclave.channel import Channel
from hermetic.errors import BorderError

HEARD_AT_ONCE: Final = 1000  # frames of one side in one turn, where they are wanted before all else
_log: Final = logging.getLogger(__name__)

FrameT = TypeVar("FrameT")


class Source(Generic[FrameT]):
    """One socket: `receive` reads a frame, `deliver` takes it; `lost` is told, once, of the end."""

    def __init__(
        self,
        channel: Channel,
        receive: Callable[[], FrameT],
        deliver: Callable[[FrameT], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self.channel = channel
        self.receive = receive
        self.deliver = deliver
        self.lost = lost


class Watcher(Protocol):
    """The transport, as the reader sees it."""

    def watch(self, descriptor: int, readable: Callable[[], None]) -> None:
        """Have `readable` called whenever `descriptor` has something to read."""

    def forget(self, descriptor: int) -> None:
        """Watch it no more."""


class Reader:
    """All sockets of this process but the clients'. Owner's thread only."""

    def __init__(self, watcher: Watcher) -> None:
        """Channels must not block."""
        self._watcher = watcher
        self._sources: dict[int, Source[Any]] = {}

    def watch(self, source: Source[Any]) -> None:
        """Read `source` from now on, until it is lost or forgotten."""
        descriptor = source.channel.fileno()
        self._sources[descriptor] = source
        self._watcher.watch(descriptor, lambda: self._look(descriptor, source))

    def forget(self, channel: Channel) -> None:
        """Read `channel` no more; it may be closed then."""
        descriptor = channel.fileno()
        self._sources.pop(descriptor, None)
        self._watcher.forget(descriptor)

    def hear_out(self, channel: Channel) -> None:
        """Deliver what has come on `channel` up to now, before whatever else has."""
        descriptor = channel.fileno()
        source = self._sources.get(descriptor)
        for _ in range(HEARD_AT_ONCE):
            if source is None or not self._read(descriptor, source):
                return

    def _look(self, descriptor: int, source: Source[Any]) -> None:
        self._read(descriptor, source)

    def _read(self, descriptor: int, source: Source[Any]) -> bool:
        """Whether there was a frame, and it was delivered."""
        if self._sources.get(descriptor) is not source:  # forgotten in this turn
            return False
        try:
            frame = source.receive()
        except BlockingIOError:
            return False
        except (BorderError, OSError) as error:
            self._sources.pop(descriptor, None)
            self._watcher.forget(descriptor)
            self._guard(source.lost, error)
            return False
        self._guard(source.deliver, frame)
        return True

    def _guard(self, action: Callable[[FrameT], None], what: FrameT) -> None:
        try:
            action(what)
        except Exception:  # noqa: BLE001 - one side's frame may not end the loop
            _log.exception("reader")
