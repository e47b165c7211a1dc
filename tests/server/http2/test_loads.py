"""What loads cost the one thread and its memory, and what is told of calls whatever becomes of their connection."""

import contextlib
import gc
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hermetic.server.http2.deadlines import LEFT_OVER, Deadlines
from tests.server.far_side import Pki
from tests.server.http2.serving import Pauses, Serving, without_a_pause
from tests.server.http2.test_over_tls import Slow, credentials
from tests.server.http2.wire import (
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    PREFACE,
    STREAM_CLOSED,
    ClosedError,
    Peer,
    frame,
    message,
    reset,
    settings,
    window_update,
)

MIB = 1 << 20
LARGE = 65 * MIB - 100  # bytes: as long as a message may be
LONG_S = 1000.0  # longer than anything here waits
TAKEN_S = 2.0  # of CPU, of what took five seconds and more
RECORD = bytes((0x17, 3, 3, 0, 32)) + bytes(32)  # of TLS, that nobody has encrypted


class Due:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def expire(self) -> None:
        pass


def test_calls_that_end_before_their_deadline_leave_nothing() -> None:
    deadlines = Deadlines()
    deadlines.add(Due(1000.0))  # a long call, whose slice stays the first
    for number in range(10_000):
        call = Due(2000.0 + number % 10)
        deadlines.add(call)
        deadlines.remove(call)
        assert deadlines.next_moment() == pytest.approx(1000.0, abs=0.1)
    assert len(deadlines._order) <= 3 * LEFT_OVER


@pytest.mark.parametrize("cut", ["end", "reset"])
def test_a_long_message_that_does_not_come_costs_nothing(peer: Peer, cut: str) -> None:
    began = time.process_time()
    for _ in range(100):
        stream = peer.stream()
        peer.send(
            peer.opening(stream), frame(DATA, END_STREAM if cut == "end" else 0, stream, message(b"", length=LARGE))
        )
        if cut == "reset":
            peer.settle()
            peer.send(reset(stream))
    peer.settle()
    assert time.process_time() - began < TAKEN_S


def test_a_message_after_the_end_is_none(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream, end=True) + frame(DATA, END_STREAM, stream, message(b"late")))
    answer = peer.answer(stream)
    assert (answer.reset, answer.data) == (STREAM_CLOSED, b"")


def test_a_client_that_reads_slowly_all_the_time_is_served(serve: Callable[..., Serving]) -> None:
    """The socket is never empty, and yet each answer leaves in time."""
    serving = serve(reply_timeout_s=1)
    without_a_pause(lambda pauses: read_slowly(serving, pauses))
    serving.application.wait("/test/Large delivered", 10)


def read_slowly(serving: Serving, pauses: Pauses) -> None:
    with serving.peer((INITIAL_WINDOW, LARGEST_WINDOW)) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.send(window_update(0, 2**30))
        for _ in range(100):
            peer.call("/test/Large", b"65000")
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            got = peer.read()
            pauses.look()
            if got.kind == HEADERS and got.flags & END_STREAM:
                peer.call("/test/Large", b"65000")
            elif got.kind == DATA:
                time.sleep(len(got.payload) * 2e-8)  # slower than the server writes, and far from its limit


def test_windows_that_are_opened_for_all_streams_by_an_octet_cost_a_frame_each(serving: Serving) -> None:
    with serving.peer((INITIAL_WINDOW, 0)) as peer:
        peer.send(window_update(0, 2**30))
        for _ in range(200):
            peer.call("/test/Large", b"1000")
        peer.settle()
        assert is_calmed(peer)


def is_calmed(peer: Peer) -> bool:
    """Whether opening each window by an octet, again and again, ends the connection."""
    try:
        for size in range(1, 500):
            peer.send(settings((INITIAL_WINDOW, size)))
            peer.settle()
    except ClosedError as closed:
        return closed.code == ENHANCE_YOUR_CALM
    except ConnectionError:
        return True
    return False


