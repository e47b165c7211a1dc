"""Connections of this process, closed from outside of gRPC, which has no way to close one that it serves.

A socket is found by its peer among the process's descriptors and shut down; gRPC then sees its end, as if the client
had gone. A look at all descriptors costs about a microsecond each, so looks keep their distance: at most a twentieth of
the time goes into them.
"""

import os
import socket
import time
from typing import Final

FIRST_DESCRIPTOR: Final = 3
DESCRIPTORS_OF_ITS_OWN: Final = 256  # of a front end beside its connections: workers, the supervisor, gRPC's own
GAP: Final = 256  # descriptors in a row that are no connection
LOOKS_SHARE: Final = 20  # so much longer than a look took is the pause after it
_MAPPED: Final = "::ffff:"  # an IPv4 address on a socket for both


class Connections:
    """Cuts connections. `cut` counts those that it has."""

    def __init__(self, descriptors: int) -> None:
        """At most `descriptors` are looked at: the process has no more."""
        self._descriptors = descriptors
        self._next_look = 0.0
        self.cut = 0

    def cut_off(self, address: str) -> None:
        """Shut down the connection from `address`, as gRPC writes it; not always, where that is asked very often."""
        started = time.monotonic()
        if started < self._next_look:
            return
        if self._find_and_shut_down(address):
            self.cut += 1
        ended = time.monotonic()
        self._next_look = ended + (ended - started) * LOOKS_SHARE

    def _find_and_shut_down(self, address: str) -> bool:
        unused = 0  # in a row: the kernel gives the lowest free number, so nothing follows a long gap
        for descriptor in range(FIRST_DESCRIPTOR, self._descriptors):
            peer = _peer(descriptor)
            if peer == address and _shut_down(descriptor, address):
                return True
            unused = 0 if peer else unused + 1
            if unused > GAP:
                break
        return False


def _shut_down(descriptor: int, address: str) -> bool:
    """Shut the connection down, through a descriptor of our own: the other may be somebody else's by now."""
    try:
        own = os.dup(descriptor)
    except OSError:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=own) as connection:
        if _peer(own) != address:
            return False
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True


def _peer(descriptor: int) -> str | None:
    """Return the peer of a connected TCP socket as gRPC writes it, None for anything else."""
    try:
        # AF_INET6: room for either kind of address; the kernel says which it is.
        view = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, fileno=descriptor)
    except OSError:
        return None
    try:
        peer = view.getpeername()
    except OSError:
        return None
    finally:
        view.detach()
    if not isinstance(peer, tuple):  # a Unix socket
        return None
    host, port = peer[0], peer[1]
    if ":" not in host:
        return f"ipv4:{host}:{port}"
    if host.startswith(_MAPPED):
        return f"ipv4:{host.removeprefix(_MAPPED)}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"
