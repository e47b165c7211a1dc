"""Known attacks, each against the bound that answers it: its connection is told to calm down, others notice nothing.

What must be free of such an end is here too: the same frames in the numbers in which sound clients send them.
"""

import contextlib
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from hermetic.server.config import Limits
from tests.descriptors import are_given_back, settled_descriptors
from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    INITIAL_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    SETTINGS,
    Frame,
    Peer,
    block,
    fields,
    frame,
    indexed,
    literal,
    message,
    padded,
    reset,
    settings,
    window_update,
)  # fmt: skip

FRAMES = 100_000  # of an attack that is not stopped
BATCH = 200
MIB = 1 << 20


def flood(peer: Peer, batches: Iterator[bytes]) -> Frame | None:
    """Send until the server has ended the connection, at the latest until there is no more; its last word."""
    try:
        for batch in batches:
            peer.send(batch)
            while peer.has_word():
                peer.read()
            if peer.goaways:
                break
    except OSError:  # it has closed, or takes no more
        pass
    return peer.end()


def rapid_reset(peer: Peer) -> bytes:
    stream = peer.stream()
    return peer.opening(stream, "/test/Never") + reset(stream)


def reset_after_a_message(peer: Peer) -> bytes:
    stream = peer.stream()
    return peer.opening(stream, "/test/Never") + frame(DATA, 0, stream, message(b"x")) + reset(stream)


def made_to_reset_by_a_window(peer: Peer) -> bytes:
    stream = peer.stream()
    return peer.opening(stream, "/test/Never") + window_update(stream, 0)


def made_to_reset_by_data(peer: Peer) -> bytes:
    stream = peer.stream()
    return peer.opening(stream, "/test/Never", end=True) + frame(DATA, END_STREAM, stream, b"x")


def made_to_reset_by_a_malformed_head(peer: Peer) -> bytes:
    return frame(
        HEADERS, END_HEADERS | END_STREAM, peer.stream(), block(fields("/test/Never", ("connection", "close")))
    )


def made_to_reset_by_an_overflow(peer: Peer) -> bytes:
    stream = peer.stream()
    return peer.opening(stream, "/test/Never") + window_update(stream, 2**31 - 1)


def headers_on_a_closed_stream(peer: Peer) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, block(fields("/test/Never")))


ATTACKS: dict[str, Callable[[Peer], bytes]] = {
    "CVE-2023-44487 rapid reset": rapid_reset,
    "CVE-2023-44487 rapid reset after a message": reset_after_a_message,
    "CVE-2025-8671 made to reset by a window": made_to_reset_by_a_window,
    "CVE-2025-8671 made to reset by data": made_to_reset_by_data,
    "CVE-2025-8671 made to reset by a malformed head": made_to_reset_by_a_malformed_head,
    "CVE-2025-8671 made to reset by an overflow": made_to_reset_by_an_overflow,
    "CVE-2019-9514 headers on a closed stream": headers_on_a_closed_stream,
    "CVE-2019-9512 pings": lambda _: frame(PING, 0, 0, bytes(8)),
    "CVE-2019-9512 answers to pings": lambda _: frame(PING, 1, 0, bytes(8)),
    "CVE-2019-9515 settings": lambda _: settings((INITIAL_WINDOW, 65535)),
    "CVE-2019-9515 empty settings": lambda _: settings(),
    "CVE-2019-9515 acknowledgements": lambda _: frame(SETTINGS, 1),
    "CVE-2019-9513 priorities": lambda _: frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 1)),
    "CVE-2019-9513 priorities of idle streams": lambda _: frame(PRIORITY, 0, 1001, struct.pack(">IB", 0, 1)),
    "CVE-2019-9518 empty data": lambda _: frame(DATA, 0, 1),
    "CVE-2019-9518 data of padding only": lambda _: frame(DATA, PADDED, 1, padded(b"", 0)),
    "window updates of the connection": lambda _: window_update(0, 1),
    "window updates of a stream": lambda _: window_update(1, 1),
    "resets of a closed stream": lambda _: reset(3),
    "data on a closed stream": lambda _: frame(DATA, 0, 3, b"x"),
    "unknown frames": lambda _: frame(0x42, 0, 0, b"x"),
    "settings of many": lambda _: settings(*[(INITIAL_WINDOW, 65535)] * 1000),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_flood_is_told_to_calm_down(peer: Peer, application: Application, name: str) -> None:
    peer.shy = True
    one = ATTACKS[name]
    peer.send(peer.opening(peer.stream(), "/test/Sink"))
    peer.answer(peer.call("/test/Late"))
    batches = (b"".join(one(peer) for _ in range(BATCH)) for _ in range(FRAMES // BATCH))
    goaway = flood(peer, batches)
    assert goaway is not None
    assert goaway.code == ENHANCE_YOUR_CALM
    assert application.seen["/test/Never received"] < 3000
    application.wait("/test/Sink cancelled")


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "settings of many"])
def test_a_few_of_them_are_no_flood(peer: Peer, name: str) -> None:
    one = ATTACKS[name]
    peer.send(peer.opening(peer.stream(), "/test/Sink"))
    peer.answer(peer.call("/test/Late"))
    for _ in range(10):
        peer.send(one(peer))
        peer.echo()


