"""Connections cut from outside of gRPC: the right one, and nothing else."""

import os
import socket

import pytest

from hermetic.server.connections import Connections

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("family", "host", "text"),
    [
        (socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::1", "ipv6:%5B::1%5D:{}"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "ipv4:127.0.0.1:{}"),
    ],
)
def test_the_connection_from_an_address(family: int, host: str, text: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip("no such address here")
        listener.listen()
        clients = [socket.create_connection((host, listener.getsockname()[1])) for _ in range(3)]
        served = [listener.accept()[0] for _ in clients]
        other, unix = socket.socketpair()
        connections = Connections(4096)
        connections.cut_off(text.format(clients[1].getsockname()[1]))
        assert connections.cut == 1
        assert served[1].recv(1) == clients[1].recv(1) == b""
        for at in (0, 2):
            clients[at].send(b"x")
            assert served[at].recv(1) == b"x"
        other.send(b"x")
        assert unix.recv(1) == b"x"
        for one in (*clients, *served, other, unix):
            one.close()


def test_looks_keep_their_distance() -> None:
    connections = Connections(os.sysconf("SC_OPEN_MAX"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(50)]
        served = [listener.accept()[0] for _ in clients]
        for client in clients:
            connections.cut_off(f"ipv4:127.0.0.1:{client.getsockname()[1]}")
        assert 1 <= connections.cut < len(clients)
        for one in (*clients, *served):
            one.close()
