"""The transport on the public `grpc.server`: slower, behind the same seam, for a grpcio whose inside has changed.

grpc's threads take the calls; each hands its call to the owner's thread and waits. Streams from the server are
generators over a queue. The core of the test-suite runs on this too.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from grpc import _server, _utilities  # noqa: F401 - grpc imports them late, and then there are no files any more

from hermetic.errors import ConfigurationError
from hermetic.server.status import Code
from hermetic.server.timers import Timers
from hermetic.server.transport import TICK_S, Application, Listener, Peer

THREADS: Final = 64  # calls that can wait for their answer at once, streams included
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_log: Final = logging.getLogger(__name__)


class FallbackCall:
    """One RPC, seen from the owner's thread; `answers` is emptied by the thread that grpc gave the call."""

    def __init__(self, transport: "Fallback", method: str, message: bytes, context: grpc.ServicerContext) -> None:
        self.method = method
        remaining = context.time_remaining()
        self.deadline = float("inf") if remaining is None else time.time() + remaining
        self.listener: Listener | None = None
        self.answers: queue.SimpleQueue[tuple[bytes | None, Code, str]] = queue.SimpleQueue()
        self._transport = transport
        self._message: bytes | None = message
        self._context = context
        self._over = False

    def peer(self) -> Peer:
        """Return what TLS says of the other end."""
        context = self._context.auth_context()
        version, certificate = context.get("ssl_tls_version"), context.get("x509_pem_cert")
        return Peer(version[0] if version else None, certificate[0] if certificate else None)

    def listen(self, listener: Listener) -> None:
        """Ask for word of the call's end."""
        self.listener = listener
        if not self._context.add_callback(lambda: self._transport.post(self._closed)):
            self._transport.post(self._closed)

    def receive(self, listener: Listener) -> None:
        """Ask for the message: grpc has read it already."""
        if self.listener is None:
            self.listen(listener)
        message, self._message = self._message, None
        self._transport.post(lambda: listener.received(message))

    def reply(self, message: bytes, *, secret: bool = False) -> None:  # noqa: ARG002 - the seam's
        """Send the one message. A secret one is left to zero-on-free: grpc's thread sends it later."""
        self.answers.put((message, Code.OK, ""))
        self._end(delivered=True)

    def send(self, message: bytes) -> None:
        """Send one message of a stream."""
        self.answers.put((message, Code.OK, ""))

    def finish(self) -> None:
        """End a stream with status OK."""
        self.answers.put((None, Code.OK, ""))
        self._end(delivered=True)

    def fail(self, code: Code, details: str) -> None:
        """End the call with a status other than OK."""
        self.answers.put((None, code, details))
        self._end(delivered=True)

    def cancel(self) -> None:
        """Break the call off."""
        self._context.cancel()

    def _end(self, *, delivered: bool) -> None:
        self._over = True
        if self.listener is not None:
            listener = self.listener
            self._transport.post(lambda: listener.sent(delivered=delivered))

    def _closed(self) -> None:
        if self.listener is not None:
            cancelled = not self._over
            self.listener.closed(cancelled=cancelled)
        if not self._over:  # the thread that waits for an answer must go
            self.answers.put((None, Code.CANCELLED, ""))


class Fallback(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """The transport. `streams`: the methods that send more than one message."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        options: Sequence[tuple[str, int]],
        application: Application,
        streams: frozenset[str],
    ) -> None:
        """Listen on `address` (host:port); `ConfigurationError` where that is refused."""
        self._application = application
        self._streams = streams
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._timers = Timers()
        self._pool = ThreadPoolExecutor(THREADS)
        self._server = grpc.server(self._pool, handlers=(self,), options=options)
        try:
            add = self._server.add_insecure_port if credentials is None else self._server.add_secure_port
            self.port: int = add(address) if credentials is None else add(address, credentials)
        except RuntimeError as error:
            raise ConfigurationError(f"listen: wanted {address}, got {error}") from None
        self._stopping = False

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        """Return the handler of any method: the application decides which exist."""
        method = details.method
        if method in self._streams:
            return grpc.unary_stream_rpc_method_handler(lambda message, context: self._stream(method, message, context))
        return grpc.unary_unary_rpc_method_handler(lambda message, context: self._unary(method, message, context))

    def run(self) -> None:
        """Serve until `stop` has come to its end."""
        self._server.start()
        next_tick = time.monotonic() + TICK_S
        while True:
            now = time.monotonic()
            moment = min(next_tick, self._timers.next_moment() or next_tick)
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=max(0.0, moment - now))
                if event is None:
                    break
                self._guard(event)
            now = time.monotonic()
            for action in self._timers.take_due(now):
                self._guard(action)
            if now >= next_tick:
                next_tick = now + TICK_S
                self._guard(self._application.tick)
        self._pool.shutdown(wait=False)

    def post(self, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action`. From any thread."""
        self._events.put(action)

    def wake_at(self, moment: float, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action` at `moment` (monotonic seconds)."""
        self._timers.add(moment, action)

    def stop(self, grace_s: float) -> None:
        """Accept no more; let calls end for `grace_s` seconds, then cancel them; then `run` returns."""
        if self._stopping:
            return
        self._stopping = True
        stopped: threading.Event = self._server.stop(grace_s)

        def tell() -> None:
            stopped.wait()
            self._events.put(None)

        threading.Thread(target=tell, daemon=True).start()

    def _unary(self, method: str, message: bytes, context: grpc.ServicerContext) -> bytes:
        call = FallbackCall(self, method, message, context)
        self.post(lambda: self._application.accept(call))
        answer, code, details = call.answers.get()
        if answer is None:
            context.abort(_CODES[int(code)], details)
        return answer or b""

    def _stream(self, method: str, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        call = FallbackCall(self, method, message, context)
        self.post(lambda: self._application.accept(call))
        while True:
            answer, code, details = call.answers.get()
            if answer is not None:
                yield answer
            elif code == Code.OK:
                return
            else:
                context.abort(_CODES[int(code)], details)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - nothing may end the loop
            _log.exception("front loop")
