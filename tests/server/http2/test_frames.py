"""Frames (RFC 9113 sections 4 and 6): which ones are taken in any shape, and which ones end the connection."""

import struct

import pytest

from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    MAX_FRAME,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Peer,
    block,
    fields,
    frame,
    indexed,
    message,
    padded,
    reset,
    window_update,
)  # fmt: skip

WHOLE = END_HEADERS | END_STREAM
HEAD = block(fields("/test/Echo"))
UNASKED = block(fields("/test/Unasked"))
BODY = message(b"sound")


def expect_end(peer: Peer, *codes: int) -> None:
    """A connection error with one of these codes."""
    goaway = peer.end()
    assert goaway is not None, "closed without a word"
    assert goaway.code in codes, goaway


def opened(peer: Peer) -> int:
    """A call that stays open: nobody has asked for its message."""
    stream = peer.stream()
    peer.send(frame(HEADERS, END_HEADERS, stream, UNASKED))
    return stream


# ---------------------------------------------------------------------------------------------------------------------
# What is taken


@pytest.mark.parametrize("kind", [10, 11, 0x42, 0xFF])
def test_4_1_and_5_5_unknown_types_are_ignored(peer: Peer, kind: int) -> None:
    stream = peer.stream()
    peer.send(frame(kind, 0xFF, 0, b"x" * 100), frame(kind, 0, 1), frame(kind, 0, LARGEST_WINDOW))
    peer.send(peer.opening(stream), frame(kind, 0xFF, stream, b"y"), frame(DATA, END_STREAM, stream, BODY))
    assert peer.answer(stream).messages == [b"sound"]


def test_4_1_unknown_flags_are_ignored(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(frame(HEADERS, 0x42 | 0x10 | 0x80 | END_HEADERS, stream, HEAD))
    peer.send(frame(DATA, 0x76 | 0x80 | END_STREAM, stream, BODY), frame(PING, 0xFE, 0, bytes(8)))
    assert peer.read_until(PING).flags == ACK
    assert peer.answer(stream).messages == [b"sound"]


def test_4_1_the_reserved_bit_is_ignored(peer: Peer) -> None:
    stream, bit = peer.stream(), 1 << 31
    peer.send(frame(HEADERS, END_HEADERS, stream | bit, HEAD), frame(PING, 0, bit, b"reserved"))
    peer.send(frame(WINDOW_UPDATE, 0, bit, (bit | 5).to_bytes(4, "big")), frame(DATA, END_STREAM, stream | bit, BODY))
    assert peer.read_until(PING).payload == b"reserved"
    assert peer.answer(stream).messages == [b"sound"]


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_6_1_padded_data(peer: Peer, padding: int) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream), frame(DATA, PADDED, stream, padded(BODY[:3], padding)))
    peer.send(frame(DATA, PADDED, stream, padded(b"", padding)), frame(DATA, 0, stream))
    peer.send(frame(DATA, PADDED | END_STREAM, stream, padded(BODY[3:], padding)))
    assert peer.answer(stream).messages == [b"sound"]


