"""The transport on gRPC's own completion queue: one thread, no hand-over per call, 3-4 times `grpc.server`.

This is the only file that touches `grpc._cython.cygrpc`, which is private: grpcio is pinned, `self_test` below runs
before anything is served, and `fallback.py` offers the same seam on the public API. What each rule here prevents is in
docs/adr/0060-one-loop-on-the-completion-queue.md. In short:

- `add_http2_port` returns 0 instead of raising; `start_server_batch` returns 8 instead of raising.
- Every answer carries initial metadata; an error too, else the client hangs.
- `message()` is None when a client cancels or half-closes before its message arrives.
- Nothing may end the loop: every event is handled inside one `try`.
- An event, its tag and its call are dropped before the next `poll`: a call that is held cannot end.

Other threads only `post`: they ring the bell, an empty batch on a call that is kept for this. It completes at once and
so makes `poll` return.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import grpc
from grpc import _channel as _grpc_imports_this_late  # noqa: F401 - and then there are no files any more
from grpc._cython import cygrpc

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import ConfigurationError
from hermetic.server.status import Code
from hermetic.server.timers import Timers
from hermetic.server.transport import TICK_S, Application, Listener, Peer

EVENTS_IN_A_ROW: Final = 32  # of gRPC's, before the application looks at what else has come
CALLS_AT_ONCE: Final = 64  # calls that gRPC may hand over before we ask again, at most
SELF_TEST_TIMEOUT_S: Final = 10.0
CANCEL_GRACE_S: Final = 5.0  # seconds for cancelled calls to end
SENDS_WAITING: Final = 64  # messages of one stream that wait for the client

# The private layer is not typed.
CoreEvent: TypeAlias = Any
CoreQueue: TypeAlias = Any
CoreCall: TypeAlias = Any

_ACCEPT: Final = object()
_AT_ONCE: Final = 0.0
_TIMEOUT: Final = cygrpc.CompletionType.queue_timeout
_SHUTDOWN: Final = object()
_log: Final = logging.getLogger(__name__)


class LoopCall:
    """One RPC.

    It and its listener refer to each other. That is undone when the last event of the call has come: a call that waits
    for the garbage collector still counts as one of its connection's streams.
    """

    __slots__ = (
        "_answering",
        "_call",
        "_metadata",
        "_over",
        "_queue",
        "_sending",
        "_started",
        "deadline",
        "listener",
        "method",
    )

    def __init__(self, event: CoreEvent) -> None:
        details = event.call_details
        self._call = event.call
        self._metadata = event.invocation_metadata
        self.method: str = details.method.decode(errors="replace")
        self.deadline: float = details.deadline
        self.listener: Listener | None = None
        self._started = False  # initial metadata is sent
        self._sending = False
        self._answering = False  # the status is on its way
        self._over = False  # the call has ended
        self._queue: deque[tuple[bytes, bool] | None] | None = None  # messages, and whether they are secret; the end

    def peer(self) -> Peer:
        """Return what TLS says of the other end."""
        context = cygrpc.auth_context(self._call)
        version, certificate = context.get(b"ssl_tls_version"), context.get(b"x509_pem_cert")
        return Peer(version[0] if version else None, certificate[0] if certificate else None)

    def metadata(self, key: str) -> str | None:
        """Return the first value that the client sent under `key`, or None."""
        return next((value for name, value in self._metadata if name == key), None)

    def listen(self, listener: Listener) -> None:
        """Ask for word of the call's end, and for no message yet."""
        self.listener = listener
        self._batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)

    def receive(self, listener: Listener) -> None:
        """Ask for the next message; the first time also for word of the call's end."""
        if self.listener is None:
            self.listen(listener)
        self._batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Send the one message of a unary call, and status OK."""
        self._answering = True
        self._batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, 0, b"", 0),
            ),
            self._sent,
        )
        if secret:  # the batch has copied it
            wipe_immutable_bytes_that_nobody_else_holds(message)

    def fail(self, code: Code, details: str) -> None:
        """End the call with a status other than OK."""
        self._answering = True
        status = cygrpc.SendStatusFromServerOperation(None, int(code), details.encode(), 0)
        first = () if self._started else (cygrpc.SendInitialMetadataOperation(None, 0),)
        self._batch((*first, status), self._sent)

    def send(self, message: bytes, *, secret: bool = False) -> None:
        """Send one message of a stream; a client that takes none for too long is cut off."""
        if self._queue is None:
            self._queue = deque()
        if len(self._queue) >= SENDS_WAITING:
            self.cancel()
            return
        self._queue.append((message, secret))
        self._pump()

    def finish(self) -> None:
        """End a stream with status OK."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(None)
        self._pump()

    def address(self) -> str:
        """Return where the call comes from, as gRPC writes it."""
        return str(self._call.peer().decode())

    def drop(self) -> None:
        """Nothing: gRPC ends a call with which nothing was begun when its object goes."""

    def cancel(self) -> None:
        """Break the call off."""
        self._call.cancel(int(Code.CANCELLED), "the server broke the call off")

    def _pump(self) -> None:
        if self._sending or not self._queue:
            return
        entry = self._queue.popleft()
        first = () if self._started else (cygrpc.SendInitialMetadataOperation(None, 0),)
        self._started = True
        if entry is None:
            self._answering = True
            self._batch((*first, cygrpc.SendStatusFromServerOperation(None, 0, b"", 0)), self._sent)
            return
        self._sending = True
        message, secret = entry
        self._batch((*first, cygrpc.SendMessageOperation(message, 0)), self._stream_sent)
        if secret:  # the batch has copied it
            wipe_immutable_bytes_that_nobody_else_holds(message)

    def _batch(self, operations: Sequence[object], tag: Callable[[CoreEvent], None]) -> None:
        refused = self._call.start_server_batch(operations, tag)
        if refused:  # no event will come
            _log.error("gRPC refused a batch on %s: %d", self.method, refused)
            if self.listener is not None:
                self.listener.sent(delivered=False)

    def _received(self, event: CoreEvent) -> None:
        message = event.batch_operations[0].message()
        if message is None and not event.success:
            return  # reset, too large, bad compression: the core has answered, `_closed` follows
        if self.listener is not None:
            self.listener.received(message)

    def _closed(self, event: CoreEvent) -> None:
        listener = self.listener
        self._over = True
        if not self._answering:
            self.listener = None
        if listener is not None:
            listener.closed(cancelled=event.batch_operations[0].cancelled())

    def _sent(self, event: CoreEvent) -> None:
        listener = self.listener
        self._answering = False
        if self._over:
            self.listener = None
        if listener is not None:
            listener.sent(delivered=event.success)

    def _stream_sent(self, event: CoreEvent) -> None:
        self._sending = False
        if event.success:
            self._pump()
            if self.listener is not None:
                self.listener.sent_one()


