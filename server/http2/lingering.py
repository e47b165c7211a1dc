"""Connections that are closed, and whose sockets are not: what clients still send is read and thrown away for a while.

A socket that is closed with something unread takes back what was not yet delivered: the client would not read our last
word.
"""

import contextlib
import select
from typing import Final

from hermetic.server.http2.connection import READS, Connection
from hermetic.server.http2.tls import Place

LINGER_S: Final = 1.0  # seconds for a client to read what we said before we closed


class Lingering:
    """Those of one loop, by descriptor. Moments are of time.monotonic()."""

    def __init__(self, epoll: select.epoll, waste: Place) -> None:
        """`waste`: where what comes may be read to."""
        self._epoll, self._waste = epoll, waste
        self._until: dict[int, tuple[Connection, float]] = {}

    def __len__(self) -> int:
        """Return how many descriptors they have."""
        return len(self._until)

    def __contains__(self, descriptor: int) -> bool:
        """Whether it is one of theirs."""
        return descriptor in self._until

    def add(self, connection: Connection, now: float) -> None:
        """Keep a connection's socket for a while."""
        descriptor = connection.socket.fileno()
        self._until[descriptor] = (connection, now + LINGER_S)
        with contextlib.suppress(OSError):
            self._epoll.modify(descriptor, READS)

    def throw_away(self, descriptor: int) -> None:
        """Read what has come; close where the client has, too."""
        connection, _ = self._until[descriptor]
        try:
            if connection.socket.recv_into(self._waste.buffer):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(descriptor)

    def expire(self, now: float) -> None:
        """Close those that have had their time."""
        for descriptor in [number for number, (_, until) in self._until.items() if until <= now]:
            self._close(descriptor)

    def close(self) -> None:
        """Close all."""
        for descriptor in list(self._until):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        connection, _ = self._until.pop(descriptor)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)
        connection.socket.close()
