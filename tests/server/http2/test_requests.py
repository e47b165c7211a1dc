"""The head of a request: what HTTP/2 calls malformed (RFC 9113 sections 8.1.1 to 8.3), and what gRPC refuses."""

import logging
import time

import pytest
from hpack import Encoder

from hermetic.server.config import Limits
from hermetic.server.http2.heads import Heads
from hermetic.server.status import Code
from tests.server.http2.application import Application
from tests.server.http2.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEADERS,
    NO_ERROR,
    PROTOCOL_ERROR,
    Answer,
    Fields,
    Peer,
    block,
    fields,
    frame,
    message,
)  # fmt: skip

BODY = message(b"body")
REGULAR = ("x-regular", "1")


def ask(peer: Peer, head: Fields, *, body: bytes = BODY) -> Answer:
    """The answer to one request with these fields, be they sound or not."""
    stream = peer.stream()
    peer.send(frame(HEADERS, END_HEADERS, stream, block(head)), frame(DATA, END_STREAM, stream, body))
    return peer.answer(stream)


MALFORMED: dict[str, Fields] = {
    "8.2.1 an upper-case name": fields("/test/Echo", ("X-Upper", "1")),
    "8.2.1 an upper-case letter at the end": fields("/test/Echo", ("x-uppeR", "1")),
    "8.2.1 an empty name": fields("/test/Echo", ("", "1")),
    "8.2.1 a space in a name": fields("/test/Echo", ("x upper", "1")),
    "8.2.1 a control character in a name": fields("/test/Echo", ("x\x01", "1")),
    "8.2.1 a byte above ASCII in a name": fields("/test/Echo", ("x\u00e9", "1")),
    "8.2.1 a colon in a name": fields("/test/Echo", ("x:y", "1")),
    "8.2.1 NUL in a value": fields("/test/Echo", ("x", "a\0b")),
    "8.2.1 CR in a value": fields("/test/Echo", ("x", "a\rb")),
    "8.2.1 LF in a value": fields("/test/Echo", ("x", "a\nb")),
    "8.2.1 LF in the path": fields("/test/Echo\n"),
    "8.2.2 connection": fields("/test/Echo", ("connection", "keep-alive")),
    "8.2.2 proxy-connection": fields("/test/Echo", ("proxy-connection", "close")),
    "8.2.2 keep-alive": fields("/test/Echo", ("keep-alive", "1")),
    "8.2.2 transfer-encoding": fields("/test/Echo", ("transfer-encoding", "chunked")),
    "8.2.2 upgrade": fields("/test/Echo", ("upgrade", "h2c")),
    "8.2.2 te other than trailers": fields(te="trailers, deflate"),
    "8.3 an unknown pseudo-field": [(":test", "1"), *fields()],
    "8.3 a pseudo-field of answers": [(":status", "200"), *fields()],
    "8.3 a pseudo-field after others": [*fields(without=":scheme"), (":scheme", "http")],
    "8.3 only an unknown one, after others": [*fields(), (":unknown", "1")],
    "8.3.1 no method": fields(without=":method"),
    "8.3.1 no scheme": fields(without=":scheme"),
    "8.3.1 no path": fields(without=":path"),
    "8.3.1 an empty path": fields(""),
    "8.3.1 two methods": [(":method", "POST"), *fields()],
    "8.3.1 two schemes": [(":scheme", "https"), *fields()],
    "8.3.1 two paths": [(":path", "/test/Echo"), *fields()],
    "8.3.1 two authorities": [(":authority", "localhost"), *fields()],
    "8.3.1 no field at all": [],
    "8.1.1 a content-length beyond the data": fields("/test/Echo", ("content-length", str(len(BODY) + 1))),
    "8.1.1 a content-length within the data": fields("/test/Echo", ("content-length", str(len(BODY) - 1))),
    "8.1.1 a content-length that is no number": fields("/test/Echo", ("content-length", "-1")),
    "8.1.1 two content-lengths": fields("/test/Echo", ("content-length", str(len(BODY))), ("content-length", "1")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request(peer: Peer, application: Application, name: str) -> None:
    answer = ask(peer, MALFORMED[name])
    assert (answer.reset, answer.head) == (PROTOCOL_ERROR, {})
    assert not application.seen["/test/Echo received"]
    peer.echo()


def test_8_1_1_a_content_length_over_several_frames(peer: Peer) -> None:
    for length, sound in ((len(BODY), True), (len(BODY) + 3, False), (2, False)):
        stream = peer.stream()
        peer.send(peer.opening(stream, "/test/Echo", ("content-length", str(length))))
        peer.send(frame(DATA, 0, stream, BODY[:4]), frame(DATA, END_STREAM, stream, BODY[4:]))
        answer = peer.answer(stream)
        assert (answer.status == 0) == sound
        assert (answer.reset == PROTOCOL_ERROR) != sound


SOUND: dict[str, Fields] = {
    "no authority": fields(without=":authority"),
    "https": fields(scheme="https"),
    "host in place of authority": [*fields(without=":authority"), ("host", "localhost")],
    "no te": fields(without="te"),
    "fields twice": fields("/test/Echo", ("x-a", "1"), ("x-a", "2")),
    "an empty value": fields("/test/Echo", ("x-a", "")),
    "spaces around a value, which gRPC allows": fields("/test/Echo", ("x-a", " a\t")),
    "cookies in parts": fields("/test/Echo", ("cookie", "a=1"), ("cookie", "b=2")),
    "content-type with a suffix": fields(content_type="application/grpc+proto"),
    "content-type with a parameter": fields(content_type="application/grpc;charset=utf-8"),
    "content-length": fields("/test/Echo", ("content-length", str(len(BODY)))),
    "every character of a token": fields("/test/Echo", ("!#$%&'*+-.^_`|~09az", "1")),
    "binary metadata": fields("/test/Echo", ("x-bin", "AAEC/w")),
    "identity": fields("/test/Echo", ("grpc-encoding", "identity")),
    "an encoding that is not used": fields("/test/Echo", ("grpc-encoding", "gzip")),
    "an offer of encodings": fields("/test/Echo", ("grpc-accept-encoding", "identity, deflate, gzip, zstd")),
    "the longest timeout": fields("/test/Echo", ("grpc-timeout", "99999999H")),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_request(peer: Peer, name: str) -> None:
    answer = ask(peer, SOUND[name])
    assert (answer.status, answer.messages) == (0, [b"body"])


def test_8_2_a_value_with_bytes_above_ascii_harms_nobody(peer: Peer) -> None:
    """obs-text is allowed in HTTP (RFC 9110 section 5.5), in gRPC's ASCII values it is not."""
    stream = peer.stream()
    field = b"\0\x01x\x03a\xe9\xff"
    peer.send(frame(HEADERS, END_HEADERS, stream, block(fields()) + field), frame(DATA, END_STREAM, stream, BODY))
    answer = peer.answer(stream)
    assert answer.status == 0 or answer.reset == PROTOCOL_ERROR
    peer.echo()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "CONNECT", "OPTIONS", "post", "PRI"])
def test_grpc_a_method_other_than_post(peer: Peer, application: Application, method: str) -> None:
    answer = ask(peer, fields(method=method))
    assert answer.reset == PROTOCOL_ERROR or answer.head[":status"] == "405"
    assert not application.seen["/test/Echo accepted"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "application/grp", "application/grpcx", "application/grpc-web", ""]
)
def test_grpc_another_content_type_is_http_415(peer: Peer, application: Application, kind: str) -> None:
    answer = ask(peer, fields(content_type=kind))
    assert answer.head[":status"] == "415"
    assert answer.ended
    assert not application.seen["/test/Echo accepted"]


