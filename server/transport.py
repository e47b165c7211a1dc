"""The seam between gRPC and everything above it: what a transport offers, and what it wants of the application.

Two transports stand behind it: `loop.py` on gRPC's completion queue, and `fallback.py` on the public `grpc.server`.
One thread, the owner, runs the transport and everything above it; nothing above this seam takes a lock. Only `post`
may be called from another thread.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from hermetic.server.status import Code


class Peer(NamedTuple):
    """What TLS says of the other end: protocol version and leaf certificate as PEM; None where there is none."""

    tls_version: bytes | None
    certificate: bytes | None


class Listener(Protocol):
    """What the application tells a transport to call for one call; always on the owner's thread."""

    def received(self, message: bytes | None) -> None:
        """Take the message that was asked for; None where the client has closed its side without (another) one."""

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
    listener: Listener | None

    def peer(self) -> Peer:
        """Return what TLS says of the other end."""

    def metadata(self, key: str) -> str | None:
        """Return the first value that the client sent under `key` (lower case, not binary), or None."""

    def listen(self, listener: Listener) -> None:
        """Ask for word of the call's end, and for no message yet. At most once, before `receive`."""

    def receive(self, listener: Listener) -> None:
        """Ask for the next message; the first time also for word of the call's end."""

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Send the one message of a unary call, and status OK; overwrite a `secret` one when gRPC has its copy."""

    def send(self, message: bytes, *, secret: bool = False) -> None:
        """Send one message of a stream; overwrite a `secret` one when gRPC has its copy."""

    def finish(self) -> None:
        """End a stream with status OK."""

    def fail(self, code: Code, details: str) -> None:
        """End the call with a status other than OK."""

    def address(self) -> str:
        """Return where the call comes from, as gRPC writes it: `ipv4:127.0.0.1:1234`, `ipv6:%5B::1%5D:1234`."""

    def drop(self) -> None:
        """End a call that has not been listened to, at the least cost: the client hears that it was cancelled."""

    def cancel(self) -> None:
        """Break the call off: for a client that does not take its answer."""


class Application(Protocol):
    """What stands above a transport."""

    def accept(self, call: Call) -> None:
        """Take a new call: ask it for its message, or end it."""

    def before_sleep(self) -> bool:
        """Do what else there is to be done, as nothing waits here; True: look again before you sleep."""

    def look(self) -> None:
        """Do what else there is to be done, at once, though something waits here: called where that goes on."""

    def tick(self) -> None:
        """Do what has become due; called about every `TICK_S` seconds."""


class Transport(Protocol):
    """A gRPC server that listens on one port."""

    port: int

    def run(self) -> None:
        """Serve on the calling thread, the owner, until `stop` has come to its end."""

    def post(self, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action`. From any thread."""

    def wake_at(self, moment: float, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action` at `moment`, as time.monotonic() counts. Owner only."""

    def stop(self, grace_s: float) -> None:
        """Accept no more; let calls end for `grace_s` seconds, then cancel them; then `run` returns. Owner only."""


TICK_S = 0.25
