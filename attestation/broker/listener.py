"""Two listeners in one event loop: sockets, uvicorn servers, an orderly end."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from typing import Final

import uvicorn
import uvloop

from hermetic.attestation.broker.application import Application
from hermetic.attestation.broker.config import Limits
from hermetic.attestation.broker.tls import protocol
from hermetic.errors import ConfigurationError

FAREWELL_S: Final = 0.5  # for the end of TLS on a connection that was closed, at a stop
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One listener: where, with which TLS, which application; `on_end` is told when it begins to end."""

    host: str
    port: int
    tls: SSLContext
    app: Application
    on_end: Callable[[], None] = lambda: None


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, because two of them share one process; says when it answers."""

    def __init__(self, config: uvicorn.Config, handshake_s: float, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s
        self._on_end = on_end
        self.answers = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's on sockets that are bound, and whoever does not complete a handshake is cut off."""
        config, loop = self.config, asyncio.get_running_loop()

        def connected() -> asyncio.Protocol:
            return config.http_protocol_class(config=config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

        self.servers = [
            await loop.create_server(
                connected, sock=one, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=self._handshake_s
            )
            for one in sockets or ()
        ]
        self.started = True
        self.answers.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_end()
        farewells = asyncio.create_task(self._end_farewells())
        await super().shutdown(sockets)
        farewells.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()  # `drain_s` is over; a TLS farewell could wait for a silent client
        await asyncio.sleep(0)

    async def _end_farewells(self) -> None:
        """Abort what we closed and the client did not: one with an idle connection does not answer a farewell."""
        while True:
            await asyncio.sleep(FAREWELL_S)
            for connection in list(self.server_state.connections):
                if connection.transport.is_closing():
                    connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listeners:
    """The listening sockets, bound when this is made; `serve` answers on them."""

    def __init__(self, endpoints: Sequence[Endpoint], limits: Limits) -> None:
        """Bind every endpoint; raises `ConfigurationError` where that fails."""
        self._limits = limits
        self._servers = [_Server(self._config(endpoint), limits.handshake_s, endpoint.on_end) for endpoint in endpoints]
        with contextlib.ExitStack() as undo:
            self._sockets = [undo.enter_context(_bind(endpoint)) for endpoint in endpoints]
            undo.pop_all()

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each endpoint, in their order."""
        return tuple(int(bound.getsockname()[1]) for bound in self._sockets)

    def close(self) -> None:
        """Close the sockets, where nothing was served on them."""
        for bound in self._sockets:
            bound.close()

    def serve(self, ready: Callable[[], None], *, signals: bool) -> None:
        """Serve until `stop` (or, with `signals`, SIGTERM or SIGINT); `ready` is called once all answer."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(ready, signals=signals))

    def stop(self) -> None:
        """Ask for the end, from any thread: what was accepted is still answered, for `drain_s` at most."""
        for server in self._servers:
            server.should_exit = True

    async def _serve(self, ready: Callable[[], None], *, signals: bool) -> None:
        if signals:
            for number in _STOP_SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
        async with asyncio.TaskGroup() as group:
            for server, bound in zip(self._servers, self._sockets, strict=True):
                group.create_task(server.serve(sockets=[bound]))
            for server in self._servers:
                await server.answers.wait()
            ready()

    def _config(self, endpoint: Endpoint) -> uvicorn.Config:
        return uvicorn.Config(
            endpoint.app,
            http=protocol(self._limits.connection_s, self._limits.connections_per_client),
            ws="none",
            lifespan="off",
            loop="none",  # `serve` has made one
            log_config=None,
            access_log=False,
            proxy_headers=False,  # an X-Forwarded-For from a client would name another address
            server_header=False,
            ssl_context_factory=lambda _config, _default: endpoint.tls,
            limit_concurrency=self._limits.connections,
            timeout_keep_alive=self._limits.keep_alive_s,
            timeout_graceful_shutdown=self._limits.drain_s,
        )


def _bind(endpoint: Endpoint) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as undo:
            bound = undo.enter_context(socket.socket(family, kind, number))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            undo.pop_all()
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {endpoint.host}:{endpoint.port}: {error.strerror}") from error
    return bound
