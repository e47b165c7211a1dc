"""Streams: their states (RFC 9113 section 5.1), numbers (5.1.1) and how many there may be (5.1.2)."""

from collections.abc import Callable

import pytest

from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    ClosedError,
    Peer,
    block,
    fields,
    frame,
    message,
    reset,
    window_update,
)  # fmt: skip

HEAD = block(fields("/test/Echo"))
TRAILERS = block([("x-checksum", "1")])


def verdict(peer: Peer, stream: int) -> str | int:
    """What the server says of a frame that has no place: nothing, or a code, on the stream or at the end of all."""
    try:
        peer.settle()
    except ClosedError as closed:
        return closed.code or "nothing"
    code = peer.heard(stream).reset
    return "nothing" if code is None or code == NO_ERROR else code


def ended_by_us(peer: Peer) -> int:
    """Half-closed (remote): our side has ended, the server's has not."""
    return peer.call("/test/Never")


def ended_by_reset(peer: Peer) -> int:
    """Closed: we have reset it."""
    stream = peer.call("/test/Never")
    peer.send(reset(stream))
    return stream


def ended_by_both(peer: Peer) -> int:
    """Closed: both sides have ended."""
    stream = peer.call()
    peer.answer(stream)
    return stream


STATES = {"half-closed": ended_by_us, "reset": ended_by_reset, "ended": ended_by_both}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "late",
    [(DATA, END_STREAM, b"late"), (DATA, 0, b"late"), (HEADERS, 5, TRAILERS), (HEADERS, 4, HEAD)],
    ids=["data-that-ends", "data", "trailers", "headers"],
)  # fmt: skip
def test_5_1_data_and_headers_after_the_end(
    peer: Peer, application: Application, state: str, late: tuple[int, int, bytes]
) -> None:
    """STREAM_CLOSED, of the stream or of the connection; or nothing where the stream is closed (5.1, "closed")."""
    stream = STATES[state](peer)
    peer.settle()
    before = application.seen.copy()
    kind, flags, payload = late
    peer.send(frame(kind, flags, stream, payload))
    said = verdict(peer, stream)
    assert said in ({STREAM_CLOSED} if state == "half-closed" else {STREAM_CLOSED, PROTOCOL_ERROR, "nothing"})
    assert application.seen["/test/Echo accepted"] == before["/test/Echo accepted"]
    assert application.seen["/test/Never received"] == before["/test/Never received"]


@pytest.mark.parametrize("state", STATES)
def test_5_1_continuation_after_the_end(peer: Peer, state: str) -> None:
    stream = STATES[state](peer)
    peer.send(frame(CONTINUATION, END_HEADERS, stream, TRAILERS))
    assert verdict(peer, stream) in (STREAM_CLOSED, PROTOCOL_ERROR)


@pytest.mark.parametrize("state", STATES)
def test_5_1_windows_and_resets_after_the_end_are_taken(peer: Peer, state: str) -> None:
    stream = STATES[state](peer)
    peer.send(window_update(stream, 1), reset(stream), window_update(stream, 1), reset(stream, NO_ERROR))
    peer.settle()
    peer.echo()


def test_5_1_data_for_a_stream_that_the_server_has_ended_is_discarded(peer: Peer) -> None:
    """An answer that comes early: what the client had sent before it knew is not its fault."""
    for _ in range(20):
        stream = peer.stream()
        peer.send(peer.opening(stream, "/test/Fail"))
        assert peer.answer(stream).status == 7
        peer.send(frame(DATA, 0, stream, bytes(1000)), frame(DATA, END_STREAM, stream, bytes(16384)))
    peer.echo()


def test_6_9_discarded_data_is_given_back_to_the_connection(peer: Peer) -> None:
    """Else the connection's window would leak away, and with it every call."""
    peer.settle()
    sent = 0
    for _ in range(40):
        stream = peer.stream()
        peer.send(peer.opening(stream, "/test/Fail"))
        peer.answer(stream)
        for _ in range(16):
            peer.send(frame(DATA, 0, stream, bytes(16384)))
            sent += 16384
        peer.send(frame(DATA, END_STREAM, stream))
    peer.settle()
    assert peer.windows[0] - sent > 2**30 - 2**22


def test_5_1_1_streams_are_numbered_upwards(peer: Peer, application: Application) -> None:
    peer.send(frame(HEADERS, 5, 7, HEAD))
    peer.answer(7)
    before = application.seen["/test/Echo accepted"]
    peer.send(frame(HEADERS, 5, 5, HEAD))
    assert verdict(peer, 5) in (PROTOCOL_ERROR, STREAM_CLOSED, "nothing")
    assert application.seen["/test/Echo accepted"] == before


