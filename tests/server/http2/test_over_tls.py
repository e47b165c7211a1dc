"""The same over TLS: records and their pieces, how it ends, and what is no TLS at all. Who gets in is test_tls.py's."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest

from hermetic.server.config import Limits
from hermetic.server.http2.tls import ServingCredentials
from tests.server.certificates import Pair
from tests.server.far_side import Pki
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    PREFACE,
    ClosedError,
    Peer,
    frame,
    message,
    settings,
    window_update,
)  # fmt: skip
from tests.server.raw_http2 import tls_context

MIB = 1 << 20


def credentials(pki: Pki) -> ServingCredentials:
    return ServingCredentials(pki.server.key, pki.server.certificate, {"clients": pki.authority.pem.decode()})


@pytest.fixture(scope="module")
def serving(pki: Pki) -> Iterator[Serving]:
    with Serving(credentials=credentials(pki)) as one:
        yield one


def secured(serving: Serving, pki: Pki, client: Pair | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", serving.port), 60)
    context = tls_context(pki.server_authority.pem, client or pki.infer)
    return context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)


@pytest.fixture
def peer(serving: Serving, pki: Pki) -> Iterator[Peer]:
    with Peer(serving.port, connection=secured(serving, pki)) as one:
        yield one


@pytest.fixture(scope="module")
def bystander(serving: Serving, pki: Pki) -> Iterator[Peer]:
    with Peer(serving.port, connection=secured(serving, pki)) as one:
        yield one


class Slow:
    """TLS in memory, so that its bytes go out in any pieces."""

    def __init__(self, serving: Serving, pki: Pki) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = tls_context(pki.server_authority.pem, pki.infer)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.socket = socket.create_connection(("127.0.0.1", serving.port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def push(self, step: int) -> None:
        data = self.outgoing.read()
        for at in range(0, len(data), step):
            self.socket.sendall(data[at : at + step])

    def until(self, action: Callable[[], object], step: int) -> object:
        while True:
            try:
                done = action()
            except ssl.SSLWantReadError:
                self.push(step)
                self.incoming.write(self.socket.recv(65536))
                continue
            self.push(step)
            return done

    def close(self) -> None:
        self.socket.close()


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_records_in_any_pieces(serving: Serving, pki: Pki, step: int) -> None:
    slow = Slow(serving, pki)
    slow.until(slow.tls.do_handshake, step)
    head = Peer.opening(None, 1)  # type: ignore[arg-type] # it needs nothing of the connection
    for part in (PREFACE[:5], PREFACE[5:] + settings(), head[:20], head[20:], frame(DATA, 1, 1, message(b"in pieces"))):
        slow.tls.write(part)
        slow.push(step)
    got = b""
    while b"in pieces" not in got:
        got += slow.until(lambda: slow.tls.read(65536), step)  # type: ignore[operator]
    slow.close()


def test_every_byte_a_record_of_its_own(peer: Peer) -> None:
    stream = peer.stream()
    for byte in peer.opening(stream) + frame(DATA, END_STREAM, stream, message(b"slowly")):
        peer.send(bytes((byte,)))
    assert peer.answer(stream).messages == [b"slowly"]


def test_several_calls_in_one_record(peer: Peer) -> None:
    calls = [(peer.stream(), b"%d" % at) for at in range(20)]
    peer.send(b"".join(peer.opening(stream) + frame(DATA, 1, stream, message(data)) for stream, data in calls))
    assert [peer.answer(stream).messages for stream, _ in calls] == [[data] for _, data in calls]


def test_large_messages(serving: Serving, pki: Pki) -> None:
    channel_credentials = grpc.ssl_channel_credentials(pki.server_authority.pem, pki.infer.key, pki.infer.certificate)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(f"127.0.0.1:{serving.port}", channel_credentials, options) as channel:
        echo = channel.unary_unary("/test/Echo")
        for size in (0, 16384, 16385, MIB, 20 * MIB):
            data = bytes(range(256)) * (size // 256)
            assert echo(data, timeout=60) == data


def test_a_client_that_says_goodbye(serving: Serving, pki: Pki) -> None:
    """close_notify ends the connection and cancels its calls, though the socket is still open."""
    serving.application.seen.clear()
    own = secured(serving, pki)
    peer = Peer(serving.port, connection=own)
    peer.call("/test/Never")
    serving.application.wait("/test/Never received")
    peer.settle()
    own.unwrap()
    serving.application.wait("/test/Never cancelled")
    own.close()


def test_a_client_that_just_goes(serving: Serving, pki: Pki) -> None:
    serving.application.seen.clear()
    own = secured(serving, pki)
    peer = Peer(serving.port, connection=own)
    peer.call("/test/Never")
    serving.application.wait("/test/Never received")
    own.close()
    serving.application.wait("/test/Never cancelled")


def test_the_server_says_goodbye(pki: Pki) -> None:
    """What it said last arrives, and then close_notify: nobody could have cut it off unseen."""
    with Serving(credentials=credentials(pki)) as serving, Peer(serving.port, connection=secured(serving, pki)) as peer:
        peer.settle()
        serving.stop(5)
        goaway = peer.end()  # an end without close_notify would raise
        assert goaway is not None
        assert goaway.code == 0


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", PREFACE + settings(), b"\x16\x03\x01\xff\xff" + bytes(70000), b"\x15\x03\x03\0\2\2\0"],
)
def test_what_is_no_handshake(serving: Serving, pki: Pki, first: bytes) -> None:
    with socket.create_connection(("127.0.0.1", serving.port), 60) as plain:
        try:
            plain.sendall(first)
            while plain.recv(65536):
                pass
        except ConnectionError:
            pass


def test_a_broken_record_ends_the_connection(serving: Serving, pki: Pki) -> None:
    serving.application.seen.clear()
    slow = Slow(serving, pki)
    slow.until(slow.tls.do_handshake, 65536)
    slow.tls.write(PREFACE + settings() + Peer.opening(None, 1, "/test/Never") + frame(DATA, 1, 1, message(b"")))  # type: ignore[arg-type]
    slow.push(65536)
    serving.application.wait("/test/Never received")
    slow.tls.write(b"x" * 100)
    broken = bytearray(slow.outgoing.read())
    broken[-1] ^= 1
    slow.socket.sendall(broken)
    serving.application.wait("/test/Never cancelled")
    slow.close()


def test_half_a_handshake_is_let_go(pki: Pki) -> None:
    limits = Limits(handshake_timeout_ms=400)
    with Serving(limits, credentials(pki)) as serving:
        slow = Slow(serving, pki)
        with pytest.raises(ssl.SSLWantReadError):
            slow.tls.do_handshake()
        slow.socket.sendall(slow.outgoing.read()[:100])
        assert slow.socket.recv(1) == b""
        slow.close()


def test_a_client_that_reads_nothing(serving: Serving, pki: Pki) -> None:
    with Peer(serving.port, (4, 2**31 - 1), connection=secured(serving, pki)) as deaf:
        deaf.send(window_update(0, 2**30))
        for _ in range(10):
            deaf.call("/test/Large", b"5000000")
        with Peer(serving.port, connection=secured(serving, pki)) as other:
            for _ in range(20):
                other.echo()


def test_one_client_holds_so_many_connections_and_another_its_own(pki: Pki) -> None:
    with Serving(Limits(connections_per_client=2), credentials(pki)) as serving:
        first, second = (Peer(serving.port, connection=secured(serving, pki)) for _ in range(2))
        first.echo()
        second.echo()
        with Peer(serving.port, connection=secured(serving, pki)) as third:
            goaway = third.end()
        assert goaway is not None
        assert (goaway.code, goaway.payload[8:]) == (ENHANCE_YOUR_CALM, b"too many connections of this client")
        with Peer(serving.port, connection=secured(serving, pki, pki.other)) as other:
            other.echo()
        first.close()
        for _ in range(1000):  # until the server has read that the first one is closed
            with Peer(serving.port, connection=secured(serving, pki)) as again, suppress(ClosedError, OSError):
                again.echo()
                break
        else:
            raise AssertionError("a place that was given back stays taken")
        second.echo()
        second.close()
