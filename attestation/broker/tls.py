"""TLS for the listeners: 1.3 only, client certificates, and the verified peer certificate handed to the application.

uvicorn does not put the peer's certificate into the ASGI scope. `PeerCertificateProtocol` does, for its protocol on
llhttp: the event loop calls `connection_made` after the handshake, so the certificate is verified and does not change.
It lies in `scope["extensions"]["tls"]`, the place of the ASGI TLS extension, as DER in `client_certificate`; no header
can put anything there.
"""

import ssl
from asyncio import Transport
from pathlib import Path
from typing import Any, ClassVar, Final

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hermetic.errors import ConfigurationError

TLS_EXTENSION: Final = "tls"
HEADER_BYTES: Final = 64 * 1024
"""Longest request line and headers together; a token fits."""


def server_context(
    certificate: Path, key: Path, client_authorities: tuple[Path, ...], *, certificate_required: bool
) -> ssl.SSLContext:
    """TLS 1.3 with client certificates of `client_authorities` alone; raises `ConfigurationError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED if certificate_required else ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET  # a resumed session would skip the verification of the certificate
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key)
        for authority in client_authorities:
            context.load_verify_locations(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS: cannot load {certificate}, {key} or {client_authorities}: {error}") from error
    return context


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with the peer's certificate in each request's scope, and an end to everything.

    uvicorn waits for ever for the first byte and for the rest of a body; here a connection ends `connection_s` after
    its handshake, only a request that is complete by then is still answered. It takes a head of any length; here one
    of more than `HEADER_BYTES`, and as much else that is neither head nor body, is a bad request.
    """

    connection_s: ClassVar[float] = 60.0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wrap the application, once for this connection, and start its time."""
        super().connection_made(transport)
        peer = transport.get_extra_info("ssl_object")
        self.app = _WithPeer(self.app, None if peer is None else peer.getpeercert(binary_form=True))
        self._end = self.loop.call_later(self.connection_s, self._expire)
        self._head = 0  # bytes of this request's line and headers
        self._pending = 0  # bytes since the parser said anything, which it may hold

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._end.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse what is held without an end: the parser keeps a header, however long, until it is whole."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("Request head too long.")

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._head = 0

    def on_url(self, url: bytes) -> None:
        """Count."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count; trailers behind a body are headers too."""
        self._count(len(name) + len(value))
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


def protocol(connection_s: float) -> type[PeerCertificateProtocol]:
    """The protocol with another time for a connection, in seconds."""
    return type("BoundedProtocol", (PeerCertificateProtocol,), {"connection_s": connection_s})


class _WithPeer:
    """An application that sees the certificate of one connection."""

    def __init__(self, app: ASGI3Application, certificate: bytes | None) -> None:
        self._app = app
        self._certificate = certificate

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        extensions: dict[str, Any] = {TLS_EXTENSION: {"client_certificate": self._certificate}}
        await self._app({**scope, "extensions": extensions}, receive, send)  # type: ignore[arg-type]
