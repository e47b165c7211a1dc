"""The TCP sockets of processes, as the kernel lists them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTEN = 0x0A


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One socket; `remote` is None where it listens."""

    pid: int
    local: tuple[str, int]
    remote: tuple[str, int] | None


def tcp_sockets(pids: Iterable[int]) -> list[TcpSocket]:
    return [found for pid in pids for found in _of(pid)]


def listeners(pids: Iterable[int]) -> list[TcpSocket]:
    return [found for found in tcp_sockets(pids) if found.remote is None]


def _of(pid: int) -> Iterator[TcpSocket]:
    inodes = set(_inodes(pid))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            if rest[5] in inodes:
                yield TcpSocket(pid, _address(local), None if int(state, 16) == _LISTEN else _address(remote))


def _inodes(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            yield target[len("socket:[") : -1]


def _address(text: str) -> tuple[str, int]:
    """`0100007F:1F90` is 127.0.0.1:8080: words of the host's byte order."""
    host, port = text.split(":")
    packed = b"".join(bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8))
    address = ip_address(packed)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = IPv4Address(address.ipv4_mapped)
    return str(address), int(port, 16)