def test_5_1_1_numbers_may_be_left_out(peer: Peer) -> None:
    for stream in (1, 5, 1001, 2**31 - 1):
        peer.send(frame(HEADERS, 4, stream, HEAD), frame(DATA, 1, stream, message(b"x")))
        assert peer.answer(stream).messages == [b"x"]


def test_5_1_2_a_stream_too_many_is_refused(serve: Callable[..., Serving]) -> None:
    serving = serve(streams_per_connection=3)
    with serving.peer() as peer:
        peer.settle()
        for _ in range(3):
            peer.call("/test/Never")
        refused = peer.call("/test/Echo", b"one too many")
        assert verdict(peer, refused) == REFUSED_STREAM
        assert serving.application.seen["/test/Echo accepted"] == 0
        peer.send(reset(1))
        peer.echo(b"room again")


def test_5_1_2_a_refused_stream_keeps_the_table_in_step(serve: Callable[..., Serving]) -> None:
    """Its header block must be decoded all the same (4.3)."""
    with serve(streams_per_connection=1).peer() as peer:
        peer.call("/test/Never")
        inserting = b"".join(bytes((0x40, len(k))) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields())
        refused = peer.stream()
        peer.send(frame(HEADERS, 5, refused, inserting))
        peer.settle()
        peer.send(reset(1))
        stream = peer.stream()
        peer.send(frame(HEADERS, 4, stream, bytes(range(0xC3, 0xBD, -1))), frame(DATA, 1, stream, message(b"in step")))
        assert peer.answer(stream).messages == [b"in step"]


def test_5_1_2_ended_streams_do_not_count(serve: Callable[..., Serving]) -> None:
    with serve(streams_per_connection=1).peer() as peer:
        for method in ("/test/Echo", "/test/Fail", "/test/Late", "/test/Drop", "/test/Break", "/no/Method") * 10:
            peer.answer(peer.call(method, b"x"))
        peer.echo()


def test_5_4_2_a_reset_ends_the_call_and_no_other(peer: Peer, application: Application) -> None:
    stays = peer.call("/test/Never")
    goes = peer.call("/test/Never")
    application.wait("/test/Never received", 2)
    peer.send(reset(goes, CANCEL))
    application.wait("/test/Never cancelled")
    peer.settle()
    assert application.seen["/test/Never cancelled"] == 1
    assert peer.heard(stays).reset is None
    assert peer.heard(goes) == peer.heard(stays)  # nothing is said on a stream that was reset


@pytest.mark.parametrize("code", [NO_ERROR, CANCEL, REFUSED_STREAM, 0xDEAD])
def test_6_4_a_reset_cancels_whatever_its_code(peer: Peer, application: Application, code: int) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    peer.send(reset(stream, code))
    application.wait("/test/Never cancelled")


def test_5_1_a_reset_after_the_answer_is_no_cancellation(peer: Peer, application: Application) -> None:
    stream = peer.call()
    peer.answer(stream)
    peer.send(reset(stream))
    peer.settle()
    application.wait("/test/Echo closed")
    assert not application.seen["/test/Echo cancelled"]


def test_8_1_trailers_of_a_request(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream), frame(DATA, 0, stream, message(b"body")), frame(HEADERS, 5, stream, TRAILERS))
    assert peer.answer(stream).messages == [b"body"]


def test_8_1_1_trailers_after_all_that_the_content_length_says(peer: Peer) -> None:
    body, stream = message(b"body"), peer.stream()
    opening = peer.opening(stream, "/test/Stream", ("content-length", str(len(body))))
    peer.send(opening + frame(DATA, 0, stream, body) + frame(HEADERS, 5, stream, TRAILERS))  # in one read
    answer = peer.answer(stream)
    assert (answer.status, answer.messages) == (0, [b"body"])


def test_8_1_1_trailers_before_all_that_the_content_length_says(peer: Peer) -> None:
    body, stream = message(b"body"), peer.stream()
    opening = peer.opening(stream, "/test/Stream", ("content-length", str(len(body) + 1)))
    peer.send(opening + frame(DATA, 0, stream, body) + frame(HEADERS, 5, stream, TRAILERS))
    assert verdict(peer, stream) == PROTOCOL_ERROR


def test_8_1_headers_a_second_time_without_the_end(peer: Peer, application: Application) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Stream"), frame(HEADERS, END_HEADERS, stream, TRAILERS))
    assert verdict(peer, stream) == PROTOCOL_ERROR


@pytest.mark.parametrize(
    "trailers", [[(":path", "/x")], [(":status", "200")], [("X-Upper", "1")], [("connection", "close")]]
)
def test_8_1_malformed_trailers(peer: Peer, application: Application, trailers: list[tuple[str, str]]) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream), frame(HEADERS, END_HEADERS | END_STREAM, stream, block(trailers)))
    assert verdict(peer, stream) == PROTOCOL_ERROR
    assert not application.seen["/test/Echo received"]
