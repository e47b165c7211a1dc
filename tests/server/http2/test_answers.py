"""Answers: heads, trailers, "trailers-only", texts; and how calls end that the application ends early."""

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.server.status import DETAILS_LIMIT, Code
from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    CANCEL,
    DATA,
    END_STREAM,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    RST_STREAM,
    ClosedError,
    Peer,
    frame,
    message,
)  # fmt: skip

CONTENT = "application/grpc"


def test_a_good_answer_is_headers_data_and_trailers(peer: Peer) -> None:
    for _ in range(3):
        stream = peer.call("/test/Echo", b"abc")
        kinds = []
        while not peer.heard(stream).ended:
            got = peer.read()
            if got.stream == stream:
                kinds.append((got.kind, got.flags & END_STREAM))
        assert kinds[0] == (HEADERS, 0)
        assert kinds[-1] == (HEADERS, END_STREAM)
        assert {kind for kind, _ in kinds[1:-1]} <= {DATA}
        answer = peer.heard(stream)
        assert (answer.head[":status"], answer.head["content-type"]) == ("200", CONTENT)
        assert answer.trailers["grpc-status"] == "0"
        assert not [name for name in answer.trailers if name.startswith(":")]


def test_an_empty_answer_is_a_message_too(peer: Peer) -> None:
    answer = peer.answer(peer.call("/test/Echo", b""))
    assert (answer.data, answer.status) == (bytes(5), 0)


@pytest.mark.parametrize("method", ["/test/Fail", "/test/Late", "/none/Such"])
def test_a_refusal_is_trailers_only(peer: Peer, method: str) -> None:
    answer = peer.answer(peer.call(method, b"abc", ("words", "because")))
    assert answer.ended
    assert (answer.head[":status"], answer.head["content-type"]) == ("200", CONTENT)
    assert (answer.data, answer.trailers) == (b"", {})
    assert answer.head["grpc-status"] == {"/test/Fail": "7", "/test/Late": "3", "/none/Such": "12"}[method]
    assert answer.head["grpc-message"] == ("Method not found!" if method == "/none/Such" else "because")


def test_8_1_a_client_that_has_not_ended_is_told_to_stop(peer: Peer) -> None:
    """RST_STREAM(NO_ERROR), after the end of the answer; not where the client has ended."""
    stream = peer.stream()
    peer.send(peer.opening(stream, "/test/Fail"), frame(DATA, 0, stream, message(b"", length=1000)))
    assert peer.read_until(RST_STREAM, stream).code == NO_ERROR
    assert peer.heard(stream).status == Code.PERMISSION_DENIED
    whole = peer.call("/test/Fail", None)
    assert peer.answer(whole).status == Code.PERMISSION_DENIED
    peer.settle()
    assert peer.heard(whole).reset is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_words_arrive_percent_encoded(serving: Serving, words: str) -> None:
    with serving.peer() as peer:
        application = serving.application
        stream = peer.call("/test/Never", b"")
        peer.settle()
        call = application.calls["/test/Never"].call
        serving.server.post(lambda: call.fail(Code.INTERNAL, words))
        sent = peer.answer(stream).head.get("grpc-message", "")
        assert all(" " <= letter <= "~" for letter in sent)
        assert unquote(sent, errors="strict") == words


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("100%", "100%25"),
        ("a\nb\tc", "a%0Ab%09c"),
        ("\u00e9\u20ac", "%C3%A9%E2%82%AC"),
        (" ~!", " ~!"),
        ("\x7f", "%7F"),
        ("%41", "%2541"),
    ],
)
def test_percent_encoding_by_example(
    peer: Peer, serving: Serving, application: Application, words: str, sent: str
) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    call = application.calls["/test/Never"].call
    serving.server.post(lambda: call.fail(Code.UNAVAILABLE, words))
    assert peer.answer(stream).head["grpc-message"] == sent


def test_words_of_the_greatest_length(peer: Peer, serving: Serving, application: Application) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    call = application.calls["/test/Never"].call
    serving.server.post(lambda: call.fail(Code.UNAVAILABLE, "\n" * DETAILS_LIMIT))
    assert unquote(peer.answer(stream).head["grpc-message"]) == "\n" * DETAILS_LIMIT


@pytest.mark.parametrize("method", ["/test/Drop", "/test/Break"])
def test_a_call_that_is_broken_off_was_cancelled(peer: Peer, method: str) -> None:
    stream = peer.call(method)
    answer = peer.answer(stream)
    assert answer.reset == CANCEL or answer.status == Code.CANCELLED


def test_the_application_is_told_once_of_each_end(peer: Peer, application: Application) -> None:
    peer.echo()
    application.wait("/test/Echo closed")
    told = application.calls["/test/Echo"]
    peer.settle()
    assert [event for event in sorted(told.events) if event != "announced"] == ["closed", "delivered", "received"]
    assert peer.answer(peer.call("/test/Late")).status == Code.INVALID_ARGUMENT
    application.wait("/test/Late closed")
    application.wait("/test/Late delivered")
    broken = peer.call("/test/Break")
    peer.answer(broken)
    application.wait("/test/Break cancelled")
    peer.settle()
    assert application.calls["/test/Break"].events.count("cancelled") == 1


def test_an_answer_from_another_turn_of_the_loop(peer: Peer, serving: Serving, application: Application) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    call = application.calls["/test/Never"].call
    serving.server.post(lambda: call.reply(b"at last"))
    assert peer.answer(stream).messages == [b"at last"]


def test_a_second_answer_is_no_harm(peer: Peer, serving: Serving, application: Application) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    call = application.calls["/test/Never"].call

    def twice() -> None:
        call.reply(b"one")
        call.reply(b"two")

    serving.server.post(twice)
    assert peer.answer(stream).messages == [b"one"]
    peer.echo()


@pytest.mark.usefixtures("errors_expected")
@pytest.mark.parametrize("method", ["/test/Raise", "/test/RaiseLater"])
def test_an_application_that_raises_ends_its_connection_at_worst(peer: Peer, method: str) -> None:
    """Not the loop, which the bystander proves; and nobody is left waiting."""
    stream = peer.call(method)
    with pytest.raises(ClosedError) as caught:
        peer.answer(stream)
    assert caught.value.code == INTERNAL_ERROR


def test_a_secret_answer_arrives_and_is_overwritten(peer: Peer, serving: Serving, application: Application) -> None:
    stream = peer.call("/test/Never")
    application.wait("/test/Never received")
    call = application.calls["/test/Never"].call
    secret = bytearray(b"s3cret" * 1000)
    serving.server.post(lambda: call.reply(bytes(secret), secret=True))
    assert peer.answer(stream).messages == [bytes(secret)]


def test_a_client_that_reads_nothing_holds_nobody_up(serving: Serving) -> None:
    """Its socket fills; others are served, and when it goes its calls end."""
    serving.application.seen.clear()
    with serving.peer((4, 2**31 - 1)) as deaf, serving.peer() as other:
        deaf.send(frame(8, 0, 0, (2**30).to_bytes(4, "big")))
        for _ in range(20):
            deaf.call("/test/Large", b"4000000")
        other.echo()
        serving.application.wait("/test/Large received", 20)
        for _ in range(20):
            other.echo()
    serving.application.wait("/test/Large closed", 0)
    with serving.peer() as after:
        after.echo()
