"""Messages (gRPC's PROTOCOL-HTTP2, "Length-Prefixed-Message"), deadlines and cancellation."""

import gzip
import time
from collections.abc import Callable

import pytest

from hermetic.server.status import Code
from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    CANCEL,
    DATA,
    END_STREAM,
    NO_ERROR,
    Answer,
    Peer,
    frame,
    message,
    reset,
)  # fmt: skip


def ask(peer: Peer, *parts: bytes, method: str = "/test/Echo", more: tuple[tuple[str, str], ...] = ()) -> Answer:
    """The answer to a call whose DATA frames are these, the last one with END_STREAM."""
    stream = peer.stream()
    frames = [frame(DATA, END_STREAM if at == len(parts) else 0, stream, part) for at, part in enumerate(parts, 1)]
    peer.send(peer.opening(stream, method, *more), *frames)
    return peer.answer(stream)


@pytest.mark.parametrize("size", [0, 1, 4, 100])
def test_a_message_in_frames_of_every_size(peer: Peer, size: int) -> None:
    body = message(bytes(range(size)))
    for step in range(1, len(body) + 1):
        parts = [body[at : at + step] for at in range(0, len(body), step)]
        assert ask(peer, *parts).messages == [body[5:]]


def test_the_end_of_the_stream_in_a_frame_of_its_own(peer: Peer) -> None:
    assert ask(peer, message(b"abc"), b"").messages == [b"abc"]


def test_an_answer_does_not_wait_for_the_end_of_a_unary_request(peer: Peer, application: Application) -> None:
    """Whoever has the one message that it asked for may answer; the client is told to stop (RFC 9113 section 8.1)."""
    stream = peer.stream()
    peer.send(peer.opening(stream), frame(DATA, 0, stream, message(b"abc")))
    answer = peer.answer(stream)
    assert answer.messages == [b"abc"]
    peer.settle()
    assert answer.reset == NO_ERROR


@pytest.mark.parametrize(
    "parts", [(message(b"one") + message(b"two"),), (message(b"one"), message(b"two")), (message(b"one"), b"\0")]
)
def test_what_follows_the_message_of_a_unary_call_is_ignored(peer: Peer, parts: tuple[bytes, ...]) -> None:
    assert ask(peer, *parts).messages == [b"one"]


def test_no_message(peer: Peer) -> None:
    assert ask(peer, b"").status == Code.UNIMPLEMENTED
    assert peer.answer(peer.call("/test/Echo", None)).status == Code.UNIMPLEMENTED


@pytest.mark.parametrize("cut", [1, 4, 5, 7])
@pytest.mark.parametrize("method", ["/test/Echo", "/test/Stream", "/test/Sink", "/test/Unasked"])
def test_the_end_of_the_stream_within_a_message(
    peer: Peer, serving: Serving, application: Application, method: str, cut: int
) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream, method), frame(DATA, END_STREAM, stream, message(b"abc")[:cut]))
    if method == "/test/Unasked":
        application.wait("/test/Unasked accepted")
        told = application.calls[method]
        serving.server.post(told.call.proceed)
    assert peer.answer(stream).status == Code.INVALID_ARGUMENT
    assert not application.seen[f"{method} received"]


@pytest.mark.parametrize("flag", [2, 3, 0x7F, 0x80, 0xFF])
def test_a_flag_that_is_none(peer: Peer, application: Application, flag: int) -> None:
    assert ask(peer, message(b"abc", flag=flag)).status == Code.INVALID_ARGUMENT
    assert not application.seen["/test/Echo received"]


@pytest.mark.parametrize("more", [(), (("grpc-encoding", "identity"),)])
def test_compressed_without_an_encoding(
    peer: Peer, application: Application, more: tuple[tuple[str, str], ...]
) -> None:
    assert ask(peer, message(b"abc", flag=1), more=more).status == Code.INVALID_ARGUMENT
    assert not application.seen["/test/Echo received"]


def test_nothing_is_nothing_compressed_or_not(peer: Peer, application: Application) -> None:
    assert ask(peer, message(b"", flag=1), more=(("grpc-encoding", "gzip"),)).messages == [b""]
    assert not application.calls["/test/Echo"].call.compressed


def test_compressed_messages_reach_the_application(peer: Peer) -> None:
    """They are inflated above the transport, within bounds of its own: here they come as they are, or inflated."""
    packed = gzip.compress(b"abc" * 100)
    answer = ask(peer, message(packed, flag=1), more=(("grpc-encoding", "gzip"),))
    assert answer.messages in ([packed], [b"abc" * 100])


@pytest.mark.parametrize("length", [1001, 2**31, 2**32 - 1])
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_message_that_is_too_large_is_refused_by_its_prefix(
    serve: Callable[..., Serving], length: int, cut: int
) -> None:
    serving = serve(message_bytes=1000)
    with serving.peer() as peer:
        stream = peer.stream()
        prefix = message(b"", length=length)
        peer.send(peer.opening(stream), frame(DATA, 0, stream, prefix[:cut]), frame(DATA, 0, stream, prefix[cut:]))
        answer = peer.answer(stream)
        assert answer.status == Code.RESOURCE_EXHAUSTED
        assert "larger than max" in answer.head["grpc-message"]
        assert peer.windows.get(stream, 0) == 0
        assert ask(peer, message(bytes(1000))).status == 0


def test_a_second_message_that_is_too_large(serve: Callable[..., Serving]) -> None:
    with serve(message_bytes=1000).peer() as peer:
        answer = ask(peer, message(b"x" * 1000), message(b"", length=1001), b"", method="/test/Stream")
        assert answer.status == Code.RESOURCE_EXHAUSTED


