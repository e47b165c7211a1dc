"""A local door to a verified server, for clients that cannot verify: plain bytes in, TLS out.

Each new connection is verified before a byte goes through: a handshake of its own (who), then evidence for a new nonce,
from the holder of the very key that the handshake proved (what). All of a server's connections are closed when it does
not prove it again every `reverify_s`. Who reaches the door is served as the caller whose certificate it holds: so it
opens on loopback or a Unix socket only, and for our own user, and those that are named (neighbour.py).

Not here: HTTP/2. The bytes of a client go through as they are; the server's `:scheme` is the client's affair.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.client.evidence import ask, pinned_channel
from hermetic.client.handshake import Endpoint, Leaf, Tls, address_of, leaf_of, refused
from hermetic.client.judgement import Proof
from hermetic.client.neighbour import check_neighbour, demand_tables
from hermetic.client.policy import CallerPolicy
from hermetic.errors import ConfigurationError, HermeticError, NotReadyError, OverloadedError

__all__ = ["CONNECTIONS_LIMIT", "Door", "Forwarder"]

CONNECTIONS_LIMIT: Final = 256  # at a time
PIECE_BYTES: Final = 64 * 1024  # read at once, and held for a side that takes nothing: twice, each way
CLOSE_S: Final = 5.0  # for a connection to say goodbye

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """Where clients come in: a loopback address and port, or the path of a Unix socket."""

    address: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Door":
        """Read `127.0.0.1:8001`, `[::1]:8001` or `unix:PATH`; raises `ConfigurationError` for any other place."""
        if text.startswith("unix:"):
            return cls(text.removeprefix("unix:"))
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not port.isdecimal() or int(port) >= 1 << 16 or not _is_loopback(host):
            raise ConfigurationError(
                f"--listen: expected 127.0.0.1:PORT, [::1]:PORT or unix:PATH, got {text!r}: nothing is encrypted there"
            )
        return cls(host, int(port))

    def own_socket(self, *, others: bool) -> socket.socket:
        """Return a Unix socket at the path; without `others` only our user may connect to it. Raises `OSError`."""
        own = socket.socket(socket.AF_UNIX)
        before = os.umask(0o111 if others else 0o177)
        try:
            own.bind(self.address)
        except BaseException:
            own.close()
            raise
        finally:
            os.umask(before)
        return own

    def close(self) -> None:
        """Remove the Unix socket."""
        if self.port is None:
            Path(self.address).unlink(missing_ok=True)


class Forwarder:
    """One door to one server. Use it in one event loop: `run` until it is cancelled."""

    def __init__(
        self,
        endpoint: Endpoint,
        tls: Tls,
        policy: CallerPolicy,
        *,
        reverify_s: float,
        timeout_s: float,
        connections: int = CONNECTIONS_LIMIT,
        users: frozenset[int] | None = frozenset(),
    ) -> None:
        """Nothing is opened before `run`. `users` may come in beside our own (their numbers); None: whoever can."""
        self._endpoint = endpoint
        self._tls = tls
        self._policy = policy
        self._reverify_s = reverify_s
        self._timeout_s = timeout_s
        self._limit = connections
        self._others = users is None or bool(users)
        self._users = None if users is None else users | {os.geteuid()}
        self._context = tls.context()
        self._connections: set[asyncio.Task[None]] = set()
        self.on_proof: Callable[[Proof], None] = lambda _: None
        """Hears each proof."""
        self.on_refused: Callable[[HermeticError], None] = lambda error: _log.warning("refused: %s", error)
        """Hears why a connection was not made, or was closed."""

    async def run(self, door: Door, on_listening: Callable[[str], None]) -> None:
        """Verify the server once, open the door, and serve until cancelled; raises what the first proof raises."""
        if self._users is not None and door.port is not None:
            demand_tables()
        await self._connect_and_verify(lambda _leaf, _reader, writer: _close(writer))
        server = await self._open(door)
        try:
            on_listening(_where(server, door))
            await server.serve_forever()
        finally:
            server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            door.close()

    async def _open(self, door: Door) -> asyncio.Server:
        try:
            if door.port is not None:
                return await asyncio.start_server(self._accept, door.address, door.port, limit=PIECE_BYTES)
            return await asyncio.start_unix_server(
                self._accept, sock=door.own_socket(others=self._others), limit=PIECE_BYTES
            )
        except OSError as error:
            raise ConfigurationError(f"--listen {door.address}: {error}") from None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        try:
            if len(self._connections) >= self._limit:
                raise OverloadedError(f"connections: expected at most {self._limit}, got one more")
            self._connections.add(task)
            if self._users is not None:
                await asyncio.to_thread(check_neighbour, _socket_of(writer), self._users)
            await self._connect_and_verify(
                lambda leaf, far_reader, far_writer: self._serve(leaf, (reader, writer), (far_reader, far_writer))
            )
        except HermeticError as error:
            self.on_refused(error)
        except asyncio.CancelledError:
            pass  # the door is closed; a task that asyncio.Server made has nobody who waits for it
        finally:
            self._connections.discard(task)
            await _close(writer)

    async def _connect_and_verify(self, go_on: "GoOn") -> None:
        """Make a connection, have its holder prove what it is, and go on with it."""
        reader, writer, leaf = await self._handshake()
        try:
            await self._prove(leaf)
            await go_on(leaf, reader, writer)
        finally:
            await _close(writer)

    async def _handshake(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Leaf]:
        endpoint, name = self._endpoint, self._tls.name or self._endpoint.host
        opening = asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=self._context, server_hostname=name, limit=PIECE_BYTES
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await opening
        except ssl.SSLError as error:
            raise refused(endpoint, name, error) from None
        except OSError as error:  # also the time-out
            raise NotReadyError(f"server {endpoint}: expected an answer, got {str(error) or 'none'}") from None
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        try:
            der, protocol = connection.getpeercert(binary_form=True), connection.selected_alpn_protocol()
            leaf = leaf_of(der, protocol, name, address_of(writer.get_extra_info("peername")))
        except HermeticError:
            await _close(writer)
            raise
        return reader, writer, leaf

    async def _prove(self, leaf: Leaf) -> None:
        """Have the holder of the leaf's key prove what it is; over a channel that trusts this leaf and nothing else."""
        self.on_proof(await asyncio.to_thread(self._ask, leaf))

    def _ask(self, leaf: Leaf) -> Proof:
        with pinned_channel(self._endpoint, leaf, self._tls) as channel:
            return ask(channel, leaf, self._policy, self._timeout_s)

    async def _serve(self, leaf: Leaf, near: "Side", far: "Side") -> None:
        """Pass bytes on until one side ends, or the server does not prove it again."""
        ways = {asyncio.create_task(_pass_on(near[0], far[1])), asyncio.create_task(_pass_on(far[0], near[1]))}
        watch = asyncio.create_task(self._watch(leaf))
        try:
            done, _ = await asyncio.wait({*ways, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch in done:
                watch.result()
        finally:
            for task in (*ways, watch):
                task.cancel()
            await asyncio.gather(*ways, watch, return_exceptions=True)

    async def _watch(self, leaf: Leaf) -> None:
        """Ask for proof again and again; raises the first refusal."""
        while True:
            await asyncio.sleep(self._reverify_s)
            await self._prove(leaf)


Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GoOn = Callable[[Leaf, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _socket_of(writer: asyncio.StreamWriter) -> socket.socket:
    """What the transport has is the socket in all but its class."""
    connection: socket.socket = writer.get_extra_info("socket")
    return connection


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(PIECE_BYTES):
            target.write(piece)
            await target.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _where(server: asyncio.Server, door: Door) -> str:
    if door.port is None:
        return f"unix:{door.address}"
    host, port = server.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
