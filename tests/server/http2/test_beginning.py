"""How a connection begins (RFC 9113 section 3.4), and SETTINGS (6.5)."""

import struct
from collections.abc import Callable

import pytest

from hermetic.server.config import Limits
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    ACK,
    DATA,
    ENABLE_PUSH,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    MAX_FRAME,
    MAX_LIST,
    MAX_STREAMS,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    SETTINGS,
    TABLE_SIZE,
    WINDOW,
    WINDOW_UPDATE,
    ClosedError,
    Peer,
    frame,
    message,
    settings,
)  # fmt: skip


def code_of_the_end(peer: Peer) -> int | None:
    """What a connection error said; None where the server closed without a word."""
    goaway = peer.end()
    return None if goaway is None else goaway.code


def test_3_4_the_server_speaks_first_and_its_first_frame_is_settings(serving: Serving) -> None:
    with Peer(serving.port, begin=False) as peer:
        first = peer.read()
        assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
        limits = Limits()
        assert peer.settings[MAX_STREAMS] == limits.streams_per_connection
        assert peer.settings[INITIAL_WINDOW] == limits.stream_window_bytes
        assert peer.settings[MAX_LIST] == limits.metadata_bytes
        assert 16384 <= peer.settings.get(MAX_FRAME, 16384) <= 2**24 - 1
        assert peer.settings.get(ENABLE_PUSH, 0) == 0  # 6.5.2: a server must not send another value


def test_6_9_2_the_connections_window_is_opened_wide(peer: Peer) -> None:
    peer.settle()
    assert WINDOW + 2**30 - 2**20 < peer.windows[0] <= LARGEST_WINDOW


def test_3_4_settings_of_limits(serve: Callable[..., Serving]) -> None:
    with serve(streams_per_connection=7, stream_window_bytes=20000, metadata_bytes=5000).peer() as peer:
        peer.settle()
        assert (peer.settings[MAX_STREAMS], peer.settings[INITIAL_WINDOW], peer.settings[MAX_LIST]) == (7, 20000, 5000)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(24),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r" + settings(),
        bytes(24),
        b"PRI * HTTP/1.0\r\n\r\n" + bytes(24),
    ],
)
def test_3_4_another_preface_ends_the_connection(serving: Serving, first: bytes) -> None:
    with Peer(serving.port, begin=False) as peer:
        peer.send(first)
        assert code_of_the_end(peer) in (PROTOCOL_ERROR, None)


@pytest.mark.parametrize("cut", [1, 23, 24, 25, 33])
def test_3_4_a_preface_that_comes_in_parts(serving: Serving, cut: int) -> None:
    whole = PREFACE + settings((MAX_FRAME, 16384))
    with Peer(serving.port, begin=False, shy=True) as peer:
        peer.send(whole[:cut])
        peer.read_until(SETTINGS)
        peer.send(whole[cut:])
        peer.echo()


@pytest.mark.parametrize(
    "first",
    [
        frame(PING, 0, 0, bytes(8)),
        frame(SETTINGS, ACK),
        frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")),
        frame(HEADERS, 5, 1, b"\x82"),
        frame(99),
    ],
    ids=["ping", "settings-acknowledged", "window-update", "headers", "unknown"],
)
def test_3_4_the_first_frame_is_settings(serving: Serving, first: bytes) -> None:
    with Peer(serving.port, begin=False) as peer:
        peer.send(PREFACE + first)
        assert code_of_the_end(peer) == PROTOCOL_ERROR


def test_a_connection_that_does_not_begin_in_time_is_closed(serve: Callable[..., Serving]) -> None:
    port = serve(handshake_timeout_ms=300).port
    with Peer(port, begin=False) as silent, Peer(port, begin=False) as slow, Peer(port, begin=False) as wordless:
        slow.send(PREFACE[:10])
        wordless.send(PREFACE)
        for peer in (silent, slow, wordless):
            peer.end()


def test_a_connection_that_has_begun_is_not_late(serve: Callable[..., Serving]) -> None:
    serving = serve(handshake_timeout_ms=300)
    with serving.peer() as peer:
        peer.settle()
        serving.application.seen.clear()
        serving.application.wait("tick", 4)
        peer.echo()


def test_a_request_beside_the_preface(serving: Serving) -> None:
    with Peer(serving.port, begin=False) as peer:
        peer.send(PREFACE + settings() + peer.opening(1) + frame(DATA, 1, 1, message(b"early")))
        assert peer.answer(1).messages == [b"early"]


def test_6_5_3_every_settings_frame_is_acknowledged(peer: Peer) -> None:
    for _ in range(5):
        peer.send(settings((INITIAL_WINDOW, 100000)), settings())
    peer.settle()
    assert peer.acknowledged == 11


