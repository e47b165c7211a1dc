"""One RPC: a stream of RFC 9113, as the application sees it (transport.py's Call)."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from hermetic.errors import HermeticError, InvalidRequestError
from hermetic.server.http2 import answers
from hermetic.server.http2.frames import ErrorCode, reset, window_update
from hermetic.server.http2.heads import Head
from hermetic.server.http2.messages import Incoming
from hermetic.server.http2.outgoing import Message, Outgoing
from hermetic.server.status import Code
from hermetic.server.transport import Listener, Peer

SENDS_WAITING: Final = 64  # messages of one stream that wait for the client


class Carrier(Protocol):
    """The connection, as its calls see it."""

    out: Outgoing
    peer: Peer
    address: str
    streams: dict[int, "Http2Call"]
    stream_window: int

    def soon(self, action: Callable[[], None]) -> None:
        """Have `action` run later in this turn of the loop, when nobody is in the middle of anything."""

    def cut_off(self) -> None:
        """Close the connection, later in this turn."""

    def unexpect(self, call: "Http2Call") -> None:
        """Forget the deadline of `call`: it has ended."""


class Http2Call:
    """A call between its head and the end of its answer. `fresh`: the application has not heard of it."""

    __slots__ = (
        "_answered",
        "_connection",
        "_head",
        "_listener",
        "_permit",
        "compressed",
        "deadline",
        "fresh",
        "half_closed",
        "head_sent",
        "id",
        "incoming",
        "method",
        "outbox",
        "over",
        "owed",
        "room",
        "wanted",
        "window",
    )

    def __init__(self, connection: Carrier, stream: int, head: Head, deadline: float, room: int) -> None:
        """`deadline`: seconds, time.time(); `room`: octets that the client may send before we open its window."""
        self._connection = connection
        self.id = stream
        self._head = head
        self.method = head.method
        self.deadline = deadline
        self._listener: Listener | None = None
        self.fresh = True
        self.wanted = False  # a message
        self._permit: bool | None = None  # whether there is room for it; None: that was not asked yet
        self.compressed = False  # the message that was received last
        self.half_closed = False  # the client sends nothing more
        self.over = False
        self._answered = False
        self.incoming: Incoming | None = None  # what came in more than one piece, or was not wanted yet
        self.room = room
        self.owed = head.length  # octets of DATA that are still to come, where the client has said how many
        self.window = connection.out.first_window
        self.head_sent = False
        self.outbox: deque[Message | None] | None = None

    def peer(self) -> Peer:
        """Return what TLS says of the other end."""
        return self._connection.peer

    def address(self) -> str:
        """Return where the call comes from."""
        return self._connection.address

    def metadata(self, key: str) -> str | None:
        """Return the first value that the client sent under `key`, or None."""
        return next((value for name, value in self._head.fields if name == key), None)

    def receive(self, listener: Listener) -> None:
        """Ask for the next message; the first time also for word of the call's end."""
        self._listener = listener
        self.wanted = True
        if self.half_closed or self.incoming is not None:
            self._connection.soon(self.offer)
        else:
            self._open()

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Send the one message of a unary call, and status OK."""
        if not self._may_answer():
            return
        self._connection.out.answer(self, message, secret=secret)

    def send(self, message: bytes, *, secret: bool = False) -> None:
        """Send one message of a stream; a client that takes none for too long is cut off."""
        if self.over or self._answered:
            return
        if self.outbox is not None and len(self.outbox) >= SENDS_WAITING:
            self.cancel()
            return
        self._connection.out.put(self, Message(message, secret=secret, last=False))

    def finish(self) -> None:
        """End a stream with status OK."""
        if self._may_answer():
            self._connection.out.put(self, None)

    def fail(self, code: Code, details: str) -> None:
        """End the call with a status other than OK."""
        if self._may_answer():
            alone = not self.head_sent
            self._connection.out.fail(self, answers.failure(code, details, alone=alone), alone=alone)

    def refuse(self, status: int) -> None:
        """Answer somebody who does not speak gRPC with an HTTP status; no application has heard of the call."""
        self._answered = True
        self._connection.out.fail(self, answers.http_failure(status), alone=True)

    def drop(self) -> None:
        """End a call that has not been listened to, at the least cost: the client hears that it was cancelled."""
        self.reset(ErrorCode.CANCEL)

    def cancel(self) -> None:
        """Break the call off: for a client that does not take its answer."""
        if not self.over:
            self.reset(ErrorCode.CANCEL)
            self._connection.soon(self._tell_broken)

    def cut_off(self) -> None:
        """Close the connection that the call came by."""
        self._connection.cut_off()

    def reset(self, code: ErrorCode) -> None:
        """End the stream without an answer; the listener is not told."""
        if not self.over:
            self._connection.out.control(reset(self.id, code))
            self._leave()

    def broken(self) -> None:
        """Take note that the client, its connection, or the deadline has ended the call; tell the listener."""
        if not self.over:
            self._leave()
            self._tell_broken()

    def expire(self) -> None:
        """Take note that the deadline has passed."""
        self.end(Code.DEADLINE_EXCEEDED, "the deadline has passed")

    def end(self, code: Code, details: str) -> None:
        """End the call, with this status if there is no answer yet; tell the listener."""
        if self.over:
            return
        if self._answered:
            self.cancel()
            return
        listener, self._listener = self._listener, None
        self.fail(code, details)
        if listener is not None:
            listener.closed(cancelled=True)

    def proceed(self) -> None:
        """There is room for the message that was announced."""
        self._permit = True
        self._connection.soon(self.offer)

    def permitted(self, size: int) -> bool:
        """Whether there is room for the next message, of `size` bytes. The listener is asked once."""
        if self._permit is None:
            listener = self._listener
            self._permit = listener is not None and listener.announced(size)
        return self._permit

    def offer(self) -> None:
        """Give the listener a message, if it wants one and one is there; else see to it that the rest can come."""
        listener = self._listener
        if not self.wanted or self.over or listener is None:
            return
        if self.incoming is not None and self._offer_held(self.incoming, listener):
            return
        if self.half_closed:
            self.wanted = False
            listener.received(None)

    def received(self, message: bytes, *, compressed: bool) -> None:
        """Take a message that came whole, was wanted, and is permitted."""
        self.wanted = False
        self._permit = None
        listener = self._listener
        if listener is None:
            return
        self.compressed = compressed and bool(message)  # nothing is nothing, however it is packed; as gRPC takes it
        if compressed and self._head.encoding == "identity":
            listener.broken(
                InvalidRequestError("message: expected grpc-encoding to say how it is compressed, got none")
            )
            return
        listener.received(message)

    def _offer_held(self, incoming: Incoming, listener: Listener) -> bool:
        """Offer what is held; False where nothing is, so that the end may be told."""
        try:
            size = incoming.announced()
        except HermeticError as error:
            self.wanted = False
            listener.broken(error)
            return True
        if size < 0 and not (self.half_closed and incoming.begun):
            self._open()
            return False
        if self.half_closed and (size < 0 or incoming.lacks(size) > 0):  # before a buffer of its size is made
            self.wanted = False
            listener.broken(InvalidRequestError("message: expected all of it before the stream's end, got a part"))
            return True
        if not self.permitted(size):
            return True
        whole = incoming.take()
        if whole is not None:
            self.received(whole[1], compressed=whole[0])
        elif self.room < incoming.lacks(size):
            self._widen(max(incoming.lacks(size), self._connection.stream_window))
        return True

    def left(self) -> None:
        """Take note that the status is in the buffer: the stream is closed."""
        self._connection.streams.pop(self.id, None)
        if self.deadline != math.inf:
            self._connection.unexpect(self)
        if self.incoming is not None:
            self.incoming.forget()
            self.incoming = None

    def delivered(self) -> None:
        """Take note that the status has left us."""
        self._settle(delivered=True)

    def delivered_one(self) -> None:
        """Take note that a message of a stream has left us."""
        if self._listener is not None and not self.over:
            self._listener.sent_one()

    def undelivered(self) -> None:
        """Take note that the status will never leave us."""
        self._settle(delivered=False)

    def _may_answer(self) -> bool:
        """Whether an answer can be given; where not, the listener hears that none was."""
        if not self.over and not self._answered:
            self._answered = True
            return True
        if self.over and self._listener is not None:
            self._connection.soon(self.undelivered)
        return False

    def _open(self) -> None:
        """The next message may begin."""
        if not self.half_closed and self.room < self._connection.stream_window // 2:
            self._widen(self._connection.stream_window)

    def _widen(self, target: int) -> None:
        self._connection.out.control(window_update(self.id, target - self.room))
        self.room = target

    def _leave(self) -> None:
        self.over = True
        self._connection.out.forget(self)
        self.left()
        self._connection.out.mark()  # it may be the last one that a draining connection waited for

    def _tell_broken(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            if self._answered:
                listener.sent(delivered=False)
            listener.closed(cancelled=True)

    def _settle(self, *, delivered: bool) -> None:
        self.over = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.sent(delivered=delivered)
            listener.closed(cancelled=False)