@pytest.mark.parametrize("flags", [0, PADDED, WITH_PRIORITY, PADDED | WITH_PRIORITY])
@pytest.mark.parametrize("parts", [1, 2, 9])
def test_6_2_and_6_10_headers_in_every_shape(peer: Peer, flags: int, parts: int) -> None:
    stream = peer.stream()
    step = -(-len(HEAD) // parts)
    cut = [HEAD[at : at + step] for at in range(0, len(HEAD), step)]
    first = (b"\x80\0\0\3\xff" if flags & WITH_PRIORITY else b"") + cut[0]
    if flags & PADDED:
        first = padded(first, 9)
    peer.send(frame(HEADERS, flags | (END_HEADERS if parts == 1 else 0), stream, first))
    for at, part in enumerate(cut[1:], 2):
        peer.send(frame(CONTINUATION, END_HEADERS if at == len(cut) else 0, stream, part))
    peer.send(frame(DATA, END_STREAM, stream, BODY))
    assert peer.answer(stream).messages == [b"sound"]


def test_6_2_end_of_stream_on_headers_that_go_on(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(frame(HEADERS, END_STREAM, stream, HEAD[:9]), frame(CONTINUATION, END_HEADERS, stream, HEAD[9:]))
    assert peer.answer(stream).status == 12


def test_6_2_a_header_block_may_be_empty_at_first(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(frame(HEADERS, 0, stream), frame(CONTINUATION, 0, stream, HEAD), frame(CONTINUATION, END_HEADERS, stream))
    peer.send(frame(DATA, END_STREAM, stream, BODY))
    assert peer.answer(stream).messages == [b"sound"]


def test_5_1_and_6_3_priority_is_taken_on_every_stream_in_every_state(peer: Peer) -> None:
    used = peer.call("/test/Echo", b"1")
    peer.answer(used)
    waiting = opened(peer)
    for stream in (used, waiting, waiting + 2, waiting + 1001, LARGEST_WINDOW):
        for depends in (0, 1, stream, 1 << 31):  # 9113 5.3.2: on itself too, it is not looked at
            peer.send(frame(PRIORITY, 0, stream, struct.pack(">IB", depends, 255)))
    peer.echo()


def test_6_4_and_7_reset_with_a_code_that_nobody_knows(peer: Peer, serving: Serving) -> None:
    serving.application.seen.clear()
    peer.send(reset(peer.call("/test/Never"), 0xFFFFFFFF))
    peer.echo()
    stream = peer.call("/test/Echo", b"last")
    peer.send(frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0xFE) + b"words"))
    assert peer.answer(stream).messages == [b"last"]


def test_6_7_ping_is_answered_with_its_bytes(peer: Peer) -> None:
    peer.send(frame(PING, 0, 0, b"\0\xff12345\n"))
    got = peer.read_until(PING)
    assert (got.flags, got.payload) == (ACK, b"\0\xff12345\n")


def test_6_7_an_answer_to_no_ping_is_ignored(peer: Peer) -> None:
    peer.send(frame(PING, ACK, 0, b"nobody's"), frame(PING, 0, 0, b"somebody"))
    assert peer.read_until(PING).payload == b"somebody"


def test_4_2_a_frame_as_large_as_the_server_takes(peer: Peer) -> None:
    peer.settle()
    size = peer.settings.get(MAX_FRAME, 16384)
    size = min(size, peer.settings[INITIAL_WINDOW])  # beyond the window is another matter
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Sink"), frame(DATA, END_STREAM, stream, message(bytes(size - 5))))
    assert peer.answer(stream).messages == [b"1"]


# ---------------------------------------------------------------------------------------------------------------------
# What ends the connection


@pytest.mark.parametrize("kind", [DATA, HEADERS, CONTINUATION, PRIORITY, PING, SETTINGS := 4, GOAWAY, 0x42])
def test_4_2_a_larger_frame(peer: Peer, kind: int) -> None:
    """It is refused by its header: the server does not wait for the rest."""
    peer.settle()
    size = peer.settings.get(MAX_FRAME, 16384) + 1
    stream = opened(peer) if kind == DATA else 0 if kind in (PING, SETTINGS, GOAWAY) else peer.stream()
    peer.send(size.to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big"))
    expect_end(peer, FRAME_SIZE_ERROR)


AFTER_OPEN = {
    "6.1 data on stream 0": (frame(DATA, 0, 0, b"x"), (PROTOCOL_ERROR,)),
    "6.1 padding as long as the frame": (frame(DATA, PADDED, 1, b"\x05four"), (PROTOCOL_ERROR,)),
    "6.1 padding longer than the frame": (frame(DATA, PADDED, 1, b"\xff"), (PROTOCOL_ERROR,)),
    "6.1 padded without a length": (frame(DATA, PADDED, 1), (PROTOCOL_ERROR, FRAME_SIZE_ERROR)),
    "6.2 headers on stream 0": (frame(HEADERS, WHOLE, 0, HEAD), (PROTOCOL_ERROR,)),
    "6.2 headers padded too much": (frame(HEADERS, WHOLE | PADDED, 3, b"\xff" + HEAD), (PROTOCOL_ERROR,)),
    "6.2 headers padded without a length": (frame(HEADERS, WHOLE | PADDED, 3), (PROTOCOL_ERROR, FRAME_SIZE_ERROR)),
    "6.2 headers without room for their priority": (
        frame(HEADERS, WHOLE | WITH_PRIORITY, 3, b"\0\0\0\0"),
        (PROTOCOL_ERROR, FRAME_SIZE_ERROR),
    ),
    "5.1.1 an even stream": (frame(HEADERS, WHOLE, 2, HEAD), (PROTOCOL_ERROR,)),
    "6.3 priority on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), (PROTOCOL_ERROR,)),
    "6.4 reset of stream 0": (frame(RST_STREAM, 0, 0, bytes(4)), (PROTOCOL_ERROR,)),
    "6.4 reset of an idle stream": (frame(RST_STREAM, 0, 3, bytes(4)), (PROTOCOL_ERROR,)),
    "6.4 reset too short": (frame(RST_STREAM, 0, 1, bytes(3)), (FRAME_SIZE_ERROR,)),
    "6.4 reset too long": (frame(RST_STREAM, 0, 1, bytes(5)), (FRAME_SIZE_ERROR,)),
    "8.4 push promise": (frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + HEAD), (PROTOCOL_ERROR,)),
    "6.7 ping on a stream": (frame(PING, 0, 1, bytes(8)), (PROTOCOL_ERROR,)),
    "6.7 ping too short": (frame(PING, 0, 0, bytes(7)), (FRAME_SIZE_ERROR,)),
    "6.7 ping too long": (frame(PING, 0, 0, bytes(9)), (FRAME_SIZE_ERROR,)),
    "6.8 goaway on a stream": (frame(GOAWAY, 0, 1, bytes(8)), (PROTOCOL_ERROR,)),
    "6.8 goaway too short": (frame(GOAWAY, 0, 0, bytes(7)), (FRAME_SIZE_ERROR,)),
    "6.9 window of zero": (window_update(0, 0), (PROTOCOL_ERROR,)),
    "6.9 window update too short": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), (FRAME_SIZE_ERROR,)),
    "6.9 window update too long": (frame(WINDOW_UPDATE, 0, 1, bytes(5)), (FRAME_SIZE_ERROR,)),
    "6.9.1 window too large": (window_update(0, LARGEST_WINDOW), (FLOW_CONTROL_ERROR,)),
    "5.1 data on an idle stream": (frame(DATA, 0, 3, b"x"), (PROTOCOL_ERROR,)),
    "5.1 window of an idle stream": (window_update(3, 1), (PROTOCOL_ERROR,)),
    "5.1 window of an idle even stream": (window_update(2, 1), (PROTOCOL_ERROR,)),
    "5.1 continuation on an idle stream": (frame(CONTINUATION, END_HEADERS, 3, HEAD), (PROTOCOL_ERROR,)),
    "6.10 continuation after nothing": (frame(CONTINUATION, END_HEADERS, 1, HEAD), (PROTOCOL_ERROR,)),
    "6.10 continuation on stream 0": (frame(CONTINUATION, END_HEADERS, 0, HEAD), (PROTOCOL_ERROR,)),
    "6.10 continuation after the end": (
        frame(HEADERS, END_HEADERS, 3, HEAD) + frame(CONTINUATION, END_HEADERS, 3, HEAD),
        (PROTOCOL_ERROR,),
    ),
    "6.10 continuation after data": (
        frame(DATA, 0, 1, b"x") + frame(CONTINUATION, END_HEADERS, 1, HEAD),
        (PROTOCOL_ERROR,),
    ),
    "4.3 a block that cannot be decoded": (frame(HEADERS, WHOLE, 3, indexed(0)), (COMPRESSION_ERROR,)),
}


