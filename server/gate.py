"""The one interceptor: every RPC, fast or cold, passes identity -> access -> limits -> handler -> record.

The gate stands between a transport and the services. A call that it refuses is answered before its body is read. Each
call that reaches it ends in exactly one record, however it ends.

    1  room     the log of requests must not be behind
    2  identity who is calling (callers.py, identity.py)
    3  access   may they (access.py); a method that no service has ends here too
    4  limits   cancelled calls, the deadline (limits.py), room for the message once its size is known (intake.py)
    5  handler  the service's own work; it answers with `reply` or `fail`, now or later
    6  record   audit.py, and the counts of metrics.py
"""

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Final

from mypy_extensions import mypyc_attr

from hermetic.errors import (
    CancelledError,
    DeadlineError,
    HermeticError,
    NotReadyError,
    OverloadedError,
    UnsupportedError,
)
from hermetic.server.access import RULES, AccessTable, check_access, check_every_method_has_a_rule
from hermetic.server.audit import ANONYMOUS, NO_MODEL, Journal, dropped_record
from hermetic.server.callers import Caller, Callers
from hermetic.server.config import Limits, Role
from hermetic.server.identity import Identities
from hermetic.server.inflating import Inflations
from hermetic.server.intake import Intake
from hermetic.server.limits import Accounts, Cancels, Usage
from hermetic.server.status import Code, Status, status_of
from hermetic.server.transport import Call, Peer

_log: Final = logging.getLogger(__name__)
REPLY_COPIES: Final = 2  # of a reply that the client has not taken: as it is, and encrypted
_OK: Final = Status(Code.OK, "")


