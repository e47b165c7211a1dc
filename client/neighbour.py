"""Whose process is at the other end of a connection on this machine: the kernel says, not the process.

    Unix socket   SO_PEERCRED (unix(7))
    loopback      the peer's own row in the kernel's tables of TCP sockets (proc_pid_net(5)), by both addresses

Only a connection that stands counts: the row of a socket whose process has closed it names the superuser.
"""

import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from hermetic.errors import AccessDeniedError, ConfigurationError

__all__ = ["check_neighbour", "demand_tables", "user_of"]

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED: Final = "01"
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group
_LOCAL, _REMOTE, _STATE, _USER = 1, 2, 3, 7  # columns of a row

Address = tuple[str, int]


def demand_tables(tables: tuple[Path, ...] = TABLES) -> None:
    """Raise `ConfigurationError` where the kernel does not say whose a loopback connection is."""
    if not any(os.access(table, os.R_OK) for table in tables):
        raise ConfigurationError(
            f"--listen: expected a kernel that says whose a connection is ({tables[0]}), got none: listen on unix:PATH"
        )


def check_neighbour(connection: socket.socket, users: frozenset[int]) -> None:
    """Raise `AccessDeniedError` unless one of `users` (their numbers) holds the other end."""
    user = user_of(connection)
    if user not in users:
        got = "nobody that the kernel names" if user is None else f"user {user}"
        wanted = ", ".join(map(str, sorted(users)))
        raise AccessDeniedError(f"local connection: expected one of the users {wanted}, got one of {got}")


def user_of(connection: socket.socket, tables: tuple[Path, ...] = TABLES) -> int | None:
    """The number of the user whose process holds the other end; None where the kernel names none."""
    if connection.family == socket.AF_UNIX:
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(packed)[1])
    try:
        theirs, ours = connection.getpeername()[:2], connection.getsockname()[:2]
    except OSError:  # it is gone
        return None
    ends = {(_written(theirs, mapped=one), _written(ours, mapped=one)) for one in (False, True)}
    for table in tables:
        for row in _rows(table):
            if (row[_LOCAL], row[_REMOTE]) in ends and row[_STATE] == ESTABLISHED:
                return int(row[_USER])
    return None


def _rows(table: Path) -> list[list[str]]:
    try:
        lines = table.read_text("ascii").splitlines()[1:]
    except OSError:  # a kernel without IPv6
        return []
    return [line.split() for line in lines]


def _written(address: Address, *, mapped: bool) -> str:
    """An address and port as the tables have them; with `mapped`, an IPv4 one as a socket of IPv6 has it."""
    ip = ipaddress.ip_address(address[0])
    packed = ip.packed
    if mapped and ip.version == 4:  # noqa: PLR2004 - of IP
        packed = ipaddress.ip_address(f"::ffff:{ip}").packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
