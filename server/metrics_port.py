"""The metrics port, as a process: `python -m hermetic.server.metrics_port <control descriptor>`, from the supervisor.

    1  the first frame is `StartMetrics`, with the serving key and the settings in memfds
    2  certificates are loaded, while there are files; the port is bound
    3  locked down like a front end: own uid, no files, no connections, no processes; `Listening`
    4  each scrape: TLS 1.3 and the certificate of somebody who may (or plain HTTP on loopback), the page, a record
    5  the end with the supervisor; a new serving key or epoch is a new process

It is a process of its own so that neither its parser nor a slow scraper is anywhere near requests. It speaks as much
HTTP/1.1 as a scraper needs (RFC 9112): one GET for each connection.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import ssl
import sys
import time
from typing import Final

from hermetic.attestation.clock import SetBack
from hermetic.enclave import zero_on_free
from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import decode_control
from hermetic.enclave.isolation.lockdown import Room, lock_front_end_after_listening, lock_front_end_before_threads
from hermetic.errors import AccessDeniedError, BorderError, HermeticError, NotReadyError, UnauthenticatedError
from hermetic.server import documents
from hermetic.server.access import WATCH, Principal, check_access
from hermetic.server.audit import ANONYMOUS, NO_MODEL, Journal, who_part
from hermetic.server.epochs import Checked, checked
from hermetic.server.identity import TLS_VERSION
from hermetic.server.messages import Listening, RecordsWritten
from hermetic.server.metrics import Page, render
from hermetic.server.section import KIB
from hermetic.server.settings import METRICS_MEMORY_LIMIT, METRICS_THREADS_LIMIT, MetricsSettings
from hermetic.server.shared_messages import AskPage, PageReply, StartMetrics
from hermetic.server.status import Code, Status
from hermetic.server.transport import Peer

SCRAPES_LIMIT: Final = 16  # connections at a time; more are closed at once
SCRAPE_S: Final = 5.0  # seconds for a whole scrape, the handshake apart
HANDSHAKE_S: Final = 5.0
HEAD_LIMIT: Final = 8 * KIB  # bytes of a request's head
RECORDS_WAITING: Final = 1024  # scrapes that are not on record yet
FLUSH_S: Final = 0.25
METHOD: Final = "GET /metrics"
TO_METRICS_PORT: Final = (RecordsWritten, PageReply)

_STATUS: Final = {
    200: ("OK", Code.OK),
    400: ("Bad Request", Code.INVALID_ARGUMENT),
    401: ("Unauthorized", Code.UNAUTHENTICATED),
    403: ("Forbidden", Code.PERMISSION_DENIED),
    404: ("Not Found", Code.NOT_FOUND),
    503: ("Service Unavailable", Code.UNAVAILABLE),
}
_log: Final = logging.getLogger(__name__)


class Scrapes:
    """Answers scrapes. The loop's thread only."""

    def __init__(self, settings: MetricsSettings, supervisor: Channel) -> None:
        """`supervisor` must not block. `ConfigurationError` where the epoch does not fit together."""
        self._judge: Checked = checked(settings.epoch)
        self._tls = settings.tls
        self._set_back = SetBack()
        self._supervisor = supervisor
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Page]] = {}
        self._open = 0
        self._journal = Journal(self._send, RECORDS_WAITING)
        self.over = asyncio.Event()

    async def serve(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Serve until the supervisor is gone."""
        asyncio.get_running_loop().add_reader(self._supervisor.fileno(), self._hear)
        server = await asyncio.start_server(
            self._scrape,
            sock=listener,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_S if context else None,
            limit=HEAD_LIMIT,
        )
        async with server:
            while not self.over.is_set():
                self._journal.flush()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), FLUSH_S)

    async def _scrape(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._open < SCRAPES_LIMIT:
                self._open += 1
                try:
                    async with asyncio.timeout(SCRAPE_S):
                        await self._answer(reader, writer)
                finally:
                    self._open -= 1
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            _log.debug("scrape: %s", error)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started = time.monotonic_ns()
        moment = time.time()
        who, length = ANONYMOUS, 0
        body = ""
        try:
            self._journal.check_room()
            head = await reader.readuntil(b"\r\n\r\n")
            length = len(head)
            status = _asked_for(head)
            if self._tls:
                who = who_part(self._principal(writer))
            if status == 200:  # noqa: PLR2004 - as HTTP has it
                body = render(await self._page())
        except UnauthenticatedError as error:
            status, body = 401, str(error)
        except AccessDeniedError as error:
            status, body = 403, str(error)
        except NotReadyError as error:
            status, body = 503, str(error)
        text = body.encode()
        writer.write(_head(status, len(text)) + text)
        self._journal.request(
            moment, METHOD, who, NO_MODEL, length, len(text), Status(_STATUS[status][1], ""),
            (time.monotonic_ns() - started) // 1000,
        )  # fmt: skip
        await writer.drain()

    def _principal(self, writer: asyncio.StreamWriter) -> Principal:
        """Return who this is, or raise: TLS has verified that the certificate is one of the authorities'."""
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        peer = Peer(TLS_VERSION, ssl.DER_cert_to_PEM_cert(shown).encode() if shown else None)
        principal = self._judge.access.principal(
            self._judge.identities.identify(peer, time.time() + self._set_back.seconds())
        )
        check_access(principal, WATCH)
        return principal

    async def _page(self) -> Page:
        number = next(self._ids)
        page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._waiting[number] = page
        try:
            if not self._send(AskPage(id=number).encode()):
                raise NotReadyError("the supervisor is busy; try again")
            return await page
        finally:
            del self._waiting[number]

    def _send(self, frame: bytes) -> bool:
        try:
            self._supervisor.send(frame)
        except (BlockingIOError, BorderError, OSError):
            return False
        return True

    def _hear(self) -> None:
        try:
            frame, descriptors = self._supervisor.receive()
            message = decode_control(frame, TO_METRICS_PORT)
            if isinstance(message, RecordsWritten):
                self._journal.written(message.count)
            elif isinstance(message, PageReply):
                page = documents.take(descriptors, Page)
                waiting = self._waiting.get(message.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(page)
        except BlockingIOError:
            return
        except (HermeticError, OSError) as error:
            _log.error("the supervisor is gone: %s", error)
            self.over.set()


def _asked_for(head: bytes) -> int:
    """Return the status that a request's head deserves: 200 for `GET /metrics`, whatever its query is."""
    line = head.split(b"\r\n", 1)[0].split(b" ")
    if len(line) != 3 or not line[2].startswith(b"HTTP/1."):  # noqa: PLR2004 - method, target, version
        return 400
    return 200 if line[0] == b"GET" and line[1].split(b"?", 1)[0] == b"/metrics" else 404


def _head(status: int, length: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {_STATUS[status][0]}\r\n"
        "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def tls_context(settings: MetricsSettings, key: bytes) -> ssl.SSLContext:
    """Return TLS 1.3 with our certificate, for clients of the epoch's authorities; only while there are files.

    Python takes a certificate and its key from a path and from nowhere else: here, of a memfd.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would be looked at as it was then
    context.load_verify_locations(cadata="\n".join(settings.epoch.authorities.values()))
    memory = documents.in_memory(settings.certificate_chain.encode() + key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


def main(arguments: list[str]) -> int:
    """Run the port; return its exit status."""
    logging.basicConfig(level=logging.WARNING, format="metrics port %(process)d: %(levelname)s: %(message)s")
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the supervisor decides
        signal.signal(ignored, signal.SIG_IGN)
    supervisor = Channel.of_descriptor(int(arguments[0]))
    loop = asyncio.new_event_loop()  # now: its own wake-up sockets cannot be made later
    try:
        settings, key = _receive_start(supervisor)
        zeroing = zero_on_free.status()  # looks through a memfd: not once it is locked
        scrapes = Scrapes(settings, supervisor)
        context = tls_context(settings, key) if settings.tls else None
        supervisor.settimeout(0)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.create_server((settings.host, settings.port), family=family) as listener:
            room = Room(settings.uid, settings.gid, METRICS_MEMORY_LIMIT, METRICS_THREADS_LIMIT, settings.waived)
            layers = lock_front_end_before_threads(room, settings.port)
            report = lock_front_end_after_listening(layers, zeroing)
            supervisor.send(Listening(port=listener.getsockname()[1], report=report).encode())
            loop.run_until_complete(scrapes.serve(listener, context))
    except (HermeticError, OSError) as error:
        _log.error("cannot start: %s", error)
    return 1


def _receive_start(supervisor: Channel) -> tuple[MetricsSettings, bytes]:
    frame, descriptors = supervisor.receive()
    try:
        decode_control(frame, (StartMetrics,))
        if len(descriptors) != 2:  # noqa: PLR2004 - a key and a document
            raise BorderError(f"start: wanted two descriptors, got {len(descriptors)}")
        return documents.decoded(documents.read(descriptors[1]), MetricsSettings), documents.read(descriptors[0])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    os._exit(status)
