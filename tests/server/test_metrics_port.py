"""The metrics port as a process: who may see it, what hostile scrapers get, and that it is locked down."""

import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import decode_control
from hermetic.enclave.zero_on_free import environment, interpreter
from hermetic.errors import BorderError, UnauthenticatedError
from hermetic.server import documents
from hermetic.server.messages import Listening, Records, RecordsWritten
from hermetic.server.metrics import Facts, Page
from hermetic.server.metrics_port import HEAD_LIMIT, SCRAPES_LIMIT, Scrapes
from hermetic.server.settings import MetricsSettings
from hermetic.server.shared_messages import AskPage, PageReply, StartMetrics
from hermetic.server.tally import ModelTally, Tally
from tests.server.certificates import Pair, subject
from tests.server.far_side import Pki, epoch

TIMEOUT_S = 60
DAY = timedelta(days=1)
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
FACTS = Facts(profile="demo", waived=(), epoch=3, epochs_refused=0, front_ends=2, front_ends_lost=0, models=())
PAGE = Page(tally=Tally(models=(ModelTally(name="m", version=1, generation=1, inferences=42),)), facts=FACTS)


class Port:
    """The process, seen from its supervisor, which answers it."""

    def __init__(self, pki: Pki, *, tls: bool = True, answer: bool = True, **changes: Any) -> None:
        ours, theirs = Channel.pair()
        self.process = subprocess.Popen(
            [*interpreter(), "-m", "hermetic.server.metrics_port", str(theirs.fileno())],
            env=environment(),
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self.pki = pki
        self.channel = ours
        self.channel.settimeout(TIMEOUT_S)
        self.records: list[str] = []
        self._answer = answer
        settings = settings_of(pki, tls=tls, **changes)
        key, document = documents.in_memory(pki.server.key), documents.in_memory(documents.encoded(settings))
        self.channel.send(StartMetrics().encode(), (key, document))
        os.close(key)
        os.close(document)
        self.listening = Listening.decode(self.channel.receive()[0])
        self.channel.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                message = decode_control(self.channel.receive()[0], (Records, AskPage))
            except (BorderError, OSError):
                return
            if isinstance(message, Records):
                self.records += message.records
                self.channel.send(RecordsWritten(count=len(message.records)).encode())
            elif isinstance(message, AskPage) and self._answer:
                document = documents.in_memory(documents.encoded(PAGE))
                self.channel.send(PageReply(id=message.id).encode(), (document,))
                os.close(document)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(TIMEOUT_S)
        self.channel.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.listening.port), TIMEOUT_S)

    @contextmanager
    def secured(self, client: Pair | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[ssl.SSLSocket]:
        """A TLS connection as `client`."""
        context = ssl.create_default_context(cadata=self.pki.server_authority.pem.decode())
        context.maximum_version = version
        if client is not None:
            with tempfile.NamedTemporaryFile() as file:
                Path(file.name).write_bytes(client.certificate + client.key)
                context.load_cert_chain(file.name)
        with context.wrap_socket(self.connect(), server_hostname="localhost") as secured:
            yield secured

    def get(self, client: Pair | None, request: bytes = GET) -> tuple[int, str]:
        """Status and body of one request."""
        with self.secured(client) as connection:
            connection.sendall(request)
            return read(connection)


def settings_of(pki: Pki, *, tls: bool = True, **changes: Any) -> MetricsSettings:
    """Settings of the port; `changes` are of the epoch."""
    return MetricsSettings(
        host="127.0.0.1",
        port=0,
        tls=tls,
        certificate_chain=pki.server.certificate.decode(),
        epoch=epoch(pki, **changes),
        waived=(),
        uid=65534,
        gid=65534,
    )


def read(connection: socket.socket) -> tuple[int, str]:
    """Read an answer to its end."""
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def port(pki: Pki) -> Iterator[Port]:
    port = Port(pki)
    yield port
    port.close()


@pytest.fixture(scope="module")
def plain(pki: Pki) -> Iterator[Port]:
    port = Port(pki, tls=False)
    yield port
    port.close()


def test_it_is_locked_down_like_a_front_end(port: Port) -> None:
    assert {"no-connect", "no-files", "no-exec", "no-reach"} <= set(port.listening.report.properties)


@pytest.mark.parametrize("who", ["observe", "operate", "everything"])
def test_those_who_may_watch_see_the_page(port: Port, who: str) -> None:
    status, body = port.get(getattr(port.pki, who))
    assert status == 200
    assert 'nv_inference_count{model="m",version="1"} 42\n' in body
    assert "hermetic_config_epoch 3\n" in body


@pytest.mark.parametrize("who", ["infer", "unlisted"])
def test_others_are_refused(port: Port, who: str) -> None:
    status, body = port.get(getattr(port.pki, who))
    assert status == 403
    assert "nv_inference" not in body


def test_without_a_certificate_there_is_no_handshake(port: Port) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):  # an alert, or the end: no answer
        port.get(None)


