"""A turn of the loop is short, however many have something for it: others wait for its end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from hermetic.server.http2 import server as module
from hermetic.server.http2.connection import READ_BYTES, Connection
from hermetic.server.http2.server import LEAST_READ_BYTES, TURN_BYTES, Http2Server
from tests.server.http2.serving import Serving
from tests.server.http2.wire import TIMEOUT_S, Peer

CROWD = 20


@contextmanager
def held(serving: Serving) -> Iterator[None]:
    """The loop stands still meanwhile, so that what is sent waits for one turn."""
    stands, goes_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        assert goes_on.wait(TIMEOUT_S)

    serving.server.post(stand)
    assert stands.wait(TIMEOUT_S)
    try:
        yield
    finally:
        goes_on.set()


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each read of a connection may have taken, in order."""
    noted: list[int] = []
    real = Connection.readable

    def readable(self: Connection, most: int = READ_BYTES) -> None:
        noted.append(most)
        real(self, most)

    monkeypatch.setattr(Connection, "readable", readable)
    return noted


def test_a_crowd_shares_the_bytes_of_a_turn(shares: list[int]) -> None:
    with Serving() as serving, ExitStack() as stack:
        peers = [stack.enter_context(serving.peer()) for _ in range(CROWD)]
        for peer in peers:
            peer.settle()
        shares.clear()
        data = b"x" * (2 * LEAST_READ_BYTES)
        with held(serving):
            streams = [peer.call("/test/Echo", data) for peer in peers]
        answers = [peer.answer(stream) for peer, stream in zip(peers, streams, strict=True)]
    assert all((answer.status, answer.messages) == (0, [data]) for answer in answers)
    assert shares[:CROWD] == [max(LEAST_READ_BYTES, TURN_BYTES // CROWD)] * CROWD


def test_who_is_alone_gets_the_turn(shares: list[int]) -> None:
    with Serving() as serving, serving.peer() as peer:
        peer.settle()
        shares.clear()
        peer.echo(b"x" * LEAST_READ_BYTES)
    assert max(shares) == READ_BYTES


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each look at newcomers, how many were accepted."""
    noted: list[int] = []
    look, accept = Http2Server._look_at_newcomers, Http2Server._accept_connection

    def looking(self: Http2Server) -> None:
        noted.append(0)
        look(self)

    def accepting(self: Http2Server) -> bool:
        noted[-1] += 1
        return accept(self)

    monkeypatch.setattr(Http2Server, "_look_at_newcomers", looking)
    monkeypatch.setattr(Http2Server, "_accept_connection", accepting)
    return noted


@pytest.mark.parametrize(("seconds", "most"), [(1e-9, 1), (3600.0, CROWD)])
def test_newcomers_get_a_moment_of_a_turn(
    monkeypatch: pytest.MonkeyPatch, accepted: list[int], seconds: float, most: int
) -> None:
    """Each is served, whether a look has time for one or for all of them."""
    monkeypatch.setattr(module, "NEWCOMERS_S", seconds)
    with Serving() as serving, ExitStack() as stack:
        with held(serving):
            address = ("127.0.0.1", serving.port)
            sockets = [stack.enter_context(socket.create_connection(address, TIMEOUT_S)) for _ in range(CROWD)]
        for one in sockets:
            Peer(serving.port, connection=one).echo()
    assert sum(accepted) >= CROWD
    assert max(accepted) == most
