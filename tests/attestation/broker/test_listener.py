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
from OpenSSL import SSL

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


def test_one_client_does_not_hold_all_connections(world: World) -> None:
    """Each listener has room for so many; who holds them all, saying nothing, would keep every other guest out."""

    def others_answer(broker: InThread, holders: int) -> int:
        with ExitStack() as stack:
            for _ in range(holders):
                stack.enter_context(connect(broker))
            with broker.http("other-host") as http:
                return http.get("/healthz").status_code

    world.write_config(change={"[limits]": "[limits]\nconnections = 4\nconnections_per_client = 9"})
    with world.start() as broker:
        assert others_answer(broker, 4) == 503  # as it is without the bound
    world.write_config(change={"[limits]": "[limits]\nconnections = 4\nconnections_per_client = 2"})
    with world.start() as broker:
        assert others_answer(broker, 4) == 200
        with broker.http() as http:
            assert http.get("/healthz").status_code == 200  # those that have ended count no more


def test_who_never_shakes_hands_is_cut_off(world: World) -> None:
    world.write_config(change={"[limits]": "[limits]\nhandshake_s = 1"})
    with (
        world.start() as broker,
        socket.create_connection(("127.0.0.1", broker.running.listeners.ports[0]), timeout=20) as plain,
    ):
        assert plain.recv(1) == b""


def test_requests_sent_ahead_are_bounded(world: World) -> None:
    """One read can hold thousands, each of which would take memory until it has its turn."""
    one = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(one * 4)
        answers = b""
        while answers.count(b"200 OK") < 4:
            answers += tls.recv(65536)
        tls.sendall(one * 1000)
        answers = b""
        while piece := tls.recv(65536):
            answers += piece
        assert answers.count(b"200 OK") < 20


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"content-length: +5\r\n",
        b"content-length : 5\r\n",
        b"x: a\r\n b\r\ncontent-length: 5\r\n y\r\n",
    ],
    ids=["length and chunks", "two lengths", "unknown coding", "sign", "blank", "folded"],
)
def test_where_a_request_ends_is_not_a_matter_of_opinion(world: World, head: bytes) -> None:
    """Two readings of one stream of bytes would let one client's bytes be another's request behind a shared hop."""
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(
            b"POST /kbs/v0/auth HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n"
        )
        assert tls.recv(12).startswith(b"HTTP/1.1 400")


def test_a_short_request_is_short(world: World) -> None:
    """What is read in the event loop is small: a challenge as long as evidence would hold everybody up."""
    padded = json.dumps({"version": "0.4.0", "tee": "sample", "extra-params": {"x": "y" * 70_000}})
    with world.start() as broker, broker.http() as http:
        assert http.post("/kbs/v0/auth", content=padded).status_code == 413
        assert http.post("/hermetic/v1/leases/renew", content=padded).status_code == 413


def test_cookies_end_with_their_session(world: World) -> None:
    with world.start() as broker, broker.http() as http:
        guest = IndependentGuest(http)
        header = guest.auth().headers["set-cookie"]
        expires = parsedate_to_datetime(header.partition("Expires=")[2])
        assert expires == world.clock.now + timedelta(seconds=300)


HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEALTHY = b'{"status":"ok"}'


def test_an_answer_is_one_record(world: World) -> None:
    """Head and body are sent together: a read gives what one record holds."""
    with world.start() as broker, connect(broker) as tls:
        for _ in range(2):
            tls.sendall(HEALTHZ)
            answer = tls.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(HEALTHY)


def test_answers_to_requests_that_come_together_come_in_order(world: World) -> None:
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(HEALTHZ + b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" + HEALTHZ)
        answers = b""
        while answers.count(HEALTHY) < 2:
            answers += tls.recv(65536)
        first, second, third = answers.split(b"HTTP/1.1 200 ")[1:]
        assert [HEALTHY in answer for answer in (first, second, third)] == [True, False, True]


def test_a_client_that_asks_whether_it_may_send_a_body_is_told_at_once(world: World) -> None:
    head = b"POST /kbs/v0/auth HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(head)
        assert tls.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        tls.sendall(b"{}")
        assert tls.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_what_is_no_request_is_told_so(world: World) -> None:
    """An answer is sent whole also where the connection is closed behind it."""
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(b"NOT HTTP\r\n\r\n")
        assert tls.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_handshake_in_small_bites_has_no_more_time(world: World) -> None:
    """Each byte is progress, and none buys time."""
    world.write_config(change={"[limits]": "[limits]\nhandshake_s = 1"})
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = world.context("host").wrap_bio(into, out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = out.read()
    with (
        world.start() as broker,
        socket.create_connection(("127.0.0.1", broker.running.listeners.ports[0]), timeout=0.1) as plain,
    ):
        for byte in hello:
            try:
                plain.sendall(bytes([byte]))
                if not plain.recv(1):
                    break
            except TimeoutError:
                pass
            except ConnectionError:
                break
        else:
            pytest.fail("it has all the time it wants")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_who_speaks_no_tls_or_leaves_in_the_middle_leaves_nothing_behind(world: World, sent: bytes) -> None:
    with world.start() as broker:
        front = broker.running.listeners._servers[0].front
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", broker.running.listeners.ports[0]), timeout=20) as plain:
                plain.sendall(sent)
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(1000):
                    pass
        with broker.http() as http:
            assert http.get("/healthz").status_code == 200
        assert len(front.open) <= 1
        assert front.held.total() <= 1


def test_a_farewell_right_behind_a_request_is_answered_first(world: World) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate_file(str(world.folder / "host.pem"))
    context.use_privatekey_file(str(world.folder / "host.key"))
    with (
        world.start() as broker,
        socket.create_connection(("127.0.0.1", broker.running.listeners.ports[0])) as raw,
    ):
        raw.settimeout(None)
        client = SSL.Connection(context, raw)
        client.set_connect_state()
        client.sendall(HEALTHZ)
        client.shutdown()
        assert client.recv(65536).endswith(HEALTHY)
        with pytest.raises(SSL.ZeroReturnError):
            client.recv(1)


def test_an_answer_is_the_last_word_also_where_more_comes(world: World) -> None:
    """What nobody reads has the kernel send a reset, which may overtake the answer."""
    with world.start() as broker, connect(broker) as tls:
        tls.sendall(b"NOT HTTP\r\n\r\n" + b"x" * 5_000_000)
        assert tls.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_half_a_request_that_ends_is_none(world: World) -> None:
    """The end of TCP without a farewell of TLS: somebody may have cut it off."""
    with world.start() as broker:
        tls = connect(broker)
        tls.sendall(REQUEST + b"{")
        tls.shutdown(socket.SHUT_WR)
        with tls:
            while tls.recv(1000):
                pass  # what TLS still had to say
        with broker.http() as http:
            assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/kbs/v0/nothing"])
def test_what_is_nobodys_is_counted_too(world: World, path: str) -> None:
    world.write_config(requests_per_minute=3)
    with world.start() as broker, broker.http() as http:
        answers = [http.get(path).status_code for _ in range(5)]
        assert answers[2] != 429
        assert answers[-1] == 429
        assert http.head(path).status_code == 429


def test_two_listeners_count_apart(world: World) -> None:
    world.write_config(requests_per_minute=1)
    with world.start() as broker:
        with broker.http() as http:
            assert [http.get("/healthz").status_code for _ in range(2)] == [200, 429]
        with broker.admin_http() as http:
            assert http.get("/healthz").status_code == 200
