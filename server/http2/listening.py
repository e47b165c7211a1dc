"""The socket that listens, and addresses as gRPC writes them."""

import socket
from typing import Final

from hermetic.errors import ConfigurationError

BACKLOG: Final = 1024  # connections that the kernel keeps for us
_MAPPED: Final = "::ffff:"  # an IPv4 address on a socket for both


def listen(address: str, *, reuse_port: bool) -> socket.socket:
    """Return a socket that listens on `address` (host:port); `ConfigurationError` where that cannot be had.

    `reuse_port`: other processes of the same uid may listen there too, and the kernel shares connections out.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]").encode(), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, place = found[0]
        own = socket.socket(family, kind, protocol)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"listen: wanted host:port, got {address}: {error}") from None
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        own.bind(place)
        own.listen(BACKLOG)
        own.settimeout(0)
    except OSError as error:
        own.close()
        raise ConfigurationError(f"listen: wanted {address}, got a refusal: {error}") from None
    return own


def peer_address(peer: tuple[object, ...]) -> str:
    """Return an address as gRPC writes it."""
    host, port = str(peer[0]), peer[1]
    if ":" not in host:
        return f"ipv4:{host}:{port}"
    if host.startswith(_MAPPED):
        return f"ipv4:{host.removeprefix(_MAPPED)}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"
