"""Flow control (RFC 9113 sections 5.2 and 6.9): the client's windows, which answers keep to, and ours."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.server.config import Limits
from hermetic.server.status import Code
from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    DATA,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    MAX_FRAME,
    PROTOCOL_ERROR,
    WINDOW,
    WINDOW_UPDATE,
    ClosedError,
    Peer,
    frame,
    message,
    padded,
    settings,
    window_update,
)  # fmt: skip

PREFIX_BYTES = 5


def test_5_2_1_an_answer_stops_at_the_windows_end(peer: Peer) -> None:
    peer.send(settings((INITIAL_WINDOW, 1)))
    stream = peer.call("/test/Echo", b"abc")
    peer.settle()
    assert peer.heard(stream).data == b"\0"
    assert not peer.heard(stream).ended
    for size in range(2, 9):
        peer.send(window_update(stream, 1))
        peer.settle()
        assert len(peer.heard(stream).data) == size
    assert peer.answer(stream).messages == [b"abc"]


def test_6_9_1_trailers_need_no_window(peer: Peer) -> None:
    peer.send(settings((INITIAL_WINDOW, 0)))
    refused = peer.call("/test/Fail")
    assert peer.answer(refused).status == Code.PERMISSION_DENIED
    exactly = peer.call("/test/Echo", b"abc")
    peer.send(window_update(exactly, PREFIX_BYTES + 3))
    assert peer.answer(exactly).status == 0


def test_6_9_2_a_window_that_grows_with_the_setting(peer: Peer) -> None:
    peer.send(settings((INITIAL_WINDOW, 0)))
    streams = [peer.call("/test/Echo", b"abc") for _ in range(3)]
    peer.settle()
    peer.send(settings((INITIAL_WINDOW, 8)))
    for stream in streams:
        assert peer.answer(stream).messages == [b"abc"]


def test_6_9_2_a_window_below_zero(peer: Peer) -> None:
    peer.send(settings((INITIAL_WINDOW, 100)))
    stream = peer.call("/test/Large", b"1000")
    peer.settle()
    assert len(peer.heard(stream).data) == 100
    peer.send(settings((INITIAL_WINDOW, 10)))  # the window is -90
    peer.send(window_update(stream, 90))
    peer.settle()
    assert len(peer.heard(stream).data) == 100
    peer.send(window_update(stream, 1))
    peer.settle()
    assert len(peer.heard(stream).data) == 101
    peer.send(settings((INITIAL_WINDOW, 0)), settings((INITIAL_WINDOW, WINDOW)))
    assert peer.answer(stream).messages == [bytes(1000)]


def test_6_9_2_the_setting_does_not_move_the_connections_window(peer: Peer) -> None:
    peer.send(settings((INITIAL_WINDOW, LARGEST_WINDOW)))
    stream = peer.call("/test/Large", b"100000")
    peer.settle()
    assert len(peer.heard(stream).data) == WINDOW
    peer.send(window_update(0, 100000))
    assert peer.answer(stream).messages == [bytes(100000)]


def test_6_9_2_a_setting_that_makes_a_window_overflow(peer: Peer) -> None:
    stream = peer.call("/test/Never")
    peer.send(window_update(stream, 1), settings((INITIAL_WINDOW, LARGEST_WINDOW)))
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code == FLOW_CONTROL_ERROR


@pytest.mark.parametrize(("increment", "code"), [(0, PROTOCOL_ERROR), (LARGEST_WINDOW, FLOW_CONTROL_ERROR)])
def test_6_9_a_wrong_update_of_a_stream_resets_it(
    peer: Peer, application: Application, increment: int, code: int
) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    peer.send(window_update(stream, increment))
    assert peer.answer(stream).reset == code
    application.wait("/test/Never cancelled")


def test_6_9_1_windows_add_up_to_the_largest(peer: Peer) -> None:
    peer.send(window_update(0, LARGEST_WINDOW - WINDOW))
    stream = peer.call("/test/Large", b"300000")
    peer.send(window_update(stream, LARGEST_WINDOW - WINDOW))
    assert peer.answer(stream).messages == [bytes(300000)]


def test_4_2_no_frame_is_larger_than_the_client_takes(peer: Peer) -> None:
    peer.send(window_update(0, 10**9), settings((INITIAL_WINDOW, 10**9)))
    largest = []
    for size in (16384, 20000, 2**24 - 1, 16384):
        peer.send(settings((MAX_FRAME, size)))
        stream = peer.call("/test/Large", b"200000")
        sizes = []
        while not peer.heard(stream).ended:
            got = peer.read()
            if got.kind == DATA:
                sizes.append(len(got.payload))
        assert peer.heard(stream).messages == [bytes(200000)]
        assert max(sizes) <= size
        largest.append(max(sizes))
    assert largest[0] == largest[3] == 16384


def test_streams_that_wait_for_a_window_take_turns(peer: Peer) -> None:
    """The connection's window is short: a large answer does not keep a small one waiting for long."""
    large = peer.call("/test/Large", b"1000000")
    peer.send(window_update(large, 10**6))
    peer.settle()  # it has all of the connection's window
    small = [peer.call("/test/Echo", b"small") for _ in range(5)]
    for _ in range(60):
        peer.send(window_update(0, 16384))
        peer.settle()
        if all(peer.heard(stream).ended for stream in small):
            break
    assert all(peer.heard(stream).ended for stream in small)
    assert not peer.heard(large).ended