def test_6_5_3_an_acknowledgement_is_not_acknowledged(peer: Peer) -> None:
    peer.settle()
    before = peer.acknowledged
    peer.send(frame(SETTINGS, ACK))  # nobody waits for this one
    peer.settle()
    assert peer.acknowledged == before


def test_6_5_3_values_are_applied_in_order(peer: Peer) -> None:
    peer.send(settings((INITIAL_WINDOW, 100), (INITIAL_WINDOW, 7)))
    stream = peer.call("/test/Large", b"1000")
    peer.settle()
    assert len(peer.heard(stream).data) == 7


@pytest.mark.parametrize("key", [0, 7, 8, 9, 0xFE03, 0xFFFF])
def test_6_5_2_settings_that_are_unknown_are_ignored(peer: Peer, key: int) -> None:
    peer.send(settings((key, 2**32 - 1)))
    peer.echo()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (TABLE_SIZE, 0), (TABLE_SIZE, 2**32 - 1), (ENABLE_PUSH, 0), (ENABLE_PUSH, 1), (MAX_STREAMS, 0),
        (MAX_STREAMS, 2**32 - 1), (INITIAL_WINDOW, LARGEST_WINDOW), (MAX_FRAME, 16384), (MAX_FRAME, 2**24 - 1),
        (MAX_LIST, 2**32 - 1),
    ],
)  # fmt: skip
def test_6_5_2_settings_at_their_bounds(peer: Peer, key: int, value: int) -> None:
    peer.send(peer.resize(value) if key == TABLE_SIZE else settings((key, value)))
    peer.settle()
    peer.echo()
    peer.echo()


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        (ENABLE_PUSH, 2, PROTOCOL_ERROR),
        (ENABLE_PUSH, 2**32 - 1, PROTOCOL_ERROR),
        (INITIAL_WINDOW, LARGEST_WINDOW + 1, FLOW_CONTROL_ERROR),
        (INITIAL_WINDOW, 2**32 - 1, FLOW_CONTROL_ERROR),
        (MAX_FRAME, 0, PROTOCOL_ERROR),
        (MAX_FRAME, 16383, PROTOCOL_ERROR),
        (MAX_FRAME, 2**24, PROTOCOL_ERROR),
    ],
)
def test_6_5_2_settings_beyond_their_bounds(peer: Peer, key: int, value: int, code: int) -> None:
    peer.send(settings((key, value)))
    assert code_of_the_end(peer) == code


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
        (frame(SETTINGS, ACK, 0, b"\0"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 1) + b"\0"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1, bytes(6)), PROTOCOL_ERROR),
        (frame(SETTINGS, ACK, 1), PROTOCOL_ERROR),
    ],
)
def test_6_5_settings_that_are_none(peer: Peer, wrong: bytes, code: int) -> None:
    peer.settle()
    peer.send(wrong)
    assert code_of_the_end(peer) == code


def test_5_4_1_what_follows_a_connection_error_is_not_handled(peer: Peer, serving: Serving) -> None:
    peer.settle()
    serving.application.seen.clear()
    peer.send(frame(SETTINGS, 0, 1) + peer.opening(1, end=True))
    assert code_of_the_end(peer) == PROTOCOL_ERROR
    assert not serving.application.seen["/test/Echo accepted"]


def test_5_4_1_a_connection_error_names_the_last_stream_and_ends_its_calls(peer: Peer, serving: Serving) -> None:
    serving.application.seen.clear()
    peer.call("/test/Never")
    last = peer.call("/test/Never")
    serving.application.wait("/test/Never received", 2)
    peer.send(frame(PING, 0, 0, b"short"))
    goaway = peer.end()
    assert goaway is not None
    assert (int.from_bytes(goaway.payload[:4], "big"), goaway.code) == (last, FRAME_SIZE_ERROR)
    serving.application.wait("/test/Never cancelled", 2)


def test_the_client_goes_away(serving: Serving) -> None:
    serving.application.seen.clear()
    with serving.peer() as peer:
        peer.call("/test/Never")
        serving.application.wait("/test/Never received")
    serving.application.wait("/test/Never cancelled")


def test_6_8_goaway_of_the_client_lets_calls_end(serving: Serving) -> None:
    serving.application.seen.clear()
    with serving.peer() as peer:
        stream = peer.call("/test/Unasked", b"last")
        serving.application.wait("/test/Unasked accepted")
        peer.send(frame(7, 0, 0, struct.pack(">II", 0, NO_ERROR) + b"goodbye"))
        told = serving.application.calls["/test/Unasked"]
        serving.server.post(told.call.proceed)
        assert peer.answer(stream).messages == [b"last"]
        with pytest.raises(ClosedError):
            peer.read_until(HEADERS, 99)