def test_what_came_for_a_call_that_was_reset_in_the_same_read_is_paid_for(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Never") + frame(DATA, 0, stream) * 5000 + reset(stream))
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code == ENHANCE_YOUR_CALM


def test_requests_pay_for_the_frames_around_them(serve: Callable[..., Serving]) -> None:
    """A sound client opens windows, answers pings and cancels now and then, for as long as it likes."""
    with serve().peer() as peer:
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            for _ in range(50):
                stream = peer.call("/test/Echo", b"x" * 100)
                peer.send(window_update(0, 105), window_update(stream, 105))
            peer.send(frame(PING, 0, 0, b"bdp-ping"))
            peer.send(reset(peer.call("/test/Never")))
            peer.answer(stream)
        peer.echo()


def test_a_long_message_in_frames_of_one_kib_is_no_flood(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Late"), frame(DATA, 0, stream, message(b"", length=8 * MIB)))
    piece = frame(DATA, 0, stream, bytes(1024)) * 16
    room = Limits().stream_window_bytes - 5
    for _ in range(8 * MIB // 16384):
        while room + peer.windows.get(stream, 0) < 16384:
            peer.read()
        room -= 16384
        peer.send(piece)
    assert peer.answer(stream).status == 3


def test_an_upload_that_nobody_wants_any_more_is_no_flood(peer: Peer) -> None:
    """The window was opened for all of it; its deadline passed; what was on its way then is thrown away."""
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Late", ("grpc-timeout", "50m")))
    peer.send(frame(DATA, 0, stream, message(b"", length=16 * MIB)))
    assert peer.answer(stream).status == 4
    piece = frame(DATA, 0, stream, bytes(4096)) * 4
    for _ in range(1000):
        peer.send(piece)
    peer.echo()


def test_cve_2024_27316_header_blocks_without_end(serving: Serving) -> None:
    """Also of empty parts, and of parts that add nothing to the list."""
    for part in (b"", literal("x-more", "x" * 200), b"\x20", literal("x", "y", 0x40)):
        with serving.peer() as peer:
            peer.settle()
            stream = peer.stream()
            peer.send(frame(HEADERS, 0, stream, block(fields())))
            more = frame(CONTINUATION, 0, stream, part) * 100
            goaway = flood(peer, iter([more] * 200))
            assert goaway is not None
            assert goaway.code in (ENHANCE_YOUR_CALM, COMPRESSION_ERROR)


def test_a_header_block_that_stops_halfway(serve: Callable[..., Serving]) -> None:
    with serve(message_timeout_s=1, message_timeout_scarce_s=1).peer() as peer:
        peer.settle()
        peer.send(frame(HEADERS, 0, peer.stream(), block(fields())[:20]))
        peer.end()


def test_a_frame_that_stops_halfway(serve: Callable[..., Serving]) -> None:
    with serve(message_timeout_s=1, message_timeout_scarce_s=1).peer() as peer:
        peer.settle()
        peer.send(frame(DATA, 0, 1, bytes(100))[:50])
        peer.end()


def test_a_header_block_that_drips(serve: Callable[..., Serving]) -> None:
    """A byte now and then does not make it younger."""
    with serve(message_timeout_s=1, message_timeout_scarce_s=1).peer() as peer:
        peer.settle()
        stream = peer.stream()
        peer.send(frame(HEADERS, 0, stream, block(fields())[:20]))
        peer.socket.settimeout(0.2)
        with contextlib.suppress(ConnectionError):
            while True:  # until the server ends it; pytest's limit ends the test where it does not
                peer.send(frame(CONTINUATION, 0, stream, b""))
                with contextlib.suppress(TimeoutError):
                    peer.read()


def test_an_hpack_bomb(peer: Peer) -> None:
    """One large entry, then its index again and again: 16 KiB stand for 64 MiB (CVE-2016-6581)."""
    peer.answer(peer.call("/test/Late"))
    large = literal("x-bomb", "b" * 3900, 0x40)
    stream = peer.stream()
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block(fields()) + large))
    assert peer.answer(stream).status == 12
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, peer.stream(), block(fields()) + indexed(62) * 16000))
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code in (ENHANCE_YOUR_CALM, COMPRESSION_ERROR)


def test_cve_2019_9516_names_of_no_length(peer: Peer) -> None:
    """They count 32 bytes each, so they are not free."""
    stream = peer.stream()
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block(fields()) + b"\x00\x00\x00" * 5000))
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code in (ENHANCE_YOUR_CALM, COMPRESSION_ERROR)


