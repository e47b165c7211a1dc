"""One listener's connections: TLS below, HTTP/1.1 above, and an end to everything (docs/adr/0241).

A connection has `handshake_s` for its handshake, then `connection_s`; only a request that is complete by then is still
answered. Between requests it has `keep_alive_s`. A client (a certificate, else an address) that has
`connections_per_client` open gets no other one: what is open in all is bounded too, so one client would keep everybody
else out by holding connections.

uvloop reads and writes the sockets; what comes is decrypted in memory. A class that uvloop calls, not one that inherits
from asyncio's: so it can be compiled.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from OpenSSL import SSL

from hermetic.attestation.broker.http1 import Conversation, Exchange
from hermetic.attestation.broker.request import Peer, Request, Response
from hermetic.attestation.broker.tls import TlsBrokenError, TlsEndedError, TlsStream

FAREWELL_S: Final = 0.5
"""For the end of a connection that we have closed: what the client still sends is read until then, and dropped, because
the kernel answers what nobody reads with a reset, which may overtake our last words."""
TICK_S: Final = 0.1
"""How often ends are looked for."""

BUSY: Final = Response(b"Service Unavailable", 503, media_type="text/plain; charset=utf-8")
"""Where more connections are open than there may be."""

Answer = Callable[[Request], Awaitable[Response]]
"""Answers a request; never raises."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a listener's connections may take: how many, and for how many seconds."""

    connections: int
    connections_per_client: int
    handshake_s: float
    connection_s: float
    keep_alive_s: float


@dataclass(slots=True)
class Front:
    """What the connections of a listener share. For one event loop."""

    tls: SSL.Context
    answer: Answer
    bounds: Bounds
    open: "set[Connection]" = field(default_factory=set)
    """With those that have not shaken hands."""
    held: Counter[bytes | str] = field(default_factory=Counter)
    """Those that have, of each client."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def sweep(self) -> None:
        """End what is due."""
        now = monotonic()
        for connection in [one for one in self.open if one.until <= now]:
            connection.expire()

    def leave(self) -> None:
        """Answer what is being answered, and take nothing more."""
        for connection in list(self.open):
            connection.leave()

    def abort(self) -> None:
        """End everything at once."""
        for task in list(self.tasks):
            task.cancel()
        for connection in list(self.open):
            connection.abort()

    def enter(self, client: bytes | str) -> bool:
        """Count a connection; whether there is room for it of this client."""
        self.held[client] += 1
        return self.held[client] <= self.bounds.connections_per_client

    def depart(self, client: bytes | str) -> None:
        """Count it no more."""
        self.held[client] -= 1
        if not self.held[client]:
            del self.held[client]

    @property
    def full(self) -> bool:
        """Whether more are open than there may be."""
        return self.held.total() > self.bounds.connections


class Connection:
    """An asyncio protocol over a plain socket, by its methods; and a `Link` of its conversation."""

    def __init__(self, front: Front) -> None:
        """A connection that was accepted."""
        self.until = math.inf  # when it ends (time.monotonic), unless something happens
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._tls: TlsStream | None = None  # from the first byte on
        self._address = "unknown"
        self._client: bytes | str | None = None  # once it has shaken hands
        self._conversation: Conversation | None = None
        self._end = math.inf  # when `connection_s` is over
        self._over = False  # we have said our last word
        self._paused = False

    # -- what uvloop calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to count its time."""
        self._transport = transport
        name = transport.get_extra_info("peername")
        if name:
            self._address = str(name[0])
        self.until = monotonic() + self._front.bounds.handshake_s
        self._front.open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        del error
        self._over = True
        self._transport = None
        self._front.open.discard(self)
        if self._client is not None:
            self._front.depart(self._client)
            self._client = None
        if self._conversation is not None:
            self._conversation.lost()
            self._conversation = None

    def data_received(self, data: bytes) -> None:
        """Decrypt what has come, and take it in."""
        if self._over:
            return
        if self._tls is None:
            self._tls = TlsStream(self._front.tls)
        try:
            self._tls.feed(data)
            if self._conversation is not None or self._shaken(self._tls):
                self._converse(self._tls)
        except TlsEndedError:
            if self._conversation is not None:
                self._conversation.leave()
        except TlsBrokenError:
            self._flush(self._tls)  # why
            self.abort()
            return
        self._flush(self._tls)

    def eof_received(self) -> None:
        """Whoever sends no more gets no more: without a farewell of TLS, what was said may be half of it."""

    def pause_writing(self) -> None:
        """The client does not read."""
        if self._conversation is not None:
            self._conversation.write_on(stuck=True)

    def resume_writing(self) -> None:
        """It does again."""
        if self._conversation is not None:
            self._conversation.write_on(stuck=False)

    # -- the front's side -----------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Its time is over."""
        conversation = self._conversation
        if conversation is None or self._over:
            self.abort()
        elif conversation.answering:
            self.until = math.inf  # the answer ends it
            conversation.leave()
        elif self.until < self._end:  # nobody has asked for anything for long
            self.finish()
        else:
            self.abort()

    def leave(self) -> None:
        """Answer what is being answered, and take nothing more."""
        if self._conversation is None:
            self.abort()
        elif not self._over:
            self._conversation.leave()

    def abort(self) -> None:
        """End at once."""
        self._over = True
        if self._transport is not None:
            self._transport.abort()

    # -- the conversation's side ----------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Encrypt and send."""
        if self._tls is None or self._transport is None or self._over:
            return
        try:
            self._tls.write(data)
        except TlsBrokenError:
            self.abort()
            return
        self._flush(self._tls)

    def finish(self) -> None:
        """Say farewell; `FAREWELL_S` later it is over, if the client has not closed before."""
        if self._tls is None or self._transport is None or self._over:
            return
        self._tls.shut()
        self._flush(self._tls)
        self._over = True
        self.until = monotonic() + FAREWELL_S
        self._transport.write_eof()
        self.resume()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def rest(self) -> None:
        """Nothing is to be answered: it may stay for `keep_alive_s`."""
        if not self._over:
            self.until = min(self._end, monotonic() + self._front.bounds.keep_alive_s)

    def serve(self, exchange: Exchange) -> None:
        """Have a request answered."""
        if self._front.full and self._conversation is not None:
            exchange.keep_alive = False
            self._conversation.answered(exchange, BUSY)
            return
        task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._front.tasks.add(task)
        task.add_done_callback(self._front.tasks.discard)

    # -- ----------------------------------------------------------------------------------------------------------

    async def _serve(self, exchange: Exchange) -> None:
        if exchange.request is not None:
            response = await self._front.answer(exchange.request)
            if self._conversation is not None:
                self._conversation.answered(exchange, response)

    def _shaken(self, tls: TlsStream) -> bool:
        """Go on with the handshake; whether there may be requests now."""
        if not tls.handshake():
            return False
        certificate = tls.certificate()
        self._client = certificate or self._address
        if not self._front.enter(self._client):
            self.abort()
            return False
        self._end = self.until = monotonic() + self._front.bounds.connection_s
        self._conversation = Conversation(Peer(certificate, self._address), self)
        return True

    def _converse(self, tls: TlsStream) -> None:
        while self._conversation is not None and not self._over and (said := tls.read()):
            self.until = self._end
            self._conversation.take(said)

    def _flush(self, tls: TlsStream) -> None:
        while self._transport is not None and (records := tls.take()):
            self._transport.write(records)
