"""Calls of the transport in fallback.py: unary ones, and streams in both directions.

All methods run on the owner's thread but `FallbackStream.read`, which has a thread of its own: grpc's public interface
gives messages only to a thread that waits for them. What grpc's own thread of a call takes is in `answers`.
"""

import queue
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple, Protocol

import grpc

from hermetic.server.status import Code
from hermetic.server.transport import Listener, Peer


class Owner(Protocol):
    """The transport, as its calls see it."""

    def post(self, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action`. From any thread."""


class Answer(NamedTuple):
    """A message, or the call's end where it is None."""

    message: bytes | None
    code: Code = Code.OK
    details: str = ""
    secret: bool = False


END: Final = Answer(None)


class FallbackCall:
    """One RPC, seen from the owner's thread; `answers` is emptied by the thread that grpc gave the call."""

    def __init__(self, owner: Owner, method: str, message: bytes | None, context: grpc.ServicerContext) -> None:
        self.method = method
        remaining = context.time_remaining()
        self.deadline = float("inf") if remaining is None else time.time() + remaining
        self.listener: Listener | None = None
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._owner = owner
        self._message = message
        self._context = context
        self._over = False

    def peer(self) -> Peer:
        """Return what TLS says of the other end."""
        context = self._context.auth_context()
        version, certificate = context.get("ssl_tls_version"), context.get("x509_pem_cert")
        return Peer(version[0] if version else None, certificate[0] if certificate else None)

    def metadata(self, key: str) -> str | None:
        """Return the first value that the client sent under `key`, or None."""
        return next((value for name, value in self._context.invocation_metadata() if name == key), None)

    def listen(self, listener: Listener) -> None:
        """Ask for word of the call's end, once."""
        if self.listener is None:
            self.listener = listener
            if not self._context.add_callback(lambda: self._owner.post(self._closed)):
                self._owner.post(self._closed)

    def receive(self, listener: Listener) -> None:
        """Ask for the message: grpc has read it already."""
        self.listen(listener)
        message, self._message = self._message, None
        self._owner.post(partial(listener.received, message))

    def reply(self, message: bytes, *, secret: bool = False) -> None:  # noqa: ARG002 - the seam's
        """Send the one message. A secret one is left to zero-on-free: grpc's thread sends it later."""
        self.answers.put(Answer(message))
        self._end()

    def send(self, message: bytes, *, secret: bool = False) -> None:
        """Send one message of a stream."""
        self.answers.put(Answer(message, secret=secret))

    def sent_one(self) -> None:
        """Tell the listener that a message of a stream is out of grpc's hands."""
        if self.listener is not None:
            self.listener.sent_one()

    def finish(self) -> None:
        """End a stream with status OK."""
        self.answers.put(END)
        self._end()

    def fail(self, code: Code, details: str) -> None:
        """End the call with a status other than OK."""
        self.answers.put(Answer(None, code, details))
        self._end()

    def address(self) -> str:
        """Return where the call comes from, as gRPC writes it."""
        return str(self._context.peer())

    def drop(self) -> None:
        """End the call without a word."""
        self.answers.put(Answer(None, Code.CANCELLED))

    def cancel(self) -> None:
        """Break the call off."""
        self._context.cancel()

    def _end(self) -> None:
        self._over = True
        if self.listener is not None:
            self._owner.post(partial(self.listener.sent, delivered=True))

    def _closed(self) -> None:
        """Tell the listener, and let go of it: together they would wait for the garbage collector, as an open call."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.closed(cancelled=not self._over)
        if not self._over:  # the thread that waits for an answer must go
            self.answers.put(Answer(None, Code.CANCELLED))


class FallbackStream(FallbackCall):
    """A call with any number of messages from the client; each is read when it is asked for."""

    def __init__(self, owner: Owner, method: str, messages: Iterator[bytes], context: grpc.ServicerContext) -> None:
        super().__init__(owner, method, None, context)
        self._messages = messages
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def receive(self, listener: Listener) -> None:
        """Ask for the next message."""
        self.listen(listener)
        self._wanted.put(True)  # noqa: FBT003

    def read(self) -> None:
        """Read messages as they are asked for, until the client's last or the call's end. On a thread of its own."""
        while self._wanted.get():
            try:
                message = next(self._messages, None)
            except Exception:  # noqa: BLE001 - grpc raises a bare one where the call has ended; `_closed` follows
                return
            self._owner.post(partial(self._deliver, message))
            if message is None:
                return

    def _deliver(self, message: bytes | None) -> None:
        if self.listener is not None:
            self.listener.received(message)

    def _end(self) -> None:
        super()._end()
        self._wanted.put(False)  # noqa: FBT003

    def _closed(self) -> None:
        super()._closed()
        self._wanted.put(False)  # noqa: FBT003
