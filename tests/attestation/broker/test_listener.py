"""Clients that do not behave: silent, slow, half a request; and two at once."""

import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from email.utils import parsedate_to_datetime

import pytest

from tests.attestation.broker.independent_guest import IndependentGuest
from tests.attestation.broker.world import InThread, World

REQUEST = b"POST /kbs/v0/auth HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"


def connect(broker: InThread) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", broker.running.listeners.ports[0]), timeout=60)
    return broker.world.context("host").wrap_socket(raw, server_hostname="localhost")


def ends(tls: ssl.SSLSocket, more: bytes) -> bool:
    """Whether the broker has nothing to do with who sends `more` a hundred times."""
    try:
        for _ in range(100):
            tls.sendall(more)
        answer = tls.recv(12)
    except (ConnectionError, ssl.SSLError):
        return True
    return answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_a_connection_that_says_nothing_ends(world: World) -> None:
    world.write_config(change={"[limits]": "[limits]\nconnection_s = 1"})
    with world.start() as broker:
        said = (b"", b"POST /kbs", REQUEST, REQUEST + b"{")
        with ExitStack() as stack:
            silent = [stack.enter_context(connect(broker)) for _ in said]
            for tls, some in zip(silent, said, strict=True):
                tls.sendall(some)
            assert [tls.recv(1) for tls in silent] == [b""] * len(said)


def test_the_broker_stops_while_a_client_says_nothing(world: World) -> None:
    world.write_config(change={"[limits]": "[limits]\ndrain_s = 1"})
    with world.start() as broker:
        silent = connect(broker)
        silent.sendall(REQUEST)
    with silent:
        while silent.recv(4096):
            pass  # told so or not, the connection ends


def test_of_two_attempts_at_once_one_wins(world: World) -> None:
    """The nonce is taken before anything is checked, so the same evidence cannot be verified twice."""
    with world.start() as broker, broker.http() as first:
        guest = IndependentGuest(first)
        guest.auth()
        content = json.dumps(guest.body()).encode()
        barrier = threading.Barrier(8)

        def attempt(_: int) -> tuple[int, str]:
            with broker.http() as http:
                http.get("/healthz")
                barrier.wait(60)
                response = http.post("/kbs/v0/attest", content=content, headers={"cookie": guest.cookie})
                return response.status_code, response.text

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(attempt, range(8)))
        tokens = {text.rpartition(".")[0] for status, text in answers if status == 200}
        assert len(tokens) == 1
        assert all("one attempt at a time" in text for status, text in answers if status != 200)
    assert world.outcomes("broker.attest") == ["genuine"]


def test_a_request_line_that_is_too_long(world: World) -> None:
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert tls.recv(12).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /kbs/v0/auth HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
    ],
    ids=["one header", "many headers", "a trailer"],
)
def test_a_head_without_end_is_not_kept(world: World, begun: bytes) -> None:
    """The parser keeps a header until it is whole; what is refused is refused long before a connection's time is up."""
    more = b"x: y\r\n" * 2000 if begun.endswith(b"t\r\n") else b"a" * 12_000
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(begun)
        assert ends(tls, more)


def test_cookies_end_with_their_session(world: World) -> None:
    with world.start() as broker, broker.http() as http:
        guest = IndependentGuest(http)
        header = guest.auth().headers["set-cookie"]
        expires = parsedate_to_datetime(header.partition("Expires=")[2])
        assert expires == world.clock.now + timedelta(seconds=300)
