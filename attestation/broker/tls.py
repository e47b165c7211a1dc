"""TLS for the listeners: 1.3 only, client certificates, and the verified peer certificate handed to the application.

uvicorn does not put the peer's certificate into the ASGI scope. `PeerCertificateProtocol` does, for its protocol on
llhttp: the event loop calls `connection_made` after the handshake, so the certificate is verified and does not change.
It lies in `scope["extensions"]["tls"]`, the place of the ASGI TLS extension, as DER in `client_certificate`; no header
can put anything there.
"""

import ssl
from asyncio import Transport
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hermetic.errors import ConfigurationError

TLS_EXTENSION: Final = "tls"
HEADER_BYTES: Final = 64 * 1024
"""Longest request line and headers together; a token fits."""
HEADER_COST: Final = 64
"""What a header counts beside its bytes: many short ones take more memory than one long one."""
PIPELINED: Final = 8
"""Most requests of a connection that wait for the one before them; one read may hold thousands."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What uvicorn writes before an answer, where a client asks whether it may send its body."""


def server_context(
    certificate: Path, key: Path, client_authorities: Iterable[x509.Certificate], *, certificate_required: bool
) -> ssl.SSLContext:
    """TLS 1.3 with client certificates of `client_authorities` alone; raises `ConfigurationError`.

    Those are certificates, not files: what was compared with operators' signatures is what counts.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED if certificate_required else ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET  # a resumed session would skip the verification of the certificate
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=b"".join(one.public_bytes(Encoding.DER) for one in client_authorities))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS: cannot load {certificate}, {key} or the client authorities: {error}") from error
    return context


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with the peer's certificate in each request's scope, and an end to everything.

    A client (a certificate, else an address) that has `connections_per_client` open gets no other one: what is open in
    all is bounded too, so one client would keep everybody else out by holding connections. uvicorn waits for ever for
    the first byte and for the rest of a body; here a connection ends `connection_s` after its handshake, only a request
    that is complete by then is still answered. It takes a head of any length; here one of more than `HEADER_BYTES`, and
    as much else that is neither head nor body, is a bad request.
    """

    connection_s: ClassVar[float] = 60.0
    connections_per_client: ClassVar[int] = 64
    held: ClassVar[Counter[bytes | str]]
    """Connections that are open, of each client of this listener."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wrap the application, once for this connection, and start its time."""
        super().connection_made(transport)
        peer = transport.get_extra_info("ssl_object")
        certificate = None if peer is None else peer.getpeercert(binary_form=True)
        self.app = _WithPeer(self.app, certificate)
        self._whose: bytes | str = certificate or (self.client[0] if self.client else "unknown")
        self.held[self._whose] += 1
        if self.held[self._whose] > self.connections_per_client:
            transport.abort()
        self._answers = WholeAnswers(transport)
        self.transport = self._answers  # what answers are written to
        self._end = self.loop.call_later(self.connection_s, self._expire)
        self._head = 0  # bytes of this request's line and headers
        self._pending = 0  # bytes since the parser said anything, which it may hold

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time, and one of the client's."""
        self._end.cancel()
        self.held[self._whose] -= 1
        if not self.held[self._whose]:
            del self.held[self._whose]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse what is held without an end: the parser keeps a header, however long, until it is whole."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("Request head too long.")

    def on_response_complete(self) -> None:
        """Send it."""
        self._answers.flush()
        super().on_response_complete()

    def on_message_begin(self) -> None:
        """Begin to count; the parser answers 400 where too many wait."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError(f"requests: expected at most {PIPELINED} that wait, got more")
        super().on_message_begin()
        self._head = 0

    def on_url(self, url: bytes) -> None:
        """Count."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count; trailers behind a body are headers too."""
        self._count(len(name) + len(value) + HEADER_COST)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Nothing of the head is held any more."""
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser has handed on what it held."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Here too."""
        self._pending = 0
        super().on_message_complete()

    def _count(self, length: int) -> None:
        self._head += length
        if self._head > HEADER_BYTES:
            raise ValueError(f"head: expected at most {HEADER_BYTES} bytes, got more")  # the parser answers 400

    def _expire(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self.transport.abort()
        else:
            cycle.keep_alive = False


def protocol(connection_s: float, connections_per_client: int) -> type[PeerCertificateProtocol]:
    """The protocol of one listener, with its own time for a connection, in seconds, and its own count of them."""
    own = {"connection_s": connection_s, "connections_per_client": connections_per_client, "held": Counter()}
    return type("BoundedProtocol", (PeerCertificateProtocol,), own)


class WholeAnswers(Transport):
    """A transport that sends an answer when it is whole, its head together with its body.

    uvicorn writes each by itself: two records of TLS, two calls of the kernel, and a client that wakes up twice.
    """

    def __init__(self, transport: Transport) -> None:
        """Send over `transport`."""
        super().__init__()
        self._transport = transport
        self._held: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hold `data` until `flush`; a client that waits for the word to go on gets it at once."""
        if data == CONTINUE:
            self._transport.write(data)
        else:
            self._held.append(bytes(data))

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held.clear()

    def close(self) -> None:
        """Send what is held, and close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._transport.is_closing()


class _WithPeer:
    """An application that sees the certificate of one connection."""

    def __init__(self, app: ASGI3Application, certificate: bytes | None) -> None:
        self._app = app
        self._certificate = certificate

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        extensions: dict[str, Any] = {TLS_EXTENSION: {"client_certificate": self._certificate}}
        await self._app({**scope, "extensions": extensions}, receive, send)  # type: ignore[arg-type]