def test_a_stream_of_messages_in_one_frame(peer: Peer) -> None:
    sent = [b"%d" % at for at in range(50)]
    assert ask(peer, b"".join(map(message, sent)), method="/test/Stream").messages == sent


def test_thousands_of_messages_in_one_frame(peer: Peer) -> None:
    """Whoever asks for the next message while it is given one must not go deeper each time."""
    assert ask(peer, message(b"") * 3200, method="/test/Sink").messages == [b"3200"]


def test_a_stream_is_answered_message_by_message(peer: Peer) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Stream"))
    for at in range(5):
        peer.send(frame(DATA, 0, stream, message(b"%d" % at)))
        while len(peer.heard(stream).data) < 6 * (at + 1):
            peer.read()
    peer.send(frame(DATA, END_STREAM, stream))
    answer = peer.answer(stream)
    assert answer.messages == [b"0", b"1", b"2", b"3", b"4"]
    assert (answer.trailers["grpc-status"], answer.reset) == ("0", None)


def test_an_empty_stream(peer: Peer) -> None:
    answer = peer.answer(peer.call("/test/Stream", None))
    assert (answer.status, answer.data) == (0, b"")


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["/test/Never", "/test/Unasked", "/test/Stream"])
def test_a_deadline_that_passes(peer: Peer, application: Application, method: str) -> None:
    began = time.monotonic()
    stream = peer.stream()
    peer.send(peer.opening(stream, method, ("grpc-timeout", "100m")))
    answer = peer.answer(stream)
    assert answer.status == Code.DEADLINE_EXCEEDED
    assert time.monotonic() - began > 0.09
    application.wait(f"{method} cancelled")
    assert application.calls[method].call.deadline <= time.time()


def test_a_deadline_in_the_middle_of_a_message(peer: Peer, application: Application) -> None:
    stream = peer.stream()
    peer.send(
        peer.opening(stream, "/test/Echo", ("grpc-timeout", "100m")), frame(DATA, 0, stream, message(b"", length=99))
    )
    assert peer.answer(stream).status == Code.DEADLINE_EXCEEDED
    application.wait("/test/Echo cancelled")
    assert not application.seen["/test/Echo received"]


def test_a_deadline_while_the_answer_waits_for_windows(peer: Peer, application: Application) -> None:
    stream = peer.call("/test/Large", b"100000", ("grpc-timeout", "200m"))
    answer = peer.answer(stream)
    assert answer.status == Code.DEADLINE_EXCEEDED or answer.reset == CANCEL
    assert answer.reset in (CANCEL, NO_ERROR, None)


@pytest.mark.parametrize("timeout", ["0n", "1n", "0S", "00000000m"])
def test_a_deadline_that_has_passed_on_arrival(peer: Peer, timeout: str) -> None:
    assert peer.answer(peer.call("/test/Never", b"", ("grpc-timeout", timeout))).status == Code.DEADLINE_EXCEEDED


def test_a_deadline_that_is_met(peer: Peer, application: Application) -> None:
    for _ in range(20):
        assert peer.answer(peer.call("/test/Echo", b"", ("grpc-timeout", "50m"))).status in (0, Code.DEADLINE_EXCEEDED)
    application.seen.clear()
    application.wait("tick", 2)  # nothing comes of those deadlines later
    assert not application.seen["/test/Echo cancelled"]
    peer.echo()


def test_deadlines_end_in_their_order(peer: Peer) -> None:
    streams = {after: peer.call("/test/Never", b"", ("grpc-timeout", f"{after}m")) for after in (300, 100, 200)}
    ended: list[int] = []
    while len(ended) < 3:
        got = peer.read()
        ended += [
            after
            for after, stream in streams.items()
            if stream == got.stream and peer.heard(stream).ended and after not in ended
        ]
    assert ended == [100, 200, 300]


def test_cancelled_before_the_message(peer: Peer, application: Application) -> None:
    stream = peer.stream()
    peer.send(peer.opening(stream))
    application.wait("/test/Echo accepted")
    peer.send(reset(stream))
    application.wait("/test/Echo cancelled")
    assert not application.seen["/test/Echo received"]


def test_cancelled_while_the_answer_waits_for_windows(peer: Peer, application: Application) -> None:
    stream = peer.call("/test/Large", b"100000")
    peer.settle()
    peer.send(reset(stream))
    application.wait("/test/Large undelivered")
    peer.settle()
    assert not peer.heard(stream).ended


def test_an_answer_to_a_call_that_has_been_cancelled_is_no_harm(
    peer: Peer, serving: Serving, application: Application
) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    peer.send(reset(stream))
    application.wait("/test/Never cancelled")
    call = application.calls["/test/Never"].call
    for late in (lambda: call.reply(b"late"), lambda: call.fail(Code.INTERNAL, "late"), call.cancel, call.drop):
        serving.server.post(late)
    peer.echo()
    assert peer.heard(stream) == Answer()


def test_opened_and_reset_within_one_read_never_reaches_the_application(peer: Peer, application: Application) -> None:
    peer.settle()
    burst = b""
    for _ in range(50):
        stream = peer.stream()
        burst += peer.opening(stream, "/test/Never") + frame(DATA, END_STREAM, stream, message(b"x")) + reset(stream)
    peer.send(burst)
    peer.echo()
    assert application.seen["/test/Never received"] == application.seen["/test/Never cancelled"]
    assert application.seen["/test/Never received"] <= 2  # where the burst came in more than one read
