"""A conversation over HTTP/1.1, in memory: where a request ends, what is kept, and in which order answers come."""

import asyncio
from dataclasses import dataclass, field

import pytest

from hermetic.attestation.broker.http1 import HEADER_BYTES, PIPELINED, UNCLAIMED_BYTES, Conversation, Exchange, encode
from hermetic.attestation.broker.request import Body, DisconnectedError, Peer, Request, Response

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Line:
    """Where a conversation's words go; nothing is answered by itself."""

    sent: list[bytes] = field(default_factory=list)
    served: list[Exchange] = field(default_factory=list)
    finished: bool = False
    paused: bool = False
    rested: int = 0

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def finish(self) -> None:
        self.finished = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def serve(self, exchange: Exchange) -> None:
        self.served.append(exchange)

    def rest(self) -> None:
        self.rested += 1


def begin() -> tuple[Conversation, Line]:
    line = Line()
    return Conversation(Peer(None, "127.0.0.1"), line), line


def asked(line: Line) -> list[Request]:
    return [one.request for one in line.served if one.request is not None]


def test_a_request_as_handlers_see_it() -> None:
    talk, line = begin()
    head = b"POST /a%2Fb/c?x=1&y= HTTP/1.1\r\nHost: x\r\nCookie: a=1\r\ncookie: b = 2\r\nX: one\r\nx: two\r\n"
    for byte in head + b"content-length: 2\r\n\r\n{}":
        talk.take(bytes([byte]))
    (request,) = asked(line)
    assert (request.method, request.path) == ("POST", "/a/b/c")
    assert [request.parameter(name) for name in ("x", "y", "z")] == ["1", "", None]
    assert [request.cookie(name) for name in ("a", "b", "c")] == ["1", "2", None]
    assert request.headers["x"] == "one"
    assert asyncio.run(request.body.read(2)) == bytearray(b"{}")


def test_one_request_after_the_other_is_begun() -> None:
    talk, line = begin()
    talk.take(GET * 3)
    assert line.paused
    for number in range(3):
        assert len(line.served) == number + 1
        talk.answered(line.served[-1], Response(b"%d" % number))
    assert [answer[-1:] for answer in line.sent] == [b"0", b"1", b"2"]
    assert (line.paused, line.rested, line.finished) == (False, 1, False)


def test_more_than_a_few_that_wait_are_refused_behind_the_others() -> None:
    talk, line = begin()
    talk.take(GET * 1000)
    for number in range(PIPELINED + 1):
        talk.answered(line.served[number], Response(b"fine"))
    assert len(line.served) == PIPELINED + 1
    assert [answer.split(b" ")[1] for answer in line.sent] == [b"200"] * (PIPELINED + 1) + [b"400"]
    assert line.finished


def test_who_does_not_read_gets_nothing_begun() -> None:
    """Answers would pile up."""
    talk, line = begin()
    talk.take(GET * 2)
    talk.write_on(stuck=True)
    talk.answered(line.served[0], Response(b""))
    assert len(line.served) == 1
    talk.write_on(stuck=False)
    assert len(line.served) == 2