def test_a_stream_without_window_stops_no_other(peer: Peer) -> None:
    stuck = [peer.call("/test/Large", b"70000") for _ in range(2)]
    peer.send(window_update(0, 10**6))
    for _ in range(20):
        peer.echo()
    assert not any(peer.heard(stream).ended for stream in stuck)
    for stream in stuck:
        peer.send(window_update(stream, 10**5))
        assert len(peer.answer(stream).messages[0]) == 70000


def test_a_stream_of_messages_stops_at_the_windows_end(peer: Peer, application: Application) -> None:
    stream = peer.call("/test/Many", b"200")
    while len(peer.heard(stream).data) < WINDOW:
        peer.read()
    peer.settle()
    assert len(peer.heard(stream).data) == WINDOW
    peer.send(window_update(0, 10**6), window_update(stream, 10**6))
    assert peer.answer(stream).messages == [bytes(1024)] * 200


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("setting"), st.integers(0, 3000)),
        st.tuples(st.just("stream"), st.integers(1, 3000)),
        st.tuples(st.just("connection"), st.integers(1, 5000)),
        st.tuples(st.just("call"), st.integers(0, 5000)),
    ),
    min_size=1,
    max_size=20,
)


@given(CHANGES)
def test_6_9_whatever_changes_no_window_is_exceeded_and_all_of_it_is_used(
    serving: Serving, changes: list[tuple[str, int]]
) -> None:
    with serving.peer((INITIAL_WINDOW, 500)) as peer:
        initial, connection = 500, WINDOW
        given_more: dict[int, int] = {}
        wanted: dict[int, int] = {}
        for what, size in changes:
            if what == "setting":
                peer.send(settings((INITIAL_WINDOW, size)))
                initial = size
            elif what == "connection":
                peer.send(window_update(0, size))
                connection += size
            elif what == "call":
                stream = peer.call("/test/Large", str(size).encode())
                given_more[stream], wanted[stream] = 0, size + PREFIX_BYTES
            elif wanted:
                stream = max(wanted)
                if not peer.heard(stream).ended:
                    peer.send(window_update(stream, size))
                given_more[stream] += size
            peer.settle()
            heard = {stream: len(peer.heard(stream).data) for stream in wanted}
            assert sum(heard.values()) <= connection
            for stream, got in heard.items():
                room = initial + given_more[stream]
                assert got <= max(wanted[stream], 0)
                if got < wanted[stream] and sum(heard.values()) < connection:
                    assert got >= room, (stream, got, room)  # it may have had more before the setting took it away
        peer.send(settings((INITIAL_WINDOW, 10**6)), window_update(0, 10**6))
        for stream, size in wanted.items():
            assert len(peer.answer(stream).data) == size


# ---------------------------------------------------------------------------------------------------------------------
# Ours: memory is bounded by the windows of the streams


def given_to(peer: Peer, stream: int) -> int:
    """How much the server has let us send on a stream, beyond what SETTINGS say."""
    peer.settle()
    return peer.windows.get(stream, 0)


