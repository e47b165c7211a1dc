"""Attempts on files and on the network. Each returns its evidence, and raises where it was refused."""

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path

from tests.enclave.isolation.surroundings import Surroundings

MSG_FASTOPEN = 0x20000000
SO_ATTACH_FILTER = 26
AF_NETLINK, AF_VSOCK, AF_XDP = 16, 40, 44
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
OTHER_FAMILIES = [
    number
    for number in range(3, 47)
    if number not in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET, AF_NETLINK, AF_VSOCK, AF_XDP)
]
"""Those that no other attempt opens, by number."""


def _opened(path: str, flags: int = os.O_RDONLY) -> str:
    descriptor = os.open(path, flags)
    os.close(descriptor)
    return f"opened {path}"


def open_file(_around: Surroundings) -> str:
    return _opened("/etc/passwd")


def stat_file(_around: Surroundings) -> str:
    return f"{Path('/etc/passwd').stat().st_size} bytes"


def list_folder(_around: Surroundings) -> str:
    """A room with a file of that folder in it has the folder too, with nothing else."""
    names = [path.name for path in Path("/etc").iterdir()]
    if "passwd" not in names:
        raise OSError(errno.ENOENT, "nothing of the host's")
    return f"{len(names)} names"


def write_file(around: Surroundings) -> str:
    (around.folder / f"out-{os.getpid()}").write_bytes(b"out")
    return "wrote 3 bytes"


def own_memory(_around: Surroundings) -> str:
    return _opened("/proc/self/mem", os.O_RDWR)


def parents_memory(around: Surroundings) -> str:
    return _opened(f"/proc/{around.parent}/mem")


def connect_tcp(around: Surroundings) -> str:
    with socket.socket() as end:
        end.connect(("127.0.0.1", around.tcp))
    return "connected"


def connect_tcp6(around: Surroundings) -> str:
    with socket.socket(socket.AF_INET6) as end:
        end.connect(("::1", around.tcp6))
    return "connected"


def fast_open(around: Surroundings) -> str:
    """A front end's own listening socket, shut down, is fit for it: no connect(2) is made."""
    end = around.listener or socket.socket()
    if around.listener:
        end.shutdown(socket.SHUT_RDWR)
    end.sendto(b"out", MSG_FASTOPEN, ("127.0.0.1", around.tcp))
    return "sent 3 bytes"


def send_udp(around: Surroundings) -> str:
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.sendto(b"out", ("127.0.0.1", around.tcp))
    return "sent 3 bytes"


def listen_tcp(_around: Surroundings) -> str:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        end.listen()
        return f"port {end.getsockname()[1]}"


def connect_unix(around: Surroundings) -> str:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(around.unix)
    return "connected"


def connect_abstract(around: Surroundings) -> str:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(around.abstract)
    return "connected"


def listen_vsock(_around: Surroundings) -> str:
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as end:
        end.bind((0xFFFFFFFF, 0xFFFFFFFF))  # any context, any port
        end.listen()
    return "listens"


def netlink(_around: Surroundings) -> str:
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, 0) as end:
        end.bind((0, 0))
    return "a socket"


def raw_packets(_around: Surroundings) -> str:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "a socket"


def xdp(_around: Surroundings) -> str:
    socket.socket(AF_XDP, socket.SOCK_RAW).close()
    return "a socket"


def any_family(_around: Surroundings) -> str:
    """Each of them. Where one reached the kernel, which did not have it, that is said and not that others did not."""
    answers = {code for family in OTHER_FAMILIES for code in refusals(family)}
    if 0 not in answers:
        code = errno.EAFNOSUPPORT if errno.EAFNOSUPPORT in answers else min(answers)
        raise OSError(code, os.strerror(code))
    return f"families {[family for family in OTHER_FAMILIES if 0 in refusals(family)]}"


def refusals(family: int) -> set[int]:
    """What the kernel says to a socket of each kind of a family: error numbers, 0 where there is one."""
    answers = set()
    for kind in _KINDS:
        try:
            socket.socket(family, kind).close()
        except OSError as refused:
            answers.add(refused.errno or -1)
        else:
            answers.add(0)
    return answers


def socket_filter(around: Surroundings) -> str:
    accept_all = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF), 8)
    with socket.socket(fileno=os.dup(around.letters)) as end:
        end.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(accept_all)))
    return "attached"


SUITE = (
    open_file, stat_file, list_folder, write_file, own_memory, parents_memory, connect_tcp, connect_tcp6, fast_open,
    send_udp, listen_tcp, connect_unix, connect_abstract, listen_vsock, netlink, raw_packets, xdp, any_family,
    socket_filter,
)  # fmt: skip
