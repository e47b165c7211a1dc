"""Whose a local connection is, by the kernel: of real sockets, in both families, and of a process of another user."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from hermetic.client.neighbour import check_neighbour, demand_tables, user_of
from hermetic.errors import AccessDeniedError, ConfigurationError

ANOTHER = 54321
COME_IN = """
import os, socket, sys
os.setuid({user})
with socket.socket() as own:  # whose it is, is who makes it
    own.connect(("127.0.0.1", {port}))
    own.sendall(b"secret")
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(60)
        yield made


def pair(family: socket.AddressFamily, listener: socket.socket, host: str) -> tuple[socket.socket, socket.socket]:
    client = socket.socket(family)
    client.connect((host, listener.getsockname()[1]))
    return client, listener.accept()[0]


def test_a_connection_of_our_own(listener: socket.socket) -> None:
    client, accepted = pair(socket.AF_INET, listener, "127.0.0.1")
    with client, accepted:
        assert user_of(accepted) == os.geteuid()
        check_neighbour(accepted, frozenset({os.geteuid()}))
        with pytest.raises(AccessDeniedError, match=f"expected one of the users {ANOTHER}, got one of user"):
            check_neighbour(accepted, frozenset({ANOTHER}))


def test_a_socket_of_ipv6_that_speaks_ipv4(listener: socket.socket) -> None:
    """As programs on the JVM have them."""
    try:
        client, accepted = pair(socket.AF_INET6, listener, "::ffff:127.0.0.1")
    except OSError:
        pytest.skip("needs IPv6")
    with client, accepted:
        assert user_of(accepted) == os.geteuid()


def test_ipv6() -> None:
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            pytest.skip("needs IPv6")
        client, accepted = pair(socket.AF_INET6, listener, "::1")
        with client, accepted:
            assert user_of(accepted) == os.geteuid()


def test_a_unix_socket(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener, closing(socket.socket(socket.AF_UNIX)) as client:
        listener.bind(str(tmp_path / "door"))
        listener.listen()
        client.connect(str(tmp_path / "door"))
        with listener.accept()[0] as accepted:
            assert user_of(accepted) == os.geteuid()


def test_who_has_gone_is_nobody(listener: socket.socket) -> None:
    """The kernel names the superuser for a socket that nobody holds any more: who sends and goes would be that one."""
    client, accepted = pair(socket.AF_INET, listener, "127.0.0.1")
    client.sendall(b"secret")
    client.close()
    with accepted:
        assert accepted.recv(6) == b"secret"
        while accepted.recv(1):
            pass
        assert user_of(accepted) is None
        with pytest.raises(AccessDeniedError, match="got one of nobody that the kernel names"):
            check_neighbour(accepted, frozenset({0, os.geteuid()}))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_process_of_another_user(listener: socket.socket) -> None:
    command = COME_IN.format(user=ANOTHER, port=listener.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        accepted, _ = listener.accept()
        with accepted:
            assert user_of(accepted) == ANOTHER
            with pytest.raises(AccessDeniedError, match=f"got one of user {ANOTHER}"):
                check_neighbour(accepted, frozenset({os.geteuid()}))
            process.communicate(timeout=60)


def test_a_kernel_that_does_not_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unix:PATH"):
        demand_tables((tmp_path / "none",))
