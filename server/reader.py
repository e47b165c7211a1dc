"""Reads what workers and the supervisor send, on the owner's thread; a helper thread only rings the owner's bell.

The owner cannot wait for gRPC and for sockets at once. It waits for gRPC; before it does, it arms the helper, which
waits for the sockets and, once, rings. Where an answer is expected any moment and nothing else is to be done, the owner
waits for the sockets itself (`read` with a time): that saves two changes of threads, which cost more than a small
model. A side that sends faster than its frames are handled waits in its socket: the kernel bounds it.
"""

import contextlib
import logging
import select
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from hermetic.enclave.channel import Channel
from hermetic.errors import BorderError

FRAMES_PER_TURN: Final = 64  # frames of one side that are handled before the others' turn
_EVENTS: Final = 64  # sockets looked at per turn
_WAIT_S: Final = 0.5  # seconds until the helper looks whether it is to stop
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


class Reader:
    """All sockets of this process but gRPC's. Everything but the helper's own loop is for the owner's thread."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        """`post` is the transport's; channels must not block."""
        self._post = post
        self._sockets = select.epoll()
        self._bell = select.epoll()
        self._bell.register(self._sockets.fileno(), 0)
        self._armed = False
        self._sources: dict[int, Source[Any]] = {}
        self._thread = threading.Thread(target=self._ring, name="reader", daemon=True)
        self._stopping = False

    def start(self) -> None:
        """Start the helper."""
        self._thread.start()

    def watch(self, source: Source[Any]) -> None:
        """Read `source` from now on, until it is lost or forgotten."""
        descriptor = source.channel.fileno()
        self._sources[descriptor] = source
        self._sockets.register(descriptor, select.EPOLLIN)

    def forget(self, channel: Channel) -> None:
        """Read `channel` no more; it may be closed then."""
        descriptor = channel.fileno()
        self._sources.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):
            self._sockets.unregister(descriptor)

    def read(self, wait_s: float = 0.0) -> bool:
        """Handle what has come, or comes within `wait_s` seconds; whether there was anything."""
        if wait_s and self._armed:  # else the bell would be rung for what is read here
            self._armed = False
            self._bell.modify(self._sockets.fileno(), 0)
        ready = self._sockets.poll(wait_s, _EVENTS)
        for descriptor, _ in ready:
            source = self._sources.get(descriptor)
            if source is not None:  # else it was forgotten while another one's frame was handled
                self._read(descriptor, source)
        return bool(ready)

    def arm(self) -> None:
        """Have the helper ring as soon as there is something to read."""
        if not self._armed:
            self._armed = True
            self._bell.modify(self._sockets.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def stop(self) -> None:
        """End the helper and wait for it. It looks up within `_WAIT_S`."""
        self._stopping = True
        self._thread.join()
        self._bell.close()
        self._sockets.close()

    def _read(self, descriptor: int, source: Source[Any]) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = source.receive()
            except BlockingIOError:
                return
            except (BorderError, OSError) as error:
                self._sources.pop(descriptor, None)
                self._sockets.unregister(descriptor)
                self._guard(source.lost, error)
                return
            self._guard(source.deliver, frame)
            if self._sources.get(descriptor) is not source:  # what it said was its end
                return

    def _guard(self, action: Callable[[FrameT], None], what: FrameT) -> None:
        try:
            action(what)
        except Exception:  # noqa: BLE001 - one side's frame may not end the loop
            _log.exception("reader")

    def _rung(self) -> None:
        self._armed = False
        self.read()

    def _ring(self) -> None:
        while not self._stopping:
            if self._bell.poll(_WAIT_S):
                self._post(self._rung)