def test_grpc_no_content_type_is_http_415(peer: Peer) -> None:
    assert ask(peer, fields(without="content-type")).head[":status"] == "415"


@pytest.mark.parametrize(
    "path", ["/none/Such", "/test", "/", "//", "*", "/test/Echo/", "/test/echo", "/test/%45cho", "/\u00e9"]
)
def test_grpc_a_method_that_no_service_has(peer: Peer, application: Application, path: str) -> None:
    answer = ask(peer, fields(path))
    assert answer.status == Code.UNIMPLEMENTED or answer.reset == PROTOCOL_ERROR
    assert not application.seen["/test/Echo accepted"]
    peer.echo()


@pytest.mark.parametrize(
    "timeout", ["", "1", "S", "1s", "-1S", "+1S", " 1S", "1 S", "123456789S", "1.5S", "0x1S", "\u00b9S", "1SS", "1_0S"]
)
def test_grpc_a_timeout_that_is_none(peer: Peer, application: Application, timeout: str) -> None:
    answer = ask(peer, fields("/test/Echo", ("grpc-timeout", timeout)))
    assert answer.status == Code.INTERNAL or answer.reset == PROTOCOL_ERROR
    assert not application.seen["/test/Echo received"]


@pytest.mark.parametrize(("unit", "seconds"), [("H", 3600), ("M", 60), ("S", 1), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9)])
def test_grpc_the_units_of_timeouts(peer: Peer, application: Application, unit: str, seconds: float) -> None:
    digits = min(99999999, round(5000 / seconds))
    before = time.time()
    stream = peer.call("/test/Never", b"", ("grpc-timeout", f"{digits}{unit}"))
    if digits * seconds < 1:
        assert peer.answer(stream).status == Code.DEADLINE_EXCEEDED
        return
    application.wait("/test/Never received")
    deadline = application.calls["/test/Never"].call.deadline
    assert before <= deadline - digits * seconds <= time.time() + 0.001


