"""The transport on the public `grpc.server`: slower, behind the same seam, for a grpcio whose inside has changed.

grpc's threads take the calls; each hands its call to the owner's thread and waits. Streams are generators over a queue
(fallback_calls.py). The core of the test-suite runs on this too.
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

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import ConfigurationError
from hermetic.server.fallback_calls import FallbackCall, FallbackStream
from hermetic.server.status import Code
from hermetic.server.timers import Timers
from hermetic.server.transport import TICK_S, Application

THREADS: Final = 64  # calls that can wait for their answer at once, streams included
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_log: Final = logging.getLogger(__name__)


class Fallback(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """The transport. `streams`: the methods that take or send more than one message."""

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
            # A client that sends one message only does not see the difference.
            return grpc.stream_stream_rpc_method_handler(
                lambda messages, context: self._stream(method, messages, context)
            )
        return grpc.unary_unary_rpc_method_handler(lambda message, context: self._unary(method, message, context))

    def run(self) -> None:
        """Serve until `stop` has come to its end."""
        self._server.start()
        next_tick = time.monotonic() + TICK_S
        while True:
            now = time.monotonic()
            moment = min(next_tick, self._timers.next_moment() or next_tick)
            if self._events.empty() and self._application.before_sleep():
                continue
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
        answer = call.answers.get()
        if answer.message is None:
            context.abort(_CODES[int(answer.code)], answer.details)
        return answer.message or b""

    def _stream(self, method: str, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        call = FallbackStream(self, method, messages, context)
        threading.Thread(target=call.read, name="stream", daemon=True).start()
        self.post(lambda: self._application.accept(call))
        while True:
            answer = call.answers.get()
            if answer.message is not None:
                yield answer.message  # grpc comes back for the next when this one is sent
                if answer.secret:
                    wipe_immutable_bytes_that_nobody_else_holds(answer.message)
                self.post(call.sent_one)
            elif answer.code == Code.OK:
                return
            else:
                context.abort(_CODES[int(answer.code)], answer.details)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - nothing may end the loop
            _log.exception("front loop")
