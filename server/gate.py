"""The one interceptor: every RPC, fast or cold, passes identity -> access -> limits -> handler -> record.

The gate stands between a transport and the services. A call that it refuses is answered before its body is read. Each
call that reaches it ends in exactly one record, however it ends.

    1  room     the log of requests must not be behind
    2  identity who is calling (identity.py)
    3  access   may they (access.py); a method that no service has ends here too
    4  limits   cancelled calls, the deadline, bytes in flight (limits.py)
    5  handler  the service's own work; it answers with `reply` or `fail`, now or later
    6  record   audit.py, and the counts of metrics.py
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from hermetic.errors import CancelledError, DeadlineError, NotReadyError, UnsupportedError
from hermetic.server.access import AccessTable, Principal, check_access, check_every_method_has_a_rule
from hermetic.server.audit import NO_MODEL, Journal
from hermetic.server.config import Limits
from hermetic.server.identity import Identities
from hermetic.server.limits import Accounts, Usage, check_cancels, count_cancel
from hermetic.server.status import Code, Status, status_of
from hermetic.server.transport import Call

_log: Final = logging.getLogger(__name__)
_OK: Final = Status(Code.OK, "")


class Request:
    """One call on its way through the gate; what a handler works with. The transport's listener for this call."""

    __slots__ = (
        "_bytes_held",
        "_gate",
        "_started_ns",
        "_usage",
        "call",
        "ended",
        "handler",
        "model_part",
        "on_cancel",
        "principal",
        "request_bytes",
        "tenant",
        "work",
    )

    def __init__(self, gate: "Gate", call: Call) -> None:
        self._gate = gate
        self.call = call
        self._started_ns = time.monotonic_ns()
        self._usage: Usage | None = None
        self._bytes_held = 0
        self.principal: Principal | None = None
        self.tenant = ""
        self.handler: Handler | None = None
        self.model_part = NO_MODEL
        self.request_bytes = 0
        self.ended = False
        self.on_cancel: Callable[[], None] | None = None
        self.work: object = None  # the handler's own

    def admit(self, principal: Principal, usage: Usage, handler: "Handler") -> None:
        """Go on with a call that passed steps 1 to 4: ask for its message."""
        self.principal, self.tenant, self._usage, self.handler = principal, principal.tenant, usage, handler
        usage.requests += 1
        self._gate.live += 1
        self.call.receive(self)

    def received(self, message: bytes | None) -> None:
        """Take the message: steps 4 and 5."""
        if self.ended or self.handler is None or self._usage is None:
            return
        try:
            if message is None:
                raise UnsupportedError("exactly one request message is required")
            self.request_bytes = len(message)
            self._gate.accounts.take(self._usage, self.request_bytes)
            self._bytes_held += self.request_bytes
            self.handler(self, message)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, the caller gets an answer
            self.fail(error)

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Answer with `message` and status OK. A `secret` one is overwritten when gRPC has its copy."""
        if self.ended:
            return
        self._end(_OK, len(message))
        self._gate.unsent[self] = time.monotonic() + self._gate.reply_timeout_s
        self.call.reply(message, secret=secret)

    def fail(self, error: BaseException) -> None:
        """Answer with the status that `error` maps to."""
        if self.ended:
            return
        status = status_of(error)
        if status.id:
            _log.error(
                "request failed (id %s): %s",
                status.id,
                status.story,
                exc_info=error if status.code == Code.INTERNAL else None,
            )
        self._end(status, 0)
        self.call.fail(status.code, status.details)

    def finish_stream(self) -> None:
        """End a stream with status OK."""
        if not self.ended:
            self._end(_OK, 0)
            self.call.finish()

    def closed(self, *, cancelled: bool) -> None:
        """Take note of the call's end: the client went away, its deadline passed, or it has the answer."""
        if not cancelled or self.ended:
            return
        expired = self.call.deadline <= time.time()
        error = DeadlineError("the deadline has passed") if expired else CancelledError("the client cancelled")
        if not expired and self._usage is not None:
            count_cancel(self._usage, time.monotonic())
        self._end(status_of(error), 0)
        if self.on_cancel is not None:
            self.on_cancel()
        self._release()

    def sent(self, *, delivered: bool) -> None:
        """Take note that the answer has left us: its bytes are no longer held."""
        if not delivered:
            self._gate.undelivered += 1
        self._gate.unsent.pop(self, None)
        self._release()

    def _end(self, status: Status, reply_bytes: int) -> None:
        self.ended = True
        gate = self._gate
        if self._usage is not None:
            self._usage.requests -= 1
            gate.live -= 1
            if reply_bytes:
                gate.accounts.add(self._usage, reply_bytes)
                self._bytes_held += reply_bytes
        gate.record(self, status, reply_bytes, (time.monotonic_ns() - self._started_ns) // 1000)

    def _release(self) -> None:
        if self._usage is not None and self._bytes_held:
            self._gate.accounts.give_back(self._usage, self._bytes_held)
            self._bytes_held = 0
        self.on_cancel = self.work = None


Handler = Callable[[Request, bytes], None]


class Gate:
    """Admits calls to the services' methods. `live` counts admitted calls that have no answer yet."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        identities: Identities,
        access: AccessTable,
        limits: Limits,
        journal: Journal,
    ) -> None:
        """`ConfigurationError` where a method has no rule."""
        check_every_method_has_a_rule(methods)
        self._methods = dict(methods)
        self._identities = identities
        self._access = access
        self._journal = journal
        self.accounts = Accounts(limits)
        self.live = 0
        self.undelivered = 0
        self.reply_timeout_s = limits.reply_timeout_s
        self.unsent: dict[Request, float] = {}  # in order of their time-outs, as a dict keeps the order of entry
        self.requests_by_status: dict[tuple[str, Code], int] = {}

    def accept(self, call: Call) -> None:
        """Take a new call from the transport: admit or end it."""
        request = Request(self, call)
        try:
            self._journal.check_room()
        except NotReadyError as error:
            call.fail(Code.UNAVAILABLE, str(error))  # not recorded one by one: that is what there is no room for
            return
        try:
            now = time.time()
            principal = request.principal = self._access.principal(self._identities.identify(call.peer(), now))
            handler = self._methods.get(call.method)
            if handler is None:
                raise UnsupportedError("Method not found!")  # grpc.server's own text
            check_access(principal, call.method)
            usage = self.accounts.usage(principal.identity)
            check_cancels(usage, time.monotonic())
            if call.deadline <= now:
                raise DeadlineError("the deadline had passed before the call was accepted")
            request.admit(principal, usage, handler)
        except Exception as error:  # noqa: BLE001 - an error here is an answer, never the end of the loop
            request.fail(error)

    def cancel_untaken(self, now: float) -> None:
        """Break off the calls whose client has not taken its answer within `reply_timeout_s`: it would hold it for ever."""
        for request, moment in list(self.unsent.items()):
            if moment > now:
                break
            del self.unsent[request]
            request.call.cancel()

    def record(self, request: Request, status: Status, reply_bytes: int, latency_us: int) -> None:
        """Step 6: the record of `request`, and its place in the counts."""
        method = request.call.method
        if method not in self._methods:
            method = "unknown"
        key = (method, status.code)
        self.requests_by_status[key] = self.requests_by_status.get(key, 0) + 1
        self._journal.request(
            time.time(),
            method,
            request.principal,
            request.model_part,
            request.request_bytes,
            reply_bytes,
            status,
            latency_us,
        )
