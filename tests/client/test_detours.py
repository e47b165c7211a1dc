"""Who would like to stand on the way to a verified server: the environment's proxies, a changed name, an old session.

The pinned leaf keeps each of them from reading anything; here each is kept from being there at all.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from hermetic.client.aio.bridge import LoopChannel
from hermetic.client.evidence import METHOD, pinned_channel
from hermetic.client.handshake import Endpoint, Leaf, Tls, handshake
from hermetic.errors import VerificationError
from tests.flows.attackers import switch
from tests.server.certificates import HOUR, Authority, Pair

WAIT_S = 60.0
NAME = "server.invalid"  # RFC 2606: no name server knows it
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
RECONNECTS = 3


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _message, _context: b"here")


@pytest.fixture
def authority() -> Authority:
    return Authority("servers")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server", dns=[NAME], usage=None)


@pytest.fixture
def tls(tmp_path: Path, authority: Authority, pair: Pair) -> Tls:
    one = Tls(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem", NAME)
    for path, content in ((one.authority, authority.pem), (one.certificate, pair.certificate), (one.key, pair.key)):
        path.write_bytes(content)
    return one


@pytest.fixture
def port(pair: Pair) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    server.start()
    yield port
    server.stop(0).wait()


def blocking(endpoint: Endpoint, leaf: Leaf, tls: Tls) -> bytes:
    with pinned_channel(endpoint, leaf, tls) as channel:
        return bytes(channel.unary_unary(METHOD)(b"", timeout=WAIT_S))


def in_a_loop(endpoint: Endpoint, leaf: Leaf, tls: Tls) -> bytes:
    async def ask() -> bytes:
        loop = asyncio.get_running_loop()
        channel = await asyncio.to_thread(LoopChannel.pinned, loop, endpoint, leaf, tls)
        try:
            return bytes(await channel.loop_channel.unary_unary(METHOD)(b"", timeout=WAIT_S))
        finally:
            await channel.closed()

    return asyncio.run(ask())


Ask = Callable[[Endpoint, Leaf, Tls], bytes]
both_forms = pytest.mark.parametrize("ask", [blocking, in_a_loop])


@contextlib.contextmanager
def listener(hear: Callable[[socket.socket], None]) -> Iterator[int]:
    """Hear everyone who connects, one after the other; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        hear(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT_S)


@both_forms
def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch, tls: Tls, port: int, ask: Ask) -> None:
    asked: list[bytes] = []
    with listener(lambda connection: asked.append(connection.recv(4096))) as proxy:
        for name in PROXIES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", f"127.0.0.1:{proxy}")
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8")
        with grpc.insecure_channel(f"ipv4:127.0.0.1:{port}") as stock, pytest.raises(grpc.RpcError):
            stock.unary_unary(METHOD)(b"", timeout=WAIT_S)
        assert asked  # a stock channel goes there
        asked.clear()
        endpoint = Endpoint("127.0.0.1", port)
        assert ask(endpoint, handshake(endpoint, tls, WAIT_S), tls) == b"here"
        assert not asked


@both_forms
def test_a_name_is_asked_about_once_whatever_it_means_later(
    monkeypatch: pytest.MonkeyPatch, tls: Tls, port: int, ask: Ask
) -> None:
    """The name server says where the server is, and then something else; who was verified is who is spoken to."""
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
    endpoint = Endpoint(NAME, port)
    leaf = handshake(endpoint, tls, WAIT_S)
    assert leaf.address == f"ipv4:127.0.0.1:{port}"
    assert ask(endpoint, leaf, tls) == b"here"
    assert not answers


def test_two_channels_share_no_connection(tls: Tls, port: int) -> None:
    """What was closed because its proof failed is closed for whoever had it; and another's goes on."""
    with switch(port) as between:
        endpoint = Endpoint("127.0.0.1", between.port)
        leaf = handshake(endpoint, tls, WAIT_S)
        first, second = pinned_channel(endpoint, leaf, tls), pinned_channel(endpoint, leaf, tls)
        for channel in (first, second):
            assert channel.unary_unary(METHOD)(b"", timeout=WAIT_S) == b"here"
        assert between.accepted == 3  # the handshake's too
        first.close()
        with pytest.raises(ValueError, match="closed channel"):
            first.unary_unary(METHOD)(b"", timeout=WAIT_S)
        assert second.unary_unary(METHOD)(b"", timeout=WAIT_S) == b"here"
        assert between.accepted == 3
        second.close()


@pytest.mark.parametrize("host", ["unix", "dns", "ipv4", "xds"])
def test_a_host_whose_name_is_a_scheme_of_grpcs_is_a_host(
    monkeypatch: pytest.MonkeyPatch, tls: Tls, port: int, host: str
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    endpoint = Endpoint.parse(f"{host}:{port}")
    assert blocking(endpoint, handshake(endpoint, tls, WAIT_S), tls) == b"here"


@both_forms
def test_no_session_is_resumed(tls: Tls, pair: Pair, ask: Ask) -> None:
    """A resumed session shows no certificate: whoever kept its secret would be believed past every handshake.

    The server gives tickets at once, and cuts each connection after it has read what comes first.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    context.num_tickets = 4
    resumed: list[bool | None] = []

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            resumed.append(secure.session_reused)
            secure.settimeout(WAIT_S)
            secure.sendall(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS: the tickets come before it
            secure.recv(4096)

    with listener(serve) as port:
        endpoint = Endpoint("127.0.0.1", port)
        stock = ssl.create_default_context(cafile=str(tls.authority))
        sessions: list[Any] = [None]
        for _ in range(2):  # that the server would resume is seen with a client that wants to
            with (
                socket.create_connection((endpoint.host, port)) as plain,
                stock.wrap_socket(plain, server_hostname=NAME, session=sessions[-1]) as connection,
            ):
                connection.recv(16)
                sessions.append(connection.session)
                connection.sendall(b"x")
        assert resumed == [False, True]
        leaf = handshake(endpoint, tls, WAIT_S)
        for _ in range(RECONNECTS):
            with pytest.raises(grpc.RpcError):
                ask(endpoint, leaf, tls)
    assert resumed[2:] == [False] * len(resumed[2:])
    assert len(resumed) > 2 + RECONNECTS


def test_an_older_version_of_tls_is_refused(tls: Tls) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    heard: list[int] = []

    def serve(connection: socket.socket) -> None:
        heard.append(1)
        context.wrap_socket(connection, server_side=True).close()

    with listener(serve) as port, pytest.raises(VerificationError, match=r"^tls: "):
        handshake(Endpoint("127.0.0.1", port), tls, WAIT_S)
    assert heard


@pytest.mark.parametrize(("begins", "ends"), [(HOUR, 2 * HOUR), (-2 * HOUR, -timedelta(seconds=1))])
def test_a_certificate_out_of_its_time_is_refused(
    tls: Tls, authority: Authority, tmp_path: Path, begins: timedelta, ends: timedelta
) -> None:
    pair = authority.issue("server", dns=[NAME], usage=None, begins=begins, ends=ends)
    (tmp_path / "old.pem").write_bytes(pair.certificate)
    (tmp_path / "old.key").write_bytes(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "old.pem", tmp_path / "old.key")
    context.set_alpn_protocols(["h2"])

    def serve(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    with listener(serve) as port, pytest.raises(VerificationError, match=r"^tls: "):
        handshake(Endpoint("127.0.0.1", port), tls, WAIT_S)
