"""HTTP/1.1 of one connection: requests out of bytes, answers in their order (docs/adr/0241).

llhttp takes requests apart and says where each ends; it bounds nothing, so what it may hold is counted here.
Not here: TLS, time, and how many connections there may be (front.py).
"""

import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

import httptools

from hermetic.attestation.broker.request import Body, Peer, Request, Response

HEADER_BYTES: Final = 64 * 1024
"""Longest request line and headers together; a token fits."""
HEADER_COST: Final = 64
"""What a header counts beside its bytes: many short ones take more memory than one long one."""
PIPELINED: Final = 8
"""Most requests of a connection that wait for the one before them; one read may hold thousands."""
UNCLAIMED_BYTES: Final = 64 * 1024
"""Of a body that nobody has asked for yet; nothing more is read meanwhile."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_TEXT: Final = "text/plain; charset=utf-8"
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class Link(Protocol):
    """What carries a conversation."""

    def send(self, data: bytes) -> None:
        """Send `data`."""

    def finish(self) -> None:
        """Close, with what was sent as the last word."""

    def pause(self) -> None:
        """Hand on nothing more for now."""

    def resume(self) -> None:
        """Hand on what comes."""

    def serve(self, exchange: "Exchange") -> None:
        """Have `exchange.request` answered: `Conversation.answered` follows, later."""

    def rest(self) -> None:
        """Take note that nothing is to be answered."""


class Exchange:
    """A request, and how it is answered; `request` is None where what came is none, and `fault` says why."""

    def __init__(self, request: Request | None, *, keep_alive: bool, fault: str = "") -> None:
        """Hold them."""
        self.request = request
        self.keep_alive = keep_alive
        self.fault = fault


class Conversation:
    """Takes in what a client says, and has it answered, one request after the other."""

    def __init__(self, peer: Peer, link: Link) -> None:
        """Nothing was said yet."""
        self._peer = peer
        self._link = link
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()  # the first of them is being answered
        self._busy = False
        self._stuck = False  # the client does not read
        self._last = False  # nothing that comes is a request any more
        self._body: Body | None = None  # of the request that is being read
        self._head = 0  # bytes of this request's line and headers
        self._pending = 0  # bytes since the parser said anything, which it may hold
        self._url = b""
        self._headers: dict[str, str] = {}

    @property
    def answering(self) -> bool:
        """Whether a request that is whole is being answered."""
        if not self._busy:
            return False
        request = self._waiting[0].request
        return request is not None and request.body.complete

    def take(self, data: bytes) -> None:
        """Take what has come."""
        if self._last:
            return
        self._pending += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after_these()  # there is no other protocol here
        except httptools.HttpParserError:
            self._refuse("Invalid HTTP request received.")
        else:
            if self._pending > HEADER_BYTES:
                self._refuse("Request head too long.")
        if self._body is not None and self._body.unclaimed > UNCLAIMED_BYTES:
            self._link.pause()
        self._go_on()

    def answered(self, exchange: Exchange, response: Response) -> None:
        """Send the answer to the first that waits."""
        request = exchange.request
        keep_alive = exchange.keep_alive
        self._busy = False
        self._waiting.popleft()
        self._link.send(encode(response, bare=request is not None and request.method == "HEAD", keep_alive=keep_alive))
        if not keep_alive:
            self._last = True
            self._waiting.clear()
            self._link.finish()
            return
        if request is not None:
            request.body.drop()
        self._go_on()
        if not self._busy:
            self._link.rest()
            self._link.resume()

    def leave(self) -> None:
        """Answer what is being answered, and nothing more."""
        if not self._waiting:
            self._last = True
            self._link.finish()
        else:
            self._waiting[0].keep_alive = False

    def lost(self) -> None:
        """The client is gone."""
        self._last = True
        if self._body is not None and not self._body.complete:
            self._body.break_off()

    def write_on(self, *, stuck: bool) -> None:
        """Take note whether the client reads what is sent: else nothing more is begun for it."""
        self._stuck = stuck
        if stuck:
            self._link.pause()
            return
        if len(self._waiting) <= 1:
            self._link.resume()
        self._go_on()

    # -- what the parser calls ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin to count; the client is told where too many wait."""
        if len(self._waiting) > PIPELINED:
            raise ValueError(f"requests: expected at most {PIPELINED} that wait, got more")
        self._head = 0
        self._url = b""
        self._headers = {}
        self._body = None

    def on_url(self, url: bytes) -> None:
        """Count."""
        self._count(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count; trailers behind a body are headers too, and nobody wants them."""
        self._count(len(name) + len(value) + HEADER_COST)
        if self._body is not None:
            return
        key, said = name.lower().decode("latin-1"), value.decode("latin-1")
        if key == "cookie" and key in self._headers:
            self._headers[key] += f"; {said}"
        else:
            self._headers.setdefault(key, said)

    def on_headers_complete(self) -> None:
        """Nothing of the head is held any more: it is a request."""
        self._pending = 0
        if (coding := self._headers.get("transfer-encoding")) is not None and coding.lower() != "chunked":
            raise ValueError(f"transfer-encoding: expected chunked, got {coding!r}")  # the parser would say so later
        url: Any = httptools.parse_url(self._url)  # its types name None nowhere
        path, query = url.path.decode("ascii"), url.query or b""
        if "%" in path:
            path = unquote(path)
        method = self._parser.get_method().decode("ascii")
        body = Body(self._asker(self._headers))
        request = Request(method, path, query, self._headers, self._peer, body)
        keep_alive = self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()
        self._waiting.append(Exchange(request, keep_alive=keep_alive))
        self._body = body
        if len(self._waiting) > 1:
            self._link.pause()  # until those before it are answered

    def on_body(self, body: bytes) -> None:
        """The parser has handed on what it held."""
        self._pending = 0
        if self._body is not None:
            self._body.add(body)

    def on_message_complete(self) -> None:
        """Here too."""
        self._pending = 0
        if self._body is not None:
            self._body.end()

    # -- ----------------------------------------------------------------------------------------------------------

    def _count(self, length: int) -> None:
        self._head += length
        if self._head > HEADER_BYTES:
            raise ValueError(f"head: expected at most {HEADER_BYTES} bytes, got more")  # the parser says so

    def _asker(self, headers: dict[str, str]) -> Callable[[], None]:
        """What is done once the rest of a body is wanted."""
        asks_first = headers.get("expect", "").lower() == "100-continue"

        def ask() -> None:
            if asks_first:
                self._link.send(_CONTINUE)
            self._link.resume()

        return ask

    def _refuse(self, fault: str) -> None:
        """What has come is no request, or not the rest of one."""
        self._last = True
        if self._body is not None and not self._body.complete:
            self._body.break_off()
            self._waiting[-1].keep_alive = False
        else:
            self._waiting.append(Exchange(None, keep_alive=False, fault=fault))

    def _end_after_these(self) -> None:
        self._last = True
        if self._waiting:
            self._waiting[-1].keep_alive = False

    def _go_on(self) -> None:
        if self._busy or self._stuck or not self._waiting:
            return
        self._busy = True
        exchange = self._waiting[0]
        if exchange.request is None:
            self.answered(exchange, Response(exchange.fault.encode(), 400, media_type=_TEXT))
        else:
            self._link.serve(exchange)


def encode(response: Response, *, bare: bool, keep_alive: bool) -> bytes:
    """The bytes of an answer, head and body together; `bare`: the head alone. Raises `ValueError`."""
    lines = [
        f"HTTP/1.1 {response.status} {_PHRASES.get(response.status, '')}",
        f"date: {_date(int(time.time()))}",
        f"content-length: {len(response.content)}",
        f"content-type: {response.media_type}",
    ]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if not keep_alive:
        lines.append("connection: close")
    if not "".join(lines).isprintable():
        raise ValueError("header: expected printable characters, got others")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if bare else head + response.content


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