def test_grpc_without_a_timeout_there_is_no_deadline(peer: Peer, application: Application) -> None:
    peer.echo()
    assert application.calls["/test/Echo"].call.deadline > time.time() + 1e9


@pytest.mark.parametrize("encoding", ["snappy", "zstd", "GZIP", "gzip, deflate", ""])
def test_grpc_an_encoding_that_is_not_spoken(peer: Peer, application: Application, encoding: str) -> None:
    answer = ask(peer, fields("/test/Echo", ("grpc-encoding", encoding)))
    assert answer.status == Code.UNIMPLEMENTED
    assert "gzip" in answer.head["grpc-accept-encoding"]
    assert not application.seen["/test/Echo received"]


def test_metadata_as_it_was_sent(peer: Peer) -> None:
    sent = [("x-one", "1"), ("x-two", "a, b"), ("x-one", "again"), ("user-agent", "by hand")]
    for name, value in (("x-one", "1"), ("x-two", "a, b"), ("user-agent", "by hand"), ("x-none", "none")):
        assert peer.answer(peer.call("/test/Meta", name.encode(), *sent)).messages == [value.encode()]


def test_no_field_is_written_to_a_log(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """The decoder writes all of them to its own, for whoever debugs it."""
    with caplog.at_level(logging.DEBUG):
        assert peer.answer(peer.call("/test/Meta", b"x-token", ("x-token", "s3cret"))).messages == [b"s3cret"]
    assert not [record for record in caplog.records if "s3cret" in record.getMessage()]


def large_head(size: int) -> bytes:
    """A header block whose list is about `size` bytes as RFC 9113 section 6.5.2 counts them."""
    more = [(f"x-{at:04}", "v" * 462) for at in range(max(0, size - 300) // 500)]
    return block(fields("/test/Echo", *more))


def open_with(peer: Peer, head: bytes) -> int:
    stream = peer.stream()
    parts = [head[at : at + FRAME_BYTES] for at in range(0, len(head), FRAME_BYTES)]
    frames = [frame(HEADERS if at == 0 else CONTINUATION, 0, stream, part) for at, part in enumerate(parts)]
    last = bytearray(frames[-1])
    last[4] |= END_HEADERS
    peer.send(*frames[:-1], bytes(last))
    return stream


def test_10_5_1_metadata_up_to_the_limit(peer: Peer) -> None:
    stream = open_with(peer, large_head(Limits().metadata_bytes - 500))
    peer.send(frame(DATA, END_STREAM, stream, BODY))
    assert peer.answer(stream).messages == [b"body"]


@pytest.mark.parametrize("times", [1.2, 2, 3])
def test_10_5_1_more_metadata_than_that_is_the_calls_fault_alone(
    peer: Peer, application: Application, times: float
) -> None:
    answer = peer.answer(open_with(peer, large_head(round(times * Limits().metadata_bytes))))
    assert answer.status == Code.RESOURCE_EXHAUSTED
    assert answer.reset in (NO_ERROR, None)
    assert not application.seen["/test/Echo received"]
    peer.echo()


def test_fields_that_nobody_reads_are_not_kept() -> None:
    """They may be long, and tokens: 16 KiB for each open call would be in no account."""
    heads = Heads(16384, frozenset({"words"}))
    sent = [
        (":method", "POST"), (":scheme", "http"), (":path", "/test/Echo"), ("content-type", "application/grpc"),
        ("authorization", "Bearer s3cret"), ("words", "kept"),
    ]  # fmt: skip
    assert heads.head(Encoder().encode(sent)).fields == (("words", "kept"),)
