"""ModelStreamInfer: one call, many requests. They run at the same time; each ends in answers or an error of its own.

- Answers leave in the order of the requests; those of a decoupled model leave as they come.
- An error is a message of the stream, and the call lives on. With the metadata `triton_grpc_error: true` the first
  error ends the call, after the answers before it.
- The next request is read while fewer than `requests_per_stream` wait for an answer that the client has taken, and the
  client's bytes in flight allow it. HTTP/2's flow control makes the client wait.
- One message is with gRPC at a time. A client that does not take it within `reply_timeout_s` is cut off.
- Each request has its own record; the call has one at its end.

What the messages look like is in stream_messages.py, who may open how many, and when they end, in open_streams.py.
"""

import secrets
import time
from collections import deque
from typing import Final

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import CancelledError, DeadlineError, HermeticError, OverloadedError
from hermetic.server.audit import ANONYMOUS
from hermetic.server.gate import Gate, Request
from hermetic.server.limits import Usage
from hermetic.server.open_streams import OpenStreams
from hermetic.server.status import Code, Status, status_of
from hermetic.server.stream_messages import Counted, identifier, stream_record, streamed_part
from hermetic.server.streamed_request import StreamedRequest
from hermetic.server.transport import Call

AT_ONCE_BYTES: Final = 64 * 1024  # a request that is no larger is read first: it can be refused by name then
RESPONSES_WAITING: Final = 64  # answers of one stream for its client; then decoupled models wait
ID_BYTES: Final = 8  # bytes of a stream's id in records
GRPC_ERRORS: Final = "triton_grpc_error"  # metadata

_OK: Final = Status(Code.OK, "")


