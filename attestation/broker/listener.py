"""Two listeners in one event loop: sockets, fronts, an orderly end."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, cast

import uvloop
from OpenSSL import SSL

from hermetic.attestation.broker.application import Application
from hermetic.attestation.broker.config import Limits
from hermetic.attestation.broker.front import TICK_S, Bounds, Connection, Front
from hermetic.errors import ConfigurationError

BACKLOG: Final = 2048
"""Connections that the kernel keeps until they are accepted."""
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One listener: where, with which TLS, which application; `on_end` is told when it begins to end."""

    host: str
    port: int
    tls: SSL.Context
    app: Application
    on_end: Callable[[], None] = lambda: None


class _Server:
    """One endpoint, served."""

    def __init__(self, endpoint: Endpoint, limits: Limits, bound: socket.socket) -> None:
        bounds = Bounds(limits.connections, limits.connections_per_client,
                        limits.handshake_s, limits.connection_s, limits.keep_alive_s)  # fmt: skip
        self.front = Front(endpoint.tls, endpoint.app.answer, bounds)
        self.bound = bound
        self._drain_s = limits.drain_s
        self._on_end = endpoint.on_end
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer from now on."""

        def connected() -> asyncio.Protocol:
            return cast(asyncio.Protocol, Connection(self.front))

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(connected, sock=self.bound, backlog=BACKLOG)

    async def end(self) -> None:
        """Take nothing more; what was accepted is answered, for `drain_s` at most."""
        if self._server is not None:
            self._server.close()
        self._on_end()
        self.front.leave()
        until = monotonic() + self._drain_s
        while (self.front.open or self.front.tasks) and monotonic() < until:
            await asyncio.sleep(TICK_S)
            self.front.sweep()
        tasks = list(self.front.tasks)
        self.front.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


class Listeners:
    """The listening sockets, bound when this is made; `serve` answers on them."""

    def __init__(self, endpoints: Sequence[Endpoint], limits: Limits) -> None:
        """Bind every endpoint; raises `ConfigurationError` where that fails."""
        self._stopping = False
        with contextlib.ExitStack() as undo:
            self._servers = [_Server(one, limits, undo.enter_context(_bind(one))) for one in endpoints]
            undo.pop_all()

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each endpoint, in their order."""
        return tuple(int(server.bound.getsockname()[1]) for server in self._servers)

    def close(self) -> None:
        """Close the sockets, where nothing was served on them."""
        for server in self._servers:
            server.bound.close()

    def serve(self, ready: Callable[[], None], *, signals: bool) -> None:
        """Serve until `stop` (or, with `signals`, SIGTERM or SIGINT); `ready` is called once all answer."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(ready, signals=signals))

    def stop(self) -> None:
        """Ask for the end, from any thread: what was accepted is still answered, for `drain_s` at most."""
        self._stopping = True

    async def _serve(self, ready: Callable[[], None], *, signals: bool) -> None:
        if signals:
            for number in _STOP_SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
        for server in self._servers:
            await server.start()
        ready()
        while not self._stopping:
            await asyncio.sleep(TICK_S)
            for server in self._servers:
                server.front.sweep()
        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(server.end())


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
