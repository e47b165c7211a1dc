"""Frames that are the whole connection's, not a call's: SETTINGS, PING, GOAWAY; and those that mean nothing here."""

import struct
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from hermetic.server.http2 import frames
from hermetic.server.http2.call import Http2Call
from hermetic.server.http2.frames import ConnectionFaultError, ErrorCode, Setting
from hermetic.server.http2.outgoing import Outgoing

_PRIORITY_BYTES: Final = 5
_GOAWAY_BYTES: Final = 8
_PING_BYTES: Final = 8
_SETTING: Final = struct.Struct(">HI")


class Owner(Protocol):
    """The connection."""

    out: Outgoing
    streams: dict[int, Http2Call]

    def ponged(self, payload: bytes) -> None:
        """Take note of the answer to a PING of ours."""

    def left(self) -> None:
        """Take note that the client opens no more streams; what is open is answered."""


class Control:
    """What both sides have agreed on. `spend` takes from the client's allowance."""

    __deletable__ = ("_owner", "_spend")
    __slots__ = ("_out", "_owner", "_spend", "_streams", "acknowledged", "greeted", "refusing")

    def __init__(self, owner: Owner, spend: Callable[[int], None]) -> None:
        self._owner, self._out, self._spend = owner, owner.out, spend
        self._streams: Mapping[int, Http2Call] = owner.streams
        self.acknowledged = False  # our SETTINGS are
        self.greeted = False  # the client's first SETTINGS have come
        self.refusing = False  # new streams

    def forget(self) -> None:
        """The connection is over: know it no more."""
        del self._owner, self._spend

    def on_priority(self, _flags: int, stream: int, payload: memoryview) -> None:
        """Nothing: priorities are not looked at (section 5.3.2)."""
        if not stream:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != _PRIORITY_BYTES:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of another size")

    def on_settings(self, flags: int, stream: int, payload: memoryview) -> None:
        """Obey the client's settings, or take note that it obeys ours (section 6.5)."""
        if stream:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledged with a payload")
            self.acknowledged = True
            return
        if len(payload) % _SETTING.size:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a broken size")
        self._spend(len(payload) // _SETTING.size)
        for name, value in _SETTING.iter_unpack(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                self._spend(self._out.waiting)  # it may let each of them go on, by an octet
            self._out.obey(name, value, self._streams.values())
        self.greeted = True
        self._out.control(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def on_push_promise(self, _flags: int, _stream: int, _payload: memoryview) -> None:
        """Refuse: only servers promise (section 8.4)."""
        raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE of a client")

    def on_ping(self, flags: int, stream: int, payload: memoryview) -> None:
        """Answer, or take note of an answer (section 6.7)."""
        if stream:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != _PING_BYTES:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "PING of another size")
        if flags & frames.ACK:
            self._owner.ponged(bytes(payload))
        else:
            self._out.control(frames.frame(frames.PING, frames.ACK, 0, bytes(payload)))

    def on_goaway(self, _flags: int, stream: int, payload: memoryview) -> None:
        """Take note that the client opens no more streams (section 6.8)."""
        if stream:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < _GOAWAY_BYTES:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of another size")
        self.refusing = True
        self._owner.left()
