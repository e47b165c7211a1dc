"""What stays of connections: nothing of those that are closed, and of those at rest no more than they need."""

import ctypes
import gc
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from hermetic.server.config import Limits
from hermetic.server.http2.connection import Connection
from hermetic.server.http2.server import JUDGED_PER_TURN
from hermetic.server.http2.tls import Place, TlsSession
from tests.server.far_side import Pki
from tests.server.http2.serving import Serving
from tests.server.http2.test_over_tls import credentials
from tests.server.http2.wire import TIMEOUT_S

KIB = 1024
LARGE = 256 * KIB
SESSIONS = 20


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_closed_connection_leaves_nothing_to_the_collector() -> None:
    with Serving() as serving:
        for number in range(3):
            with serving.peer() as peer:
                peer.echo(b"%d" % number)
        with serving.peer() as peer:  # one that dies in the middle of a call
            peer.send(peer.opening(peer.stream()))
            peer.echo(b"so the head has been read")
        serving.application.calls.clear()  # the application may keep what it likes
    assert [one for one in gc.get_objects() if type(one) is Connection] == []


def test_of_more_than_a_turn_looks_at_each_is_looked_at() -> None:
    """All of them say nothing, so all are closed."""
    count = JUDGED_PER_TURN + 20
    with ExitStack() as stack:
        serving = stack.enter_context(Serving(Limits(handshake_timeout_ms=300, connections=count)))
        address = ("127.0.0.1", serving.port)
        silent = [stack.enter_context(socket.create_connection(address, TIMEOUT_S)) for _ in range(count)]
        for one in silent:
            while one.recv(KIB):
                pass


class Memory(ctypes.Structure):
    """`struct mallinfo2` (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "_")
    ]


def allocated() -> int:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Memory
    memory = libc.mallinfo2()
    return int(memory.uordblks + memory.hblkhd)


class Pair:
    """A server's session and a client, in memory."""

    def __init__(self, pki: Pki) -> None:
        self._place = Place.of(2 * LARGE)
        self.session = TlsSession(credentials(pki).context)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_alpn_protos([b"h2"])
        context.use_certificate(x509.load_pem_x509_certificate(pki.infer.certificate))
        context.use_privatekey(load_pem_private_key(pki.infer.key, None))  # type: ignore[arg-type] # it is one
        self._client = SSL.Connection(context, None)
        self._client.set_connect_state()
        done = False
        while not done:
            with suppress(SSL.WantReadError):
                self._client.do_handshake()
            self._to_server()
            done = self.session.handshake()
            self._to_client()

    def ask(self, data: bytes) -> bytes:
        """Return what the server reads when the client writes that."""
        for at in range(0, len(data), KIB):
            self._client.send(data[at : at + KIB])
        self._to_server()
        end = self.session.read(self._place, 0)
        return bytes(self._place.view[:end])

    def answer(self, data: bytes) -> bytes:
        """Return what the client reads when the server writes that."""
        self.session.write(bytearray(data))
        self._to_client()
        got = b""
        while len(got) < len(data):
            got += self._client.recv(LARGE)
        return got

    def _to_server(self) -> None:
        try:
            data = self._client.bio_read(len(self._place.buffer))
        except SSL.WantReadError:
            return
        self._place.view[: len(data)] = data
        self.session.feed(self._place, len(data))

    def _to_client(self) -> None:
        while size := self.session.take(self._place):
            self._client.bio_write(bytes(self._place.view[:size]))


def test_a_session_at_rest_gives_back_what_large_messages_took(pki: Pki) -> None:
    pairs = [Pair(pki) for _ in range(SESSIONS)]
    data = bytes(range(256)) * (LARGE // 256)
    for pair in pairs:
        assert pair.ask(data) == data
        assert pair.answer(data) == data
    before = allocated()
    for pair in pairs:
        pair.session.shed()
    assert before - allocated() > SESSIONS * 2 * LARGE
    for pair in pairs:  # and it goes on
        assert pair.ask(b"hello") == b"hello"
        assert pair.answer(data) == data
