"""The seam between gRPC on the wire and everything above it: what the transport offers, and wants of the application.

Behind it stands http2/. One thread, the owner, runs the transport and everything above it; nothing above this seam
takes a lock. Only `post` may be called from another thread.
"""

from collections.abc import Callable, Container, Hashable
from typing import NamedTuple, Protocol

from hermetic.errors import HermeticError
from hermetic.server.status import Code


class Peer(NamedTuple):
    """What TLS says of the other end: protocol version and leaf certificate as PEM; None where there is none."""

    tls_version: bytes | None
    certificate: bytes | None


class Listener(Protocol):
    """What the application tells a transport to call for one call; always on the owner's thread."""

    def announced(self, size: int) -> bool:
        """Say whether there is room for a message of `size` bytes; where not, `Call.proceed` says when there is."""

    def received(self, message: bytes | None) -> None:
        """Take the message that was asked for; None where the client has closed its side without (another) one."""

    def broken(self, error: HermeticError) -> None:
        """Answer with `error`: the message that was asked for cannot be had."""

    def closed(self, *, cancelled: bool) -> None:
        """Take note of the call's end, once. `cancelled`: by the client, a lost connection, or its deadline."""

    def sent(self, *, delivered: bool) -> None:
        """Take note that the last message or status is out of our hands."""

    def sent_one(self) -> None:
        """Take note that a message of a stream is out of our hands, and the client's flow control let it go."""


class Call(Protocol):
    """One RPC. A unary one is `receive` once, then `reply` or `fail` once; a stream sends any number of messages."""

    method: str
    deadline: float  # seconds, as time.time() counts
    compressed: bool  # the message that was received last

    def peer(self) -> Peer:
        """Return what TLS says of the other end."""

    def metadata(self, key: str) -> str | None:
        """Return the first value that the client sent under `key` (lower case, not binary), or None."""

    def receive(self, listener: Listener) -> None:
        """Ask for the next message; the first time also for word of the call's end."""

    def proceed(self) -> None:
        """Let the message come that was announced: there is room for it now."""

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Send the one message of a unary call, and status OK; overwrite a `secret` one when it was copied."""

    def send(self, message: bytes, *, secret: bool = False) -> None:
        """Send one message of a stream; overwrite a `secret` one when it was copied."""

    def finish(self) -> None:
        """End a stream with status OK."""

    def fail(self, code: Code, details: str) -> None:
        """End the call with a status other than OK."""

    def drop(self) -> None:
        """End a call that has not been listened to, at the least cost: the client hears that it was cancelled."""

    def cancel(self) -> None:
        """Break the call off: for a client that does not take its answer."""

    def cut_off(self) -> None:
        """Close the connection that the call came by."""


class Application(Protocol):
    """What stands above a transport. `metadata_read`: the keys that it asks calls for; others are not kept."""

    metadata_read: Container[str]

    def holder(self, peer: Peer) -> Hashable:
        """Return whose connection this is: who counts as one client."""

    def accept(self, call: Call) -> None:
        """Take a new call: ask it for its message, or end it."""

    def after_turn(self) -> bool:
        """Do what was put off until everything that had come was looked at; True: there is more to be done at once."""

    def tick(self) -> None:
        """Do what has become due; called about every `TICK_S` seconds."""


class Transport(Protocol):
    """A gRPC server that listens on one port."""

    port: int

    def run(self) -> None:
        """Serve on the calling thread, the owner, until `stop` has come to its end."""

    def post(self, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action`. From any thread."""

    def watch(self, descriptor: int, readable: Callable[[], None]) -> None:
        """Have the owner's thread call `readable` whenever `descriptor` has something to read. Owner only."""

    def forget(self, descriptor: int) -> None:
        """Watch `descriptor` no more. Owner only."""

    def wake_at(self, moment: float, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action` at `moment`, as time.monotonic() counts. Owner only."""

    def stop(self, grace_s: float) -> None:
        """Accept no more; let calls end for `grace_s` seconds, then cancel them; then `run` returns. Owner only."""


TICK_S = 0.25