class Loop:
    """The transport. Owner's thread: the one that calls `run`."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        options: Sequence[tuple[str, int]],
        application: Application,
        calls_at_once: int = CALLS_AT_ONCE,
    ) -> None:
        """Test the private layer, then listen on `address` (host:port); credentials None is plaintext, for tests.

        `calls_at_once`: so many calls are taken from gRPC before the first one's message is looked at.
        Raises `ConfigurationError` where the layer does not behave or the address cannot be had.
        """
        self._application = application
        self._queue = cygrpc.CompletionQueue()
        self._bell = self_test(self._queue)
        self._timers = Timers()
        self._posted: deque[Callable[[], None]] = deque()
        self._rung = False
        self._server = cygrpc.Server([(name.encode(), value) for name, value in options], xds=False)
        self._server.register_completion_queue(self._queue)
        with_credentials = () if credentials is None else (credentials._credentials,)  # noqa: SLF001 - no public way
        self.port: int = self._server.add_http2_port(address.encode(), *with_credentials)
        if not self.port:
            raise ConfigurationError(
                f"listen: wanted {address}, got a refusal: the port is in use or TLS is misconfigured"
            )
        self._server.start()
        self._stopping = False
        self._stopped = False
        self._in_a_row = 0  # events handled without a look at anything else
        for _ in range(min(calls_at_once, CALLS_AT_ONCE)):
            self._ask()

    def run(self) -> None:
        """Serve until `stop` has come to its end."""
        next_tick = time.monotonic() + TICK_S
        while not self._stopped:
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_S
                self._guard(self._application.tick)
            moment = self._timers.next_moment()
            wait = next_tick - now if moment is None else min(moment, next_tick) - now
            if wait > 0:
                self._take_event(wait)
            if moment is not None:
                for action in self._timers.take_due(time.monotonic()):
                    self._guard(action)
        self._close()

    def _take_event(self, wait_s: float) -> None:
        """Handle the next event, if one comes within `wait_s` seconds; what else there is to do comes before sleep."""
        try:
            event = self._queue.poll(deadline=_AT_ONCE)
            if event.completion_type == _TIMEOUT:
                if self._application.before_sleep():
                    return
                event = self._queue.poll(deadline=time.time() + wait_s)
                self._in_a_row = 0
            elif self._in_a_row >= EVENTS_IN_A_ROW:  # a flood of calls must not keep workers' answers waiting
                self._in_a_row = 0
                self._application.look()
            else:
                self._in_a_row += 1
            tag = event.tag
            if tag is _ACCEPT:
                self._accept(event)
            elif tag is _SHUTDOWN:
                self._stopped = True
            elif tag is not None:
                tag(event)
        except Exception:  # noqa: BLE001 - nothing may end the loop
            _log.exception("front loop")

    def post(self, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action`. From any thread."""
        self._posted.append(action)
        if not self._rung:
            self._rung = True
            self._bell.start_server_batch((), self._answer_bell)

    def wake_at(self, moment: float, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action` at `moment` (monotonic seconds)."""
        self._timers.add(moment, action)

    def stop(self, grace_s: float) -> None:
        """Accept no more; let calls end for `grace_s` seconds, then cancel them; then `run` returns."""
        if self._stopping:
            return
        self._stopping = True
        self._server.shutdown(self._queue, _SHUTDOWN)
        now = time.monotonic()
        self.wake_at(now + grace_s, self._server.cancel_all_calls)
        self.wake_at(now + grace_s + CANCEL_GRACE_S, self._give_up)

    def _give_up(self) -> None:
        if not self._stopped:
            _log.error("calls did not end %.0f s after they were cancelled", CANCEL_GRACE_S)
            self._stopped = True

    def _ask(self) -> None:
        self._server.request_call(self._queue, self._queue, _ACCEPT)

    def _accept(self, event: CoreEvent) -> None:
        if not event.success:  # the server is being shut down
            return
        if not self._stopping:
            with contextlib.suppress(ValueError):  # shutdown came in between
                self._ask()
        self._application.accept(LoopCall(event))

    def _answer_bell(self, _event: CoreEvent) -> None:
        self._rung = False  # before the queue is emptied: whoever comes later rings again
        while self._posted:
            self._guard(self._posted.popleft())

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - nothing may end the loop
            _log.exception("front loop")

    def _close(self) -> None:
        self._server.destroy()
        self._bell = None
        self._queue.shutdown()
        while self._queue.poll().completion_type != cygrpc.CompletionType.queue_shutdown:
            pass


def self_test(queue: CoreQueue) -> CoreCall:
    """Prove that the private layer behaves as this file expects, and return the call that serves as the bell.

    One echo of a message over a Unix socket of our own, one cancellation seen, one empty batch completed after its
    server is gone. Raises `ConfigurationError` naming the step.
    """
    step = "names"
    try:
        server = cygrpc.Server([(b"grpc.so_reuseport", 0)], xds=False)
        server.register_completion_queue(queue)
        address = f"unix-abstract:hermetic-self-test-{os.getpid()}-{os.urandom(8).hex()}"
        step = "port"
        if not server.add_http2_port(address.encode()):
            raise RuntimeError("no port")
        server.start()
        server.request_call(queue, queue, _ACCEPT)
        with grpc.insecure_channel(address) as channel:
            step = "accept"
            answer = channel.unary_unary("/hermetic.SelfTest/Echo").future(b"hermetic", timeout=SELF_TEST_TIMEOUT_S)
            bell = _expect(queue, _ACCEPT).call
            step = "message"
            bell.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), "closed")
            bell.start_server_batch((cygrpc.ReceiveMessageOperation(0),), "received")
            if _expect(queue, "received").batch_operations[0].message() != b"hermetic":
                raise RuntimeError("another message")
            step = "cancellation"
            answer.cancel()
            if not _expect(queue, "closed").batch_operations[0].cancelled():
                raise RuntimeError("not seen")
        step = "shutdown"
        server.shutdown(queue, _SHUTDOWN)
        _expect(queue, _SHUTDOWN)
        server.destroy()
        step = "bell"
        if bell.start_server_batch((), "bell"):
            raise RuntimeError("refused")
        _expect(queue, "bell")
    except Exception as error:
        raise ConfigurationError(
            f"grpcio {grpc.__version__}: its completion queue does not behave as expected ({step}: {error}); "
            'set grpc = "grpc-server" to use the public interface'
        ) from error
    return bell


def _expect(queue: CoreQueue, tag: object) -> CoreEvent:
    event = queue.poll(deadline=time.time() + SELF_TEST_TIMEOUT_S)
    if event.tag != tag:
        raise RuntimeError(f"wanted {tag}, got {event.tag}")
    return event