def test_only_tls_1_3_is_spoken(port: Port) -> None:
    with pytest.raises(ssl.SSLError), port.secured(port.pki.observe, ssl.TLSVersion.TLSv1_2):
        pass


def test_who_is_revoked_is_refused(pki: Pki) -> None:
    port = Port(pki, revoked=[{"authority": "clients", "name": subject("watcher")}])
    try:
        assert port.get(pki.observe)[0] == 403
        assert port.get(pki.operate)[0] == 200
    finally:
        port.close()


class Shown:
    """What a TLS connection says of itself: the client's certificate."""

    def __init__(self, pem: bytes) -> None:
        self._certificate = ssl.PEM_cert_to_DER_cert(pem.decode())

    def get_extra_info(self, name: str) -> "Shown":
        assert name == "ssl_object"
        return self

    def getpeercert(self, *, binary_form: bool) -> bytes:
        assert binary_form
        return self._certificate


def test_a_wall_clock_that_is_set_back_lets_nobody_watch_whose_certificate_had_ended(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS judges by the clock that was set, and would let it in; here both clocks are looked at for each scrape."""
    ours, theirs = Channel.pair()
    scrapes = Scrapes(settings_of(pki), ours)
    ended: Any = Shown(pki.authority.issue("watcher", begins=-2 * DAY, ends=-DAY / 24).certificate)
    set_back = time.time() - DAY.total_seconds()
    monkeypatch.setattr(time, "time", lambda: set_back)
    assert scrapes._principal(ended).tenant == "red", "wanted the attack to succeed where only one clock is looked at"
    monkeypatch.setattr(scrapes._set_back, "_wall", lambda: set_back)
    with pytest.raises(UnauthenticatedError, match="valid now"):
        scrapes._principal(ended)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics?name=x HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 404),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\xff\xfe\xfd HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
    ],
)
def test_it_speaks_as_much_http_as_a_scraper_needs(plain: Port, request_: bytes, status: int) -> None:
    with plain.connect() as connection:
        connection.sendall(request_)
        got, body = read(connection)
    assert got == status
    assert bool(body) == (status == 200)


def test_a_head_without_end_is_cut_off(plain: Port) -> None:
    with plain.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * (HEAD_LIMIT // 3))
        with pytest.raises((ConnectionError, IndexError)):
            read(connection)


def test_scrapers_that_only_connect_do_not_keep_others_out_for_long(plain: Port) -> None:
    """They hold every place for a few seconds, and lose it."""
    idle = [plain.connect() for _ in range(SCRAPES_LIMIT)]
    try:
        for one in idle:
            one.settimeout(TIMEOUT_S)
            assert one.recv(1) == b""  # cut off
        with plain.connect() as connection:
            connection.sendall(GET)
            assert read(connection)[0] == 200
    finally:
        for one in idle:
            one.close()


def test_every_scrape_is_recorded(pki: Pki) -> None:
    port = Port(pki)
    try:
        port.get(pki.observe)
        port.get(pki.infer)
        while len(port.records) < 2:
            pass
    finally:
        port.close()
    seen, refused = port.records
    assert '"method":"GET /metrics"' in seen
    assert subject("watcher") in seen
    assert '"status":"OK"' in seen
    assert '"status":"PERMISSION_DENIED"' in refused


def test_it_ends_with_its_supervisor(pki: Pki) -> None:
    port = Port(pki)
    port.channel._socket.shutdown(socket.SHUT_RDWR)
    assert port.process.wait(TIMEOUT_S) == 1
    port.close()
