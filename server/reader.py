"""The one helper thread: waits for frames from workers and the supervisor, and rings the owner's bell.

It decides nothing and touches no state but its own; every frame becomes an action that the owner's thread runs. A side
that sends faster than its frames are handled is cut off: an honest worker has at most a few batches to answer.
"""

import contextlib
import logging
import select
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from hermetic.enclave.channel import Channel
from hermetic.errors import BorderError

FRAMES_WAITING: Final = 1024  # frames of one side that the owner has not handled yet
_EVENTS: Final = 64  # sockets looked at per wake-up
_log: Final = logging.getLogger(__name__)

FrameT = TypeVar("FrameT")


class Source(Generic[FrameT]):
    """One socket: `receive` reads a frame on the helper thread, `deliver` and `lost` run on the owner's."""

    def __init__(
        self,
        channel: Channel,
        receive: Callable[[], FrameT],
        deliver: Callable[[FrameT], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self.channel = channel
        self._receive = receive
        self._deliver = deliver
        self._lost = lost
        self._read = 0  # written by the helper only
        self._handled = 0  # written by the owner only

    def read(self, post: Callable[[Callable[[], None]], None]) -> bool:
        """Read one frame and post it; False where this was the last."""
        try:
            frame = self._receive()
            if self._read - self._handled > FRAMES_WAITING:
                raise BorderError(f"channel: wanted at most {FRAMES_WAITING} frames waiting, got more")
        except BlockingIOError:  # woken for nothing
            return True
        except (BorderError, OSError) as error:
            lost = error
            post(lambda: self._lost(lost))
            return False
        self._read += 1
        post(lambda: self._hand_over(frame))
        return True

    def _hand_over(self, frame: FrameT) -> None:
        self._handled += 1
        self._deliver(frame)


class Reader:
    """Runs the helper thread. `watch` and `forget` are for the owner; channels must not block."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        """`post` is the transport's."""
        self._post = post
        self._epoll = select.epoll()
        self._sources: dict[int, Source[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._stopping = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, source: Source[Any]) -> None:
        """Read `source` from now on, until it is lost or forgotten."""
        descriptor = source.channel.fileno()
        self._sources[descriptor] = source
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, channel: Channel) -> None:
        """Read `channel` no more; it may be closed then."""
        descriptor = channel.fileno()
        self._sources.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)

    def stop(self) -> None:
        """End the thread and wait for it. It looks up within `_WAIT_S`."""
        self._stopping = True
        self._thread.join()
        self._epoll.close()

    def _run(self) -> None:
        while not self._stopping:
            for descriptor, _ in self._epoll.poll(_WAIT_S, _EVENTS):
                source = self._sources.get(descriptor)
                if source is None:
                    continue
                try:
                    if not source.read(self._post):
                        self._epoll.unregister(descriptor)
                except (OSError, ValueError) as error:  # forgotten in the meantime
                    _log.debug("reader: %s", error)


_WAIT_S: Final = 0.5  # seconds until the thread looks whether it is to stop