class Stream(Request):
    """One call of ModelStreamInfer: the transport's listener."""

    __slots__ = (
        "_closing",
        "_closing_at_once",
        "_errors_end_it",
        "_half_closed",
        "_largest",
        "_order",
        "_outgoing",
        "_reading",
        "_reply_bytes",
        "_requests",
        "_reserved",
        "_responses",
        "_sending",
        "_streams",
        "_unanswered",
        "id",
    )

    def __init__(self, gate: Gate, call: Call, moment: float, streams: OpenStreams) -> None:
        super().__init__(gate, call, moment)
        self._streams = streams
        self.id = secrets.token_hex(ID_BYTES)
        self._unanswered: dict[StreamedRequest, None] = {}  # read, and their last answer is still with us
        self._order: deque[StreamedRequest] = deque()
        self._outgoing: deque[tuple[StreamedRequest, bytes, bool]] = deque()  # whose, what, whether the last
        self._sending: tuple[StreamedRequest, int, bool] | None = None
        self._reading = True  # a message is asked for
        self._half_closed = False
        self._reserved = 0  # bytes in flight that are kept for the next request
        self._largest = 1  # bytes of the largest request so far: as large the next may be
        self._closing: BaseException | None = None
        self._closing_at_once = False
        self._errors_end_it = False
        self._requests = self._responses = self._reply_bytes = 0

    def admit(self, usage: Usage) -> None:
        """Go on with a call that passed the gate: ask for its first message."""
        self._errors_end_it = self.call.metadata(GRPC_ERRORS) == "true"
        self._streams.enter(self, usage)
        self.enter(usage)
        self.call.receive(self)

    def announced(self, size: int) -> bool:
        """Say whether there is room for a request of `size` bytes; where not, `ask` is called when there is."""
        usage = self._usage
        if self.ended or usage is None:
            return False
        if size <= AT_ONCE_BYTES:
            return True
        more = max(0, size - self._reserved)
        if more and not self._gate.intake.reserve(self, usage, more, time.monotonic()):
            return False
        self._bytes_held += more
        self._reserved += more
        return True

    def ask(self, reserved: int) -> None:
        """Let the request come: there is room for it."""
        self._bytes_held += reserved
        self._reserved += reserved
        self.call.proceed()

    def received(self, message: bytes | None) -> None:
        """Take a request, or word that there are no more."""
        self._reading = False
        self._gate.intake.arrived(self)
        if self.ended or self._usage is None:
            return
        if message is None:
            self._give_up_reserve()
            self._half_closed = True
            self._pump()
        elif self.call.compressed and not self._closing_at_once:
            self._reading = True  # the next is asked for when all of this is here
            self._gate.inflations.begin(self, self._usage, message)
        else:
            self._request(message)

    def inflated(self, message: bytes) -> None:
        """Take a request, which came compressed."""
        self._reading = False
        self._request(message)

    def _request(self, message: bytes) -> None:
        """Take a request."""
        reserved = self._give_up_reserve()
        if self._closing_at_once:
            wipe_immutable_bytes_that_nobody_else_holds(message)
            return
        request = StreamedRequest(self, len(message))
        self._requests += 1
        self.request_bytes += request.request_bytes
        self._largest = max(self._largest, request.request_bytes)
        self._unanswered[request] = None
        try:
            self._take(request, message, reserved)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, the caller gets an answer
            request.fail(error)
        self.read_on()

    def _take(self, request: StreamedRequest, message: bytes, reserved: int) -> None:
        """Handle one request; from here on its place among the answers is kept."""
        self._order.append(request)
        try:
            if self._closing is not None:
                raise self._closing
            self._gate.journal.check_room()
            self._hold(request.request_bytes, reserved)
        except Exception:
            request.id = identifier(message)
            wipe_immutable_bytes_that_nobody_else_holds(message)
            raise
        request.bytes_held = request.request_bytes
        self._streams.infer(request, message)

    def fail(self, error: BaseException) -> None:
        """End the stream with the status that `error` maps to; what it asked is let go."""
        if not self.ended:
            self._let_go(CancelledError("the stream has ended"))
            super().fail(error)

    def leave_order(self, request: StreamedRequest) -> None:
        """Let the answers of `request` go as they come."""
        self._order.remove(request)

    @property
    def crowded(self) -> bool:
        """Whether too many answers wait for the client."""
        return len(self._outgoing) >= RESPONSES_WAITING

    def answered(self, request: StreamedRequest, data: bytes) -> None:
        """Send `data`, an answer of `request`, in its turn."""
        if self.ended:
            return
        request.responses += 1
        request.reply_bytes += len(data)
        self._hold(len(data), len(data))
        if not request.ordered:
            self._queue(request, data)
        else:
            request.answer = data
            while self._order and self._order[0].ended:
                first = self._order.popleft()
                if first.answer is not None:
                    self._queue(first, first.answer)
                first.answer = None
        self._pump()

    def sent_one(self) -> None:
        """Take note that the client has taken a message."""
        if self._sending is None:
            return
        request, size, last = self._sending
        self._sending = None
        self._gate.unsent.pop(self, None)
        self._give_back(size)
        if last:
            self._settle(request)
        self._pump()

    def sent(self, *, delivered: bool) -> None:
        """Take note that the status has left us; or, before it was sent, that the call is broken."""
        if not self.ended:
            self.closed(cancelled=True)
        super().sent(delivered=delivered)

    def closed(self, *, cancelled: bool) -> None:
        """Take note of the call's end: everything of it that still waits or runs is let go."""
        if not cancelled or self.ended:
            return
        expired = self.call.deadline <= time.time()
        if not expired and self._usage is not None:
            self._gate.cancels.count(self._usage, time.monotonic())
        self._break(DeadlineError("the deadline has passed") if expired else CancelledError("the client cancelled"))

    def give_up(self) -> None:
        """Cut off a client that does not take its answers."""
        limit = self._gate.reply_timeout_s
        self._break(OverloadedError(f"answers of a stream: wanted the client to take one within {limit} s, got none"))
        self.call.cancel()

    def close(self, error: HermeticError) -> None:
        """Read no more; end with `error` when everything that was read is answered."""
        if self._closing is None:
            self._closing = error
        self._pump()

    def read_on(self) -> None:
        """Ask for the next request, if there is room for one."""
        usage = self._usage
        if self._reading or self._half_closed or self.ended or self._closing is not None or usage is None:
            return
        if len(self._unanswered) >= self._streams.requests_per_stream:
            return  # `_settle` comes back
        if not self._gate.accounts.has_room(usage, self._largest):
            self._streams.stalled.add(self)
            return
        if self._unanswered:  # their answers may come first, and take what is left; an idle stream reserves nothing
            self._hold(self._largest, self._largest)
            self._reserved = self._largest
        self._reading = True
        self.call.receive(self)

    def _queue(self, request: StreamedRequest, data: bytes) -> None:
        if self._closing_at_once:
            _wipe(data)
        elif request.error is not None and self._errors_end_it:
            self._closing, self._closing_at_once = request.error, True
        else:
            self._outgoing.append((request, data, request.ended))

    def _pump(self) -> None:
        """Hand the next message to the transport, or the end where there is nothing left to wait for."""
        while self._sending is None and not self.ended:
            if self._outgoing:
                self._hand_over(*self._outgoing.popleft())
            elif self._closing is not None and (self._closing_at_once or not self._unanswered):
                self.fail(self._closing)
            elif self._half_closed and not self._unanswered:
                self.finish_stream()
            else:
                return

    def _hand_over(self, request: StreamedRequest, data: bytes, last: bool) -> None:  # noqa: FBT001
        if last:
            self._record(request, request.status)
        self._responses += 1
        self._reply_bytes += len(data)
        self._sending = (request, len(data), last)
        self._gate.unsent[self] = time.monotonic() + self._gate.reply_timeout_s
        self.call.send(data, secret=True)

    def _settle(self, request: StreamedRequest) -> None:
        """Forget a request whose last answer has left us."""
        self._unanswered.pop(request, None)
        self._give_back(request.bytes_held)
        if not self._unanswered:
            self._give_up_reserve()
        self.read_on()

    def _hold(self, size: int, reserved: int) -> None:
        """Count `size` bytes in flight; `OverloadedError` where neither `reserved` nor what is left is enough."""
        if self._usage is not None:
            take = self._gate.accounts.add if size <= reserved else self._gate.accounts.take
            take(self._usage, size)
            self._bytes_held += size

    def _give_up_reserve(self) -> int:
        reserved, self._reserved = self._reserved, 0
        self._give_back(reserved)
        return reserved

    def _give_back(self, size: int) -> None:
        if self._usage is not None:
            self._gate.accounts.give_back(self._usage, size)
            self._bytes_held -= size
            if self._gate.intake.waiting:
                self._gate.intake.serve(time.monotonic())

    def _break(self, error: HermeticError) -> None:
        """End at once, without a word to the client."""
        self._let_go(error)
        self._end(status_of(error), 0)
        self._release()

    def _let_go(self, error: HermeticError) -> None:
        """Free what the requests of this stream hold: places in batches, answers."""
        status = status_of(error)
        for request in self._unanswered:
            self._record(request, request.status if request.error is not None else status)
            _wipe(request.answer)
            if not request.ended:
                request.ended = True
                if request.on_cancel is not None:
                    request.on_cancel()
        for _, data, _ in self._outgoing:
            _wipe(data)
        self._unanswered.clear()
        self._order.clear()
        self._outgoing.clear()
        self._sending = None

    def _record(self, request: StreamedRequest, status: Status) -> None:
        if request.recorded:
            return
        request.recorded = True
        self._gate.journal.request(
            request.moment,
            self.method.name,
            self.caller.who if self.caller else ANONYMOUS,
            streamed_part(request.model_part, self.id, request.responses),
            request.request_bytes,
            request.reply_bytes,
            status,
            (time.monotonic_ns() - request.started_ns) // 1000,
        )

    def _end(self, status: Status, reply_bytes: int) -> None:
        """Write the record of the call; one that was refused at the gate has that of a request."""
        usage = self._usage
        if usage is None:
            super()._end(status, reply_bytes)
            return
        self.ended = True
        self._gate.unsent.pop(self, None)
        self._gate.intake.forget(self, usage)
        self._gate.inflations.forget(self, usage)
        self._streams.leave(self, usage)
        usage.requests -= 1
        self._gate.live -= 1
        self.method.ended[status.code] = self.method.ended.get(status.code, 0) + 1
        counted = Counted(self._requests, self._responses, self.request_bytes, self._reply_bytes)
        who = self.caller.who if self.caller else ANONYMOUS
        duration_us = (time.monotonic_ns() - self._started_ns) // 1000
        self._gate.journal.append(stream_record(self._moment, self.id, who, counted, status, duration_us))


def _wipe(data: bytes | None) -> None:
    if data is not None:
        wipe_immutable_bytes_that_nobody_else_holds(data)