def test_changes_of_the_tables_size_without_end_cost_little(peer: Peer) -> None:
    """A byte each: 64 KiB of them would take the decoder 70 ms, for one frame."""
    peer.settle()
    peer.send(frame(HEADERS, END_HEADERS, peer.stream(), b"\x20" * 100 + block(fields())))
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code == COMPRESSION_ERROR


def many_fields(peer: Peer) -> bytes:
    """A call whose fields are within the limit, and many: milliseconds for two kilobytes."""
    head = block(fields("/test/Late")) + b"\x00\x01a\x00" * 450
    stream = peer.stream()
    return frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, message(b"x"))


def test_calls_of_many_fields_are_paid_for(peer: Peer) -> None:
    goaway = flood(peer, iter([many_fields(peer) for _ in range(1000)]))
    assert goaway is not None
    assert goaway.code == ENHANCE_YOUR_CALM


def test_a_few_calls_of_many_fields_are_answered(peer: Peer) -> None:
    for _ in range(10):
        peer.send(many_fields(peer))
    peer.echo()


def test_integers_that_never_end_cost_little(peer: Peer) -> None:
    began = time.process_time()
    peer.send(frame(HEADERS, END_HEADERS, peer.stream(), b"\xff" * 16000))
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code == COMPRESSION_ERROR
    assert time.process_time() - began < 0.5


def test_cve_2019_9511_data_dribble(peer: Peer) -> None:
    """A window of one byte at a time: each gives a frame of one byte; free frames end it."""
    peer.send(settings((INITIAL_WINDOW, 0)))
    streams = [peer.call("/test/Large", b"10000") for _ in range(10)]
    goaway = flood(peer, iter([b"".join(window_update(stream, 1) for stream in streams) * 20] * 500))
    assert goaway is not None
    assert goaway.code == ENHANCE_YOUR_CALM


def test_cve_2019_9517_a_client_that_opens_windows_and_reads_nothing(serve: Callable[..., Serving]) -> None:
    """The kernel's buffer fills; ours must not: answers that it does not take are broken off in time."""
    serving = serve(reply_timeout_s=1)
    with serving.peer((INITIAL_WINDOW, 2**31 - 1)) as deaf:
        deaf.send(window_update(0, 2**30))
        for _ in range(8):
            deaf.call("/test/Large", str(8 * MIB).encode())
        serving.application.wait("/test/Large undelivered", 7, timeout_s=60)


def test_requests_whose_refusals_are_not_read(serving: Serving) -> None:
    """Refusals need no window, and nobody counts their bytes: the server must stop reading when they pile up."""
    serving.application.seen.clear()

    def ask(deaf: Peer) -> None:
        for _ in range(40_000):
            stream = deaf.stream()
            opening = deaf.opening(stream, "/test/Late", ("words", "w" * 900))
            deaf.send(opening, frame(DATA, 1, stream, message(b"x")))

    with serving.peer(shy=True) as deaf, serving.peer() as other:
        deaf.socket.settimeout(1.0)
        with pytest.raises(TimeoutError):
            ask(deaf)
        other.echo()
        assert serving.application.seen["/test/Late accepted"] < 20_000
        deaf.socket.settimeout(60)
        assert deaf.answer(1).status == 3
        assert deaf.answer(1001).status == 3


def test_pings_whose_answers_are_not_read(serving: Serving) -> None:
    """CVE-2019-9512: answers that wait are bounded, whatever is in the allowance."""
    with serving.peer() as peer:
        peer.socket.setsockopt(1, 8, 4096)
        flood(peer, iter([frame(PING, 0, 0, bytes(8)) * 1000] * 1000))


def test_half_open_connections_are_let_go(serve: Callable[..., Serving]) -> None:
    serving = serve(connections=20, handshake_timeout_ms=500)
    silent = [Peer(serving.port, begin=False, shy=True) for _ in range(20)]  # an answer would be no preface
    with pytest.raises(ConnectionError), serving.peer() as refused:
        refused.settle()
    for one in silent:
        one.end()
        one.close()
    with serving.peer() as peer:
        peer.echo()


def test_connections_that_come_and_go_leave_nothing(serving: Serving) -> None:
    for _ in range(300):
        with serving.peer() as peer:
            peer.send(peer.opening(peer.stream(), "/test/Never"))
    with serving.peer() as peer:
        peer.echo()


def test_descriptors_do_not_leak(serve: Callable[..., Serving]) -> None:
    serving = serve(handshake_timeout_ms=500)
    with serving.peer() as peer:
        peer.echo()
        before = settled_descriptors()
        for ending in (b"", frame(PING, 0, 1, bytes(8)), b"\xff" * 40, frame(6, 0, 0, bytes(8)) * 5000) * 10:
            with serving.peer() as one, contextlib.suppress(OSError, AssertionError):
                one.send(ending)
                one.settle()
        assert are_given_back(before)
