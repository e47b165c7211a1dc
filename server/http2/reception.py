"""What a client's frames mean (RFC 9113): the calls that they begin, feed and end, and what the client may cost.

A call whose head and message came in one turn is handed to the application with both; one that was reset in the turn in
which it began never reaches it. Every frame that brings no request costs from the client's allowance (allowance.py); a
client that has used it up is told to calm down, and the connection is closed.
"""

import math
import struct
import time
from collections.abc import Callable, Container
from typing import Final, NamedTuple, Protocol

from hermetic.server.config import Limits
from hermetic.server.http2 import control, frames
from hermetic.server.http2.allowance import PER_REQUEST, Allowance
from hermetic.server.http2.call import Carrier, Http2Call
from hermetic.server.http2.control import Control
from hermetic.server.http2.frames import ConnectionFaultError, ErrorCode, StreamFaultError
from hermetic.server.http2.heads import LISTS_DECODED, Head, Heads, check_trailers
from hermetic.server.http2.messages import PREFIX_BYTES, Incoming
from hermetic.server.http2.tls import Place

LARGEST_FRAME: Final = 64 * 1024  # octets of payload that we take
GIVEN_BACK: Final = 1 << 20  # octets of DATA after which the connection's window is opened again
CONTINUATIONS: Final = 8  # of one header block
LEAST_DATA: Final = 64  # octets: DATA of less costs us as much, and brings nothing
FIELDS_OF_A_FRAME: Final = 16  # that cost as much as a frame
LEAST_LATE_DATA: Final = 1024  # octets: the same for DATA of a call that we have ended

_PRIORITY_BYTES: Final = 5
_WINDOW: Final = struct.Struct(">I")

_Early = tuple[Http2Call, int, bytearray, memoryview, int, int]  # what `Reception._data` takes


class Calls(Protocol):
    """Where new calls go."""

    metadata_read: Container[str]

    def accept(self, call: Http2Call) -> None:
        """Take a new call."""

    def expect(self, call: Http2Call) -> None:
        """Have `call.expire` called when its deadline has passed."""


class Owner(Carrier, control.Owner, Protocol):
    """The connection."""

    over: bool


class _Block(NamedTuple):
    """A header block of which more is to come."""

    stream: int
    flags: int
    data: bytearray
    frames: int


