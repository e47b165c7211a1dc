"""A request as handlers see it, its body as it comes, and an answer."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

JSON: Final = "application/json"
MOST_PARAMETERS: Final = 16
"""Of a query."""

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class DisconnectedError(Exception):
    """The rest of a body will never come."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: the certificate that TLS has verified (DER), where there is one, and the address."""

    certificate: bytes | None
    address: str


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; `headers` beside its type and length."""

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = JSON


def json_response(members: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of JSON."""
    return Response(_encode(members).encode(), status, headers or {})


class Body:
    """The body of a request, as it comes. Nobody asks for more of it than `read` allows."""

    def __init__(self, ask: Callable[[], None]) -> None:
        """`ask` is called once somebody wants what has not come yet."""
        self.complete = False
        self._ask = ask
        self._data = bytearray()
        self._most: int | None = None  # once somebody reads
        self._over = False  # nobody wants more of it
        self._broken = False
        self._waiting: asyncio.Future[None] | None = None

    @property
    def unclaimed(self) -> int:
        """Bytes that have come before anybody has said how many are too many."""
        return len(self._data) if self._most is None else 0

    def add(self, part: bytes) -> None:
        """Take what has come."""
        if self._over:
            return
        self._data += part
        if self._most is not None and len(self._data) > self._most:
            self._over = True
            self._wake()

    def end(self) -> None:
        """It is whole."""
        self.complete = True
        self._wake()

    def break_off(self) -> None:
        """The rest will never come."""
        self._broken = True
        self._wake()

    def drop(self) -> None:
        """Nobody reads it any more."""
        self._over = True
        self._data = bytearray()

    async def read(self, most: int) -> bytearray | None:
        """All of it, once, in a buffer that can be wiped; None where it is longer than `most` bytes.

        Raises `DisconnectedError`.
        """
        self._most = most
        if len(self._data) <= most and not self.complete and not self._broken:
            self._waiting = asyncio.get_running_loop().create_future()
            self._ask()
            await self._waiting
        if len(self._data) > most:
            return None
        if not self.complete:
            raise DisconnectedError
        data, self._data = self._data, bytearray()
        return data

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Request:
    """One request. Names of `headers` are lower case; of several of one name the first counts, cookies are joined."""

    def __init__(
        self, method: str, path: str, query: bytes, headers: Mapping[str, str], peer: Peer, body: Body
    ) -> None:
        """`path` is without escapes."""
        self.method = method
        self.path = path
        self.headers = headers
        self.peer = peer
        self.body = body
        self.path_params: Mapping[str, str] = {}
        self._query = query

    def cookie(self, name: str) -> str | None:
        """The value of a cookie."""
        for pair in self.headers.get("cookie", "").split(";"):
            key, _, value = pair.partition("=")
            if key.strip() == name:
                return value.strip()
        return None

    def parameter(self, name: str) -> str | None:
        """The value of a query's parameter; raises `ValueError` for a query of too many."""
        if not self._query:
            return None
        pairs = parse_qsl(self._query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
        return dict(pairs).get(name)