def test_a_drain_ends_when_the_last_call_is_cancelled(serve: Callable[..., Serving]) -> None:
    serving = serve()
    with serving.peer() as peer:
        stream = peer.call("/test/Never")
        peer.settle()
        serving.stop(LONG_S)
        peer.read_until(GOAWAY)
        peer.settle()
        peer.send(reset(stream))
        peer.end()
    serving.join()


def test_a_drain_lasts_as_long_as_was_asked_for(serve: Callable[..., Serving]) -> None:
    serving = serve(reply_timeout_s=1)
    with serving.peer() as peer:
        peer.call("/test/Never")
        peer.settle()
        began = time.monotonic()
        serving.stop(3.0)
        peer.end()
        assert time.monotonic() - began > 2.5


@contextmanager
def no_descriptors() -> Iterator[None]:
    gc.collect()  # what an earlier test left to the collector must not be given back meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    filled = []
    try:
        while True:
            try:
                filled.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filled:
            os.close(descriptor)


@pytest.mark.usefixtures("errors_expected")
def test_without_descriptors_it_pauses(serve: Callable[..., Serving], caplog: pytest.LogCaptureFixture) -> None:
    serving = serve()
    # Several: a thread of another test's may give a descriptor back at any time, and one of them get in.
    with contextlib.ExitStack() as stack, serving.peer() as peer:
        waiting = [stack.enter_context(socket.socket()) for _ in range(8)]
        peer.echo()
        with no_descriptors():
            for one in waiting:
                one.connect(("127.0.0.1", serving.port))
            for _ in range(4):
                serving.application.wait("tick", serving.application.seen["tick"] + 1)
        assert 1 <= sum("no room" in record.getMessage() for record in caplog.records) < 30
        peer.echo()
        for one in waiting:
            with Peer(serving.port, connection=one) as late:
                late.echo()


def test_descriptors_of_connections_that_linger_are_counted(serve: Callable[..., Serving]) -> None:
    serving = serve(connections=2)
    peers = [serving.peer() for _ in range(2)]
    for peer in peers:
        peer.send(frame(DATA, 0, 0, b"wrong"))
        peer.read_until(GOAWAY)
    refused = serving.peer(shy=True)
    with pytest.raises((ClosedError, ConnectionError)):
        refused.read()
    for peer in (*peers, refused):
        peer.close()


@pytest.fixture
def secured(pki: Pki) -> Iterator[Serving]:
    with Serving(credentials=credentials(pki)) as one:
        yield one


def test_what_becomes_of_an_answer_is_told_where_tls_breaks(secured: Serving, pki: Pki) -> None:
    """A request and a record that cannot be decrypted, in one read: the answer cannot be encrypted any more."""
    slow = Slow(secured, pki)
    slow.until(slow.tls.do_handshake, 100_000)
    slow.tls.write(PREFACE + settings())
    slow.push(100_000)
    opening = Peer.opening(None, 1)  # type: ignore[arg-type] # it needs nothing of the connection
    slow.tls.write(opening + frame(DATA, END_STREAM, 1, message(b"hello")))
    slow.socket.sendall(slow.outgoing.read() + RECORD)
    secured.application.wait("/test/Echo undelivered")
    slow.close()


def is_ended(connection: socket.socket, data: bytes) -> bool:
    """Send `data`; whether the server ends the connection rather than wait for more."""
    try:
        connection.sendall(data)
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_records_that_bring_next_to_nothing_are_paid_for(secured: Serving, pki: Pki) -> None:
    slow = Slow(secured, pki)
    slow.until(slow.tls.do_handshake, 100_000)
    slow.tls.write(PREFACE + settings())
    for octet in frame(0xAA, 0, 0, bytes(20_000)):  # of a type that is ignored, and costs as one
        slow.tls.write(bytes((octet,)))
    assert is_ended(slow.socket, slow.outgoing.read())
    slow.close()