@pytest.mark.parametrize(
    "said",
    [
        b"GET /a HTTP/1.1\nhost: x\n\n",
        b"GET /a HTTP/1.1\r\nhost: x\x00y\r\n\r\n",
        b"GET /a HTTP/1.1\r\nhost: x\rcontent-length: 5\r\n\r\n",
        b"GET /a HTTP/1.1\r\n host: x\r\n\r\n",
        b"GET /a HTTP/3.7\r\nhost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /a HTTP/1.1\r\ncontent-length: 5, 5\r\n\r\n",
        b"POST /a HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
        b"POST /a HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n",
        b"POST /a HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_what_is_no_request_is_not_one(said: bytes) -> None:
    talk, line = begin()
    talk.take(said + GET)
    assert not line.served
    assert line.sent[0].startswith(b"HTTP/1.1 400 ")
    assert line.finished


@pytest.mark.parametrize(
    "rest",
    [b"g\r\n", b"-1\r\n", b"5\nhello", b"5\r\nhelloX", b"ffffffffffffffffff\r\n", b"2\r\nhi\r\n0\r\nx y: z\r\n\r\n"],
)
def test_a_bad_chunk_ends_the_request(rest: bytes) -> None:
    talk, line = begin()
    talk.take(CHUNKED + b"1\r\na\r\n" + rest + GET)
    (request,) = asked(line)
    with pytest.raises(DisconnectedError):
        asyncio.run(request.body.read(100))
    talk.answered(line.served[0], Response(b"", 400))
    assert line.finished
    assert len(line.served) == 1


def test_a_head_is_bounded_and_so_are_trailers() -> None:
    long = b"x" * (HEADER_BYTES // 4)
    for begun in (b"GET /a HTTP/1.1\r\nx: ", b"GET /", CHUNKED + b"0\r\nx: "):
        talk, line = begin()
        talk.take(begun)
        for _ in range(6):
            talk.take(long)
        for exchange in line.served:
            talk.answered(exchange, Response(b"", 400))
        assert line.finished
        assert line.sent[0].startswith(b"HTTP/1.1 400 ")


def test_a_trailer_is_no_header() -> None:
    talk, line = begin()
    talk.take(CHUNKED + b"0\r\ncookie: a=1\r\nauthorization: bearer x\r\n\r\n")
    (request,) = asked(line)
    assert request.body.complete
    assert set(request.headers) == {"host", "transfer-encoding"}


def test_a_body_that_nobody_has_asked_for_is_not_read_on() -> None:
    talk, line = begin()
    talk.take(b"POST /a HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n" + b"x" * (UNCLAIMED_BYTES + 1))
    assert line.paused
    (request,) = asked(line)

    async def read() -> bytearray | None:
        reading = asyncio.create_task(request.body.read(UNCLAIMED_BYTES + 10))
        await asyncio.sleep(0)
        assert not line.paused
        talk.take(b"x" * 10)  # more than the reader wants
        return await reading

    assert asyncio.run(read()) is None
    talk.answered(line.served[0], Response(b"", 413))
    talk.take(b"x" * (1_000_000 - UNCLAIMED_BYTES - 11) + GET)  # the rest is dropped, and then there is another request
    assert len(line.served) == 2
    assert not request.body._data


def test_behind_an_upgrade_nothing_is_a_request() -> None:
    talk, line = begin()
    talk.take(b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" + GET)
    talk.take(GET)
    talk.answered(line.served[0], Response(b""))
    assert b"\r\nconnection: close\r\n" in line.sent[0]
    assert (len(line.served), line.finished) == (1, True)


@pytest.mark.parametrize("head", [b"GET /a HTTP/1.0\r\n\r\n", b"GET /a HTTP/1.1\r\nconnection: close\r\n\r\n"])
def test_who_wants_one_answer_gets_one(head: bytes) -> None:
    talk, line = begin()
    talk.take(head + GET)
    talk.answered(line.served[0], Response(b"fine"))
    assert (len(line.served), len(line.sent), line.finished) == (1, 1, True)


def test_a_client_that_leaves_in_the_middle_of_a_body() -> None:
    talk, line = begin()
    talk.take(POST + b"1234")
    talk.lost()
    (request,) = asked(line)
    with pytest.raises(DisconnectedError):
        asyncio.run(request.body.read(100))


def test_no_answer_has_a_header_of_somebody_else() -> None:
    for value in ("a\r\nset-cookie: x", "a\nb", "a\x00"):
        with pytest.raises(ValueError, match="printable"):
            encode(Response(b"", headers={"x": value}), bare=False, keep_alive=True)


def test_a_head_alone() -> None:
    whole = encode(Response(b"12345"), bare=False, keep_alive=True)
    bare = encode(Response(b"12345"), bare=True, keep_alive=True)
    assert whole == bare + b"12345"
    assert b"\r\ncontent-length: 5\r\n" in bare


def test_a_body_is_read_once() -> None:
    body = Body(lambda: None)
    body.add(b"ab")
    body.end()
    assert asyncio.run(body.read(2)) == bytearray(b"ab")
    assert asyncio.run(body.read(2)) == bytearray()