@pytest.mark.parametrize("name", AFTER_OPEN)
def test_a_connection_error(peer: Peer, name: str) -> None:
    wrong, codes = AFTER_OPEN[name]
    assert opened(peer) == 1
    peer.settle()
    peer.send(wrong)
    expect_end(peer, *codes)


@pytest.mark.parametrize("size", [4, 6, 0])
def test_6_3_priority_of_another_size(peer: Peer, size: int) -> None:
    """A stream error of type FRAME_SIZE_ERROR; a connection error is allowed in its place (5.4.2)."""
    stream = opened(peer)
    peer.settle()
    peer.send(frame(PRIORITY, 0, stream, bytes(size)))
    expect_end(peer, FRAME_SIZE_ERROR)


BETWEEN = {
    "priority": frame(PRIORITY, 0, 1, bytes(5)),
    "ping": frame(PING, 0, 0, bytes(8)),
    "data on the stream": frame(DATA, 0, 3, b"x"),
    "headers of another stream": frame(HEADERS, WHOLE, 5, HEAD),
    "headers of the same stream": frame(HEADERS, WHOLE, 3, HEAD),
    "continuation of another stream": frame(CONTINUATION, END_HEADERS, 1, HEAD[9:]),
    "a reset": reset(3, CANCEL),
    "settings": frame(4),
    "an unknown type": frame(0x42, 0, 0, b"x"),  # 5.5
}


@pytest.mark.parametrize("name", BETWEEN)
def test_4_3_and_6_10_nothing_comes_between_the_parts_of_a_header_block(peer: Peer, name: str) -> None:
    opened(peer)
    peer.settle()
    peer.send(frame(HEADERS, 0, 3, HEAD[:9]), BETWEEN[name], frame(CONTINUATION, END_HEADERS, 3, HEAD[9:]))
    expect_end(peer, PROTOCOL_ERROR)