def test_a_stream_that_is_not_asked_for_its_message_gets_no_more_window(
    peer: Peer, serving: Serving, application: Application
) -> None:
    window, length = Limits().stream_window_bytes, 10**6
    stream = peer.stream()
    body = message(bytes(length))
    peer.send(peer.opening(stream, "/test/Unasked"))
    for at in range(0, window, 16384):
        peer.send(frame(DATA, 0, stream, body[at : at + 16384]))
    assert given_to(peer, stream) == 0
    told = application.calls["/test/Unasked"]
    serving.server.post(told.call.proceed)
    while peer.windows.get(stream, 0) == 0:
        peer.read()
    assert given_to(peer, stream) == length + PREFIX_BYTES - window  # at once, and no more than it lacks
    for at in range(window, len(body), 16384):
        peer.send(frame(DATA, 0, stream, body[at : at + 16384]))
    peer.send(frame(DATA, END_STREAM, stream), window_update(0, length), window_update(stream, length))
    assert peer.answer(stream).messages == [body[5:]]


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 6, 100])
def test_the_window_follows_the_prefix(peer: Peer, cut: int) -> None:
    """A message that was asked for: the window opens when its length is known, however the prefix was cut."""
    window, length = Limits().stream_window_bytes, 300000
    stream = peer.stream()
    body = message(bytes(length))
    peer.send(peer.opening(stream), frame(DATA, 0, stream, body[:cut]))
    first = given_to(peer, stream)
    assert first <= max(0, length + PREFIX_BYTES - window)
    peer.send(frame(DATA, 0, stream, body[cut:5]))
    assert given_to(peer, stream) + window >= length + PREFIX_BYTES
    assert peer.windows.get(stream, 0) <= length + PREFIX_BYTES
    for at in range(max(cut, PREFIX_BYTES), len(body), 16384):
        peer.send(frame(DATA, 0, stream, body[at : at + 16384]))
    peer.send(frame(DATA, END_STREAM, stream), window_update(0, 10**6), window_update(stream, 10**6))
    assert len(peer.answer(stream).messages[0]) == length


def test_padding_uses_windows_and_is_given_back(peer: Peer) -> None:
    """6.9.1: the whole payload of DATA counts. A message in frames that are mostly padding must still arrive."""
    stream = peer.stream()
    body = message(bytes(400))
    room = Limits().stream_window_bytes
    peer.send(peer.opening(stream))
    for at, byte in enumerate(body):
        while room + peer.windows.get(stream, 0) < 257:
            peer.read_until(WINDOW_UPDATE, stream)
        room -= 257
        peer.send(frame(DATA, 8 | (END_STREAM if at == len(body) - 1 else 0), stream, padded(bytes((byte,)), 255)))
    assert peer.answer(stream).messages == [bytes(400)]


def test_6_9_1_more_than_the_window_is_an_error_of_the_stream(peer: Peer, application: Application) -> None:
    window = Limits().stream_window_bytes
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Unasked"))
    for _ in range(window // 16384):
        peer.send(frame(DATA, 0, stream, message(bytes(16379), length=2**20)))
    peer.settle()
    assert peer.heard(stream).reset is None
    try:
        peer.send(frame(DATA, 0, stream, b"x"))
        code = peer.answer(stream).reset
    except ClosedError as closed:
        code = closed.goaway.code if closed.goaway else None
    assert code == FLOW_CONTROL_ERROR
    application.wait("/test/Unasked cancelled")


def test_the_windows_of_a_long_stream_are_given_back(peer: Peer) -> None:
    """Messages one after the other on one stream, many times its window in all."""
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Sink"))
    room = Limits().stream_window_bytes
    one = message(bytes(10000))
    for _ in range(100):
        while room + peer.windows.get(stream, 0) < len(one):
            peer.read_until(WINDOW_UPDATE, stream)
        room -= len(one)
        peer.send(frame(DATA, 0, stream, one))
    peer.send(frame(DATA, END_STREAM, stream))
    assert peer.answer(stream).messages == [b"100"]


def test_what_is_taken_is_given_back_to_the_connection(peer: Peer) -> None:
    peer.settle()
    sent = 0
    for _ in range(200):
        peer.echo(bytes(5000))
        peer.send(window_update(0, 5005))
        sent += 5005
    peer.settle()
    assert peer.windows[0] - sent > 2**30 - 2**22


def test_many_streams_at_once_up_to_their_windows(serve: Callable[..., Serving]) -> None:
    with serve(stream_window_bytes=16384, streams_per_connection=64).peer() as peer:
        peer.settle()
        body = message(bytes(40000))
        streams = [peer.stream() for _ in range(64)]
        for stream in streams:
            peer.send(peer.opening(stream, "/test/Late"), frame(DATA, 0, stream, body[:16384]))
        for stream in streams:
            while peer.windows.get(stream, 0) < len(body) - 16384:
                peer.read()
            peer.send(frame(DATA, 0, stream, body[16384:32768]), frame(DATA, END_STREAM, stream, body[32768:]))
        assert {peer.answer(stream).status for stream in streams} == {Code.INVALID_ARGUMENT}