class Reception:
    """The receiving half of one connection. Moments are of time.monotonic()."""

    __deletable__ = ("_owner",)
    __slots__ = (
        "_block",
        "_calls",
        "_early",
        "_fresh",
        "_handlers",
        "_heads",
        "_highest",
        "_largest",
        "_limits",
        "_out",
        "_owner",
        "_streams",
        "_unreturned",
        "_window",
        "allowance",
        "control",
        "used",
    )

    def __init__(self, owner: Owner, calls: Calls, limits: Limits) -> None:
        self._owner, self._calls, self._limits = owner, calls, limits
        self._out, self._streams = owner.out, owner.streams
        self._window, self._largest = limits.stream_window_bytes, limits.message_bytes
        self._heads = Heads(limits.metadata_bytes, calls.metadata_read)
        self._highest = 0
        self._block: _Block | None = None
        self._fresh: list[Http2Call] = []
        self._early: list[_Early] = []  # DATA of calls that are fresh
        self._unreturned = 0  # octets of the connection's window
        self.control = Control(owner, self.charge)
        self.used = time.monotonic()  # when a stream was opened last
        self.allowance = Allowance(self.used)  # the client's, once it is known who that is
        self._handlers: tuple[Callable[[int, int, memoryview], None], ...] = (
            self._on_data_apart,
            self._on_headers,
            self.control.on_priority,
            self._on_reset,
            self.control.on_settings,
            self.control.on_push_promise,
            self.control.on_ping,
            self.control.on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    @property
    def highest(self) -> int:
        """The last stream that was opened."""
        return self._highest

    @property
    def in_block(self) -> bool:
        """Whether a header block has begun and not ended."""
        return self._block is not None

    def take(self, plain: Place, start: int, end: int) -> int:
        """Handle every whole frame from `start` to `end`; return where the first one begins that is not whole.

        Raises `ConnectionFaultError`.
        """
        buffer, view, unpack = plain.buffer, plain.view, frames.HEADER.unpack_from
        streams, owner = self._streams, self._owner
        while end - start >= frames.HEADER_BYTES and not owner.over:
            kind, flags, stream = unpack(buffer, start)
            length = kind >> 8
            if length > LARGEST_FRAME:
                raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} octets")
            payload = start + frames.HEADER_BYTES
            if payload + length > end:
                break
            start = payload + length
            call = streams.get(stream) if not kind & 0xFF else None
            if call is not None and not flags & frames.PADDED and self._block is None:
                self._unreturned += length
                if call.fresh:
                    self._early.append((call, flags, buffer, view, payload, start))
                else:
                    self._data(call, flags, buffer, view, payload, start)
            else:
                self._dispatch(kind & 0xFF, flags, stream & frames.STREAM_BITS, view[payload:start])
        self._accept_fresh()
        if self._unreturned >= GIVEN_BACK:
            self._out.control(frames.window_update(0, self._unreturned))
            self._unreturned = 0
        return start

    def forget(self) -> None:
        """The connection is over: nobody hears of what was not handed over.

        It and we know each other no more: a circle would keep all of it until the garbage collector comes.
        """
        self._heads.forget()
        self.control.forget()
        self._handlers = ()
        del self._owner
        self._fresh.clear()
        self._early.clear()

    def _dispatch(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        if not self.control.greeted and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "wanted SETTINGS first")
        if self._block is not None and (kind != frames.CONTINUATION or stream != self._block.stream):
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "wanted the rest of a header block")
        self.charge(1)
        handler = self._handlers[kind] if kind < len(self._handlers) else None
        if handler is None:  # section 4.1: of a type that we do not know
            return
        try:
            handler(flags, stream, payload)
        except StreamFaultError as fault:
            self._fault(stream, fault)

    def _fault(self, stream: int, fault: StreamFaultError) -> None:
        """End one stream; its call, if the application has heard of it, is cancelled."""
        self._out.control(frames.reset(stream, fault.code))
        call = self._streams.get(stream)
        if call is not None:
            call.broken()

    def _data(self, call: Http2Call, flags: int, buffer: bytearray, view: memoryview, start: int, stop: int) -> None:
        """Take DATA of an open stream; a message that lies whole in it, as almost every request's, is handed over."""
        if call.fresh:
            self._accept(call)
        if call.owed is not None and not self._counts(call, stop - start, flags):
            return
        if stop - start < PREFIX_BYTES or not call.wanted or call.half_closed or call.incoming is not None:
            self._piece(call, flags, view[start:stop])
            return
        body = start + PREFIX_BYTES
        size = stop - body
        if int.from_bytes(buffer[start + 1 : body], "big") != size or buffer[start] > 1 or size > self._largest:
            self._piece(call, flags, view[start:stop])
            return
        if call.room < stop - start or not call.permitted(size):
            self._piece(call, flags, view[start:stop])
            return
        call.room -= stop - start
        if flags & frames.END_STREAM:
            call.half_closed = True
        self.allowance.left += PER_REQUEST
        call.received(bytes(view[body:stop]), compressed=bool(buffer[start]))

    def _on_data_apart(self, flags: int, stream: int, payload: memoryview) -> None:
        """DATA that is padded, or of no open stream."""
        self.allowance.left += 1  # it is judged by its size
        self._unreturned += len(payload)
        data = frames.unpadded(payload, flags)
        self._accept_fresh()
        call = self._streams.get(stream)
        if call is None:
            self._of_closed_stream(stream, "DATA")
            self.allowance.left += len(payload) >= LEAST_LATE_DATA  # a refused upload goes on until the client knows
            return
        call.room -= len(payload) - len(data)
        if call.owed is None or self._counts(call, len(data), flags):
            self._piece(call, flags, data)

    def _counts(self, call: Http2Call, size: int, flags: int) -> bool:
        """Hold DATA against the content-length that was said (section 8.1.1); whether it may go on."""
        call.owed = owed = (call.owed or 0) - size
        if owed < 0 or (owed and flags & frames.END_STREAM):
            self._fault(call.id, StreamFaultError(ErrorCode.PROTOCOL_ERROR, "another length than content-length"))
            return False
        return True

    def _piece(self, call: Http2Call, flags: int, data: memoryview) -> None:
        """Take DATA that is not one whole message."""
        if call.half_closed:
            self._fault(call.id, StreamFaultError(ErrorCode.STREAM_CLOSED, "DATA after the end"))
            return
        call.room -= len(data)
        if call.room < 0 and (self.control.acknowledged or call.room < -frames.DEFAULT_WINDOW):
            self._fault(call.id, StreamFaultError(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window"))
            return
        if flags & frames.END_STREAM:
            call.half_closed = True
        if flags & frames.END_STREAM:
            self.allowance.left += PER_REQUEST
        elif len(data) < LEAST_DATA:
            self.charge(1)
        if self._streams.get(call.id) is not call:  # it was refused
            return
        if data:
            if call.incoming is None:
                call.incoming = Incoming(self._largest)
            call.incoming.put(data)
        call.offer()

    def _on_headers(self, flags: int, stream: int, payload: memoryview) -> None:
        if not stream:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        block = frames.unpadded(payload, flags)
        if flags & frames.PRIORITY_FLAG:
            if len(block) < _PRIORITY_BYTES:
                raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            block = block[_PRIORITY_BYTES:]
        if not flags & frames.END_HEADERS:
            self._block = _Block(stream, flags, bytearray(block), 0)
            return
        self._head(flags, stream, bytes(block))

    def _on_continuation(self, flags: int, stream: int, payload: memoryview) -> None:
        block = self._block
        if block is None:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        block.data.extend(payload)
        if len(block.data) > LISTS_DECODED * self._limits.metadata_bytes or block.frames >= CONTINUATIONS:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        self._block = block._replace(frames=block.frames + 1)
        if flags & frames.END_HEADERS:
            self._block = None
            self._head(block.flags, stream, bytes(block.data))

    def _head(self, flags: int, stream: int, block: bytes) -> None:
        """A whole header block. Many fields are work, whatever becomes of them."""
        try:
            self._place(flags, stream, block)
        finally:
            self.charge(self._heads.decoded // FIELDS_OF_A_FRAME)

    def _place(self, flags: int, stream: int, block: bytes) -> None:
        """A header block of a new request, or trailers."""
        call = self._streams.get(stream)
        if call is not None:
            self._trailers(call, flags, block)
            return
        if not stream & 1:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that clients do not open")
        if stream <= self._highest:  # perhaps trailers of a call that we have ended: they are no crime
            self._heads.fields(block)
            raise StreamFaultError(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        self._highest = stream
        head = self._heads.head(block)
        if self.control.refusing or len(self._streams) >= self._limits.streams_per_connection:
            raise StreamFaultError(ErrorCode.REFUSED_STREAM, "no room for another stream")
        if head.length and flags & frames.END_STREAM:
            raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "another length than content-length")
        self._begin(head, flags, stream)

    def _begin(self, head: Head, flags: int, stream: int) -> None:
        now = time.time()
        room = self._window if self.control.acknowledged else max(self._window, frames.DEFAULT_WINDOW)
        deadline = now + head.timeout_s
        call = Http2Call(self._owner, stream, head, deadline, room)
        self._streams[stream] = call
        self.used = time.monotonic()
        if flags & frames.END_STREAM:
            call.half_closed = True
        if head.http_status:
            call.refuse(head.http_status)
        elif head.refusal is not None:
            call.fail(*head.refusal)
        else:
            if deadline != math.inf:
                self._calls.expect(call)
            self._fresh.append(call)

    def _trailers(self, call: Http2Call, flags: int, block: bytes) -> None:
        fields = self._heads.fields(block)
        self._accept_fresh()  # its DATA, which may have come in the same turn, is before them
        if self._streams.get(call.id) is not call:
            return
        if call.half_closed:
            raise StreamFaultError(ErrorCode.STREAM_CLOSED, "HEADERS after the end")
        check_trailers(fields)
        if not flags & frames.END_STREAM or call.owed:
            raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "HEADERS in the middle")
        call.half_closed = True
        call.offer()

    def _accept_fresh(self) -> None:
        """Tell the application of the calls that have begun, and were not reset at once, and give them their DATA."""
        early, self._early = self._early, []
        for piece in early:
            if self._streams.get(piece[0].id) is piece[0]:
                self._data(*piece)
            else:
                self.charge(1)  # it came, and brings nothing
        fresh, self._fresh = self._fresh, []
        for call in fresh:
            if call.fresh and not call.over:
                self._accept(call)

    def _accept(self, call: Http2Call) -> None:
        call.fresh = False
        self._calls.accept(call)

    def _on_reset(self, _flags: int, stream: int, payload: memoryview) -> None:
        if len(payload) != _WINDOW.size:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of another size")
        call = self._streams.get(stream)
        if call is not None:
            self.charge(PER_REQUEST)  # it pays for nothing any more
            call.broken()
        else:
            self._of_closed_stream(stream, "RST_STREAM")

    def _on_window_update(self, _flags: int, stream: int, payload: memoryview) -> None:
        if len(payload) != _WINDOW.size:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size")
        increment = _WINDOW.unpack(payload)[0] & frames.STREAM_BITS
        if not stream:
            if not increment:
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a window opened by nothing")
            self._out.widen(increment)
            return
        call = self._streams.get(stream)
        if call is None:
            self._of_closed_stream(stream, "WINDOW_UPDATE")
            return
        call.window += increment
        if not increment:
            raise StreamFaultError(ErrorCode.PROTOCOL_ERROR, "a window opened by nothing")
        if call.window > frames.WINDOW_LIMIT:
            raise StreamFaultError(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is too wide")
        if call.outbox:
            self._out.mark()

    def _of_closed_stream(self, stream: int, what: str) -> None:
        """A frame of a stream that we do not have: late is fine, early is not (section 5.1)."""
        if stream > self._highest or not stream & 1:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, f"{what} on a stream that was never opened")
        self.charge(1)

    def charge(self, cost: int) -> None:
        """Take from the client's allowance; `ConnectionFaultError` where it is used up."""
        self.allowance.left -= cost
        if self.allowance.left < 0:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring no request")