@mypyc_attr(allow_interpreted_subclasses=True)
class Request:
    """One call on its way through the gate; what a handler works with. The transport's listener for this call."""

    __slots__ = (
        "_bytes_held",
        "_expected",
        "_gate",
        "_moment",
        "_started_ns",
        "_usage",
        "call",
        "caller",
        "ended",
        "method",
        "model_part",
        "on_cancel",
        "request_bytes",
    )

    def __init__(self, gate: "Gate", call: Call, moment: float) -> None:
        self._gate = gate
        self.call = call
        self._moment = moment
        self._started_ns = time.monotonic_ns()
        self.method = gate.unknown
        self._usage: Usage | None = None  # once admitted
        self._bytes_held = 0
        self._expected = 0  # of the bytes held: for the reply
        self.caller: Caller | None = None  # once identified
        self.model_part = NO_MODEL
        self.request_bytes = 0
        self.ended = False
        self.on_cancel: Callable[[], None] | None = None

    @property
    def started_ns(self) -> int:
        """When the call arrived, nanoseconds of CLOCK_MONOTONIC."""
        return self._started_ns

    @property
    def tenant(self) -> str:
        """The caller's tenant."""
        return self.caller.principal.tenant if self.caller else ""

    @property
    def usage(self) -> Usage | None:
        """What the caller holds at the moment, once admitted."""
        return self._usage

    def admit(self, usage: Usage) -> None:
        """Go on with a call that passed steps 1 to 3: ask for its message."""
        self.enter(usage)
        self._gate.intake.expect(self, time.monotonic())
        self.call.receive(self)

    def enter(self, usage: Usage) -> None:
        """Count a call that passed steps 1 to 3."""
        self._usage = usage
        usage.requests += 1
        self._gate.live += 1

    def announced(self, size: int) -> bool:
        """Say whether there is room for a message of `size` bytes (4); where not, `ask` is called when there is."""
        usage = self._usage
        if self.ended or usage is None or not self._gate.intake.reserve(self, usage, size, time.monotonic()):
            return False
        self._bytes_held = size
        return True

    def ask(self, reserved: int) -> None:
        """Let the message come: there is room for it."""
        self._bytes_held = reserved
        self.call.proceed()

    def received(self, message: bytes | None) -> None:
        """Take the message: step 5."""
        usage = self._usage
        if self.ended or usage is None:
            return
        try:
            gate = self._gate
            gate.intake.arrived(self)
            if message is None:
                raise UnsupportedError("exactly one request message is required")
            if self.call.compressed:
                gate.inflations.begin(self, usage, message)
                return
            self.request_bytes = len(message)
            self.method.handler(self, message)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, the caller gets an answer
            self.fail(error)

    def inflated(self, message: bytes) -> None:
        """Take the message, which came compressed: step 5."""
        usage = self._usage
        if self.ended or usage is None:
            return
        try:
            self._gate.accounts.take(usage, len(message) - self._bytes_held)
            self._bytes_held = len(message)
            self.request_bytes = len(message)
            self.method.handler(self, message)
        except Exception as error:  # noqa: BLE001 - as above
            self.fail(error)

    def broken(self, error: HermeticError) -> None:
        """Answer with `error`: the message cannot be had."""
        self.fail(error)

    def expect_reply(self, size: int) -> None:
        """Count `size` bytes for a reply that is not there yet: whoever asks little for much is held back too."""
        if self._usage is not None and not self.ended:
            self._expected = REPLY_COPIES * size
            self._gate.accounts.add(self._usage, self._expected)
            self._bytes_held += self._expected

    def take_reply(self, size: int) -> None:
        """Count a reply of `size` bytes before it is made; `OverloadedError` where too many are left unread."""
        if self._usage is not None and not self.ended:
            more = REPLY_COPIES * size - self._expected
            self._gate.accounts.take(self._usage, more)
            self._expected += more
            self._bytes_held += more

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Answer with `message` and status OK. A `secret` one is overwritten when it was copied."""
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
            _log.error("request failed (id %s): %s", status.id, status.story)
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
            self._gate.cancels.count(self._usage, time.monotonic())
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

    def sent_one(self) -> None:
        """Nothing: an answer of one message waits for `sent`, and what watches sends little."""

    def give_up(self) -> None:
        """Break off: the client does not take its answer."""
        self.call.cancel()

    def _end(self, status: Status, reply_bytes: int) -> None:
        """Step 6."""
        self.ended = True
        gate, usage, method = self._gate, self._usage, self.method
        if usage is not None:
            usage.requests -= 1
            gate.live -= 1
            if not self.request_bytes:  # its message may not have arrived
                gate.intake.forget(self, usage)
                gate.inflations.forget(self, usage)
            if reply_bytes:
                more = REPLY_COPIES * reply_bytes - self._expected
                gate.accounts.add(usage, more)
                self._bytes_held += more
        method.ended[status.code] = method.ended.get(status.code, 0) + 1
        gate.journal.request(
            self._moment,
            method.name,
            self.caller.who if self.caller else ANONYMOUS,
            self.model_part,
            self.request_bytes,
            reply_bytes,
            status,
            (time.monotonic_ns() - self._started_ns) // 1000,
        )

    def _release(self) -> None:
        if self._usage is not None and self._bytes_held:
            gate = self._gate
            gate.accounts.give_back(self._usage, self._bytes_held)
            self._bytes_held = 0
            if gate.intake.waiting:
                gate.intake.serve(time.monotonic())
        self.on_cancel = None


Handler = Callable[[Request, bytes], None]
Opener = Callable[["Gate", Call, float], Request]
"""Makes what listens to a call; for a method whose calls are no plain requests."""


class Method:
    """One method of a service: its handler, the roles of which one is enough, and how its calls have ended so far.

    `open` makes the listener of a call; one that is not a plain `Request` has no use for `handler`.
    """

    __slots__ = ("ended", "handler", "name", "open", "roles")

    def __init__(self, name: str, handler: Handler, roles: frozenset[Role], opener: Opener = Request) -> None:
        self.name = name
        self.handler = handler
        self.roles = roles
        self.open = opener
        self.ended: dict[int, int] = {}


class Gate:
    """Admits calls to the services' methods. `live` counts admitted calls that have no answer yet."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        identities: Identities,
        access: AccessTable,
        limits: Limits,
        journal: Journal,
        streams: Mapping[str, Opener] = MappingProxyType({}),
        accounts: Accounts | None = None,
    ) -> None:
        """`streams`: methods with many messages. Without `accounts` this gate counts for itself alone.

        Raises `ConfigurationError` where a method has no rule.
        """
        check_every_method_has_a_rule((*methods, *streams))
        self._methods = {name: Method(name, handler, RULES[name]) for name, handler in methods.items()}
        self._methods |= {name: Method(name, _refuse, RULES[name], opener) for name, opener in streams.items()}
        self.unknown = Method("unknown", _refuse, frozenset())
        self.journal = journal
        self.accounts = accounts or Accounts(limits)
        self._callers = Callers(identities, access, self.accounts)
        self.intake = Intake(self.accounts, limits)
        self.cancels = Cancels(limits)
        self.inflations = Inflations(self.accounts, self.cancels, limits)
        self.live = 0
        self.undelivered = 0
        self.dropped = 0  # calls of callers that cancelled too many
        self.reply_timeout_s = limits.reply_timeout_s
        self.unsent: dict[Request, float] = {}  # in order of their time-outs, as a dict keeps the order of entry

    def holder(self, peer: Peer) -> Hashable:
        """Return who counts as one client: an identity, or a certificate that is nobody's."""
        return self._callers.holder(peer, time.time())

    def accept(self, call: Call) -> None:
        """Take a new call from the transport: admit or end it."""
        now = time.time()
        try:
            self.journal.check_room()  # (1)
        except NotReadyError as error:
            call.fail(Code.UNAVAILABLE, str(error))  # not recorded one by one: that is what there is no room for
            return
        method = self._methods.get(call.method)
        request = Request(self, call, now) if method is None else method.open(self, call, now)
        try:
            if method is not None:
                request.method = method
            caller = request.caller = self._callers.identified(call.peer(), now)  # (2)
            if caller.deafness.until > now:
                caller.deafness.drop(now)
                call.drop()
                call.cut_off()
                return
            if method is None:
                raise UnsupportedError("Method not found!")  # grpc.server's own text
            check_access(caller.principal, method.roles)  # (3)
            if caller.usage.cancels:
                self._check_cancels(caller, now)  # (4)
            if call.deadline <= now:
                raise DeadlineError("the deadline had passed before the call was accepted")
            request.admit(caller.usage)
        except Exception as error:  # noqa: BLE001 - an error here is an answer, never the end of the loop
            request.fail(error)

    def _check_cancels(self, caller: Caller, now: float) -> None:
        try:
            self.cancels.check(caller.usage, time.monotonic())
        except OverloadedError:
            caller.deafness.refused(now)
            raise

    def configure(self, identities: Identities, access: AccessTable, limits: Limits) -> None:
        """Judge every call by these from now on, those of open connections too: nothing that was decided is kept."""
        self._callers.configure(identities, access)
        for holder in (self.accounts, self.intake, self.cancels):
            holder.limit(limits)
        self.journal.bound = limits.records_waiting

    def check_again(self, request: Request) -> None:
        """Raise unless the caller of a call that is open would be let in now, and as the same tenant."""
        self._callers.check_again(request.call.peer(), request.method.roles, request.tenant, time.time())

    def ended(self) -> dict[tuple[str, Code], int]:
        """Return how many calls have ended, by method and status."""
        methods = (*self._methods.values(), self.unknown)
        return {(method.name, Code(code)): count for method in methods for code, count in method.ended.items()}

    def expire(self, now: float) -> None:
        """Look at the clocks; end the calls that keep us waiting: for a message, or for their answer to be taken."""
        self._callers.look_at_the_clocks()
        self.intake.expire(now)
        self.intake.serve(now)
        self._note_dropped()
        self._cancel_untaken(now)

    def _note_dropped(self) -> None:
        """One record for all calls of a caller that were dropped since the last."""
        for caller in self._callers.met():
            if dropped := caller.deafness.take_dropped():
                self.dropped += dropped
                self.journal.append(dropped_record(caller.who, dropped))

    def _cancel_untaken(self, now: float) -> None:
        """Break off calls whose client has not taken its answer within `reply_timeout_s`: we would hold it for ever."""
        for request, moment in list(self.unsent.items()):
            if moment > now:
                break
            del self.unsent[request]
            request.give_up()


def _refuse(_request: Request, _message: bytes) -> None:
    raise UnsupportedError("Method not found!")
