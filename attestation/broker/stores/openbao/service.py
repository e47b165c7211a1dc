"""Requests to one OpenBao server, a few connections that are used again, and its refusals by name.

The token is read from its source for each request, so that whoever renews the file need not tell us. Answers lie in
secret memory, because some hold secrets.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.stores.openbao.connection import Answer, Connection, StaleConnectionError
from hermetic.attestation.broker.stores.openbao.uri import BaoUri
from hermetic.attestation.broker.stores.secret_source import read_secret
from hermetic.attestation.broker.strict_json import parse_object
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import ConfigurationError, InvalidRequestError, KeyStoreError, KeyStoreUnavailableError

CONNECTIONS: Final = 4
"""Most requests at once."""

CALL_S: Final = 10.0
WAIT_S: Final = 5.0
MAX_ANSWER_OVERHEAD: Final = 16384
"""Headers, and what stands beside the secret in an answer, in bytes."""

MAX_REASON: Final = 300

_OK: Final = (200, 204)
_BAD_REQUEST: Final = 400
_NAMES: Final = {
    403: "permission denied, or the token has ended",
    404: "no such mount or key",
    429: "too many requests, or a standby",
    472: "a standby for disaster recovery",
    473: "a performance standby",
    503: "sealed, or down for maintenance",
}


class BaoService:
    """One server. Thread-safe."""

    def __init__(
        self, uri: BaoUri, credentials: Path | None, *, call_s: float = CALL_S, wait_s: float = WAIT_S
    ) -> None:
        """Connects with the first request. `call_s` and `wait_s`: longest time of a request, and for a free place."""
        self._uri = uri
        self._credentials = credentials
        self._context = uri.tls()
        self._call_s = call_s
        self._wait_s = wait_s
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._mutex = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    def close(self) -> None:
        """Close the connections."""
        with self._mutex:
            self._closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.close()

    def ask(self, method: str, path: str, body: JsonValue = None) -> dict[str, JsonValue]:
        """The JSON object that a request without secrets is answered with; {} for an empty one."""
        parts = (b"" if body is None else json.dumps(body).encode(),)
        with self.request(method, path, parts) as answer:
            return parsed(answer)

    @contextlib.contextmanager
    def request(
        self, method: str, path: str, body: Sequence[bytes | memoryview], room: int = 0
    ) -> Iterator[memoryview]:
        """Send `body`'s parts; gives the answer's body, wiped at the end, with `room` bytes more than usual.

        Raises `KeyStoreError` where the server says that the request is at fault (400), else
        `KeyStoreUnavailableError`.
        """
        if not self._places.acquire(timeout=self._wait_s):
            raise KeyStoreUnavailableError(
                f"openbao: expected one of {CONNECTIONS} connections free within {self._wait_s} s, got none"
            )
        try:
            with KeyMemory(room + MAX_ANSWER_OVERHEAD) as memory, memory.view as into:
                answer = self._send(method, path, body, into)
                with answer.body as content:
                    _check_status(answer.status, content)
                    yield content
        finally:
            self._places.release()

    def _send(self, method: str, path: str, body: Sequence[bytes | memoryview], into: memoryview) -> Answer:
        deadline = time.monotonic() + self._call_s
        length = sum(map(len, body))
        token = self._token()
        try:
            head = (
                f"{method} /v1/{path} HTTP/1.1\r\nHost: {self._uri.authority}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
                "X-Vault-Request: true\r\nX-Vault-Token: "
            ).encode()
            parts = (head, token, b"\r\n\r\n", *body)
            with KeyMemory(sum(map(len, parts))) as memory, memory.view as request:
                end = 0
                for part in parts:
                    request[end : (end := end + len(part))] = part
                return self._exchange(request, into, deadline)
        finally:
            token[:] = bytes(len(token))

    def _exchange(self, request: memoryview, into: memoryview, deadline: float) -> Answer:
        """On a connection that was used before, or where that had been closed meanwhile, on a new one."""
        connection = self._take()
        if connection is not None:
            try:
                return self._with(connection, request, into, deadline)
            except StaleConnectionError:
                pass
        return self._with(Connection(self._uri.host, self._uri.port, self._context, deadline), request, into, deadline)

    def _with(self, connection: Connection, request: memoryview, into: memoryview, deadline: float) -> Answer:
        answer = connection.exchange(request, into, deadline)
        with self._mutex:
            if connection.open and not self._closed:
                self._idle.append(connection)
                return answer
        connection.close()
        return answer

    def _take(self) -> Connection | None:
        with self._mutex:
            if self._closed:
                raise KeyStoreError("openbao: expected an open key store, got a closed one")
            return self._idle.pop() if self._idle else None

    def _token(self) -> bytearray:
        try:
            token = read_secret(self._uri.token_source, self._credentials, "token-source")
        except ConfigurationError as error:
            raise KeyStoreUnavailableError(f"openbao: {error}") from error
        if not all(0x21 <= character <= 0x7E for character in token):  # noqa: PLR2004 - visible ASCII
            raise KeyStoreUnavailableError("openbao: token-source: expected a token of visible ASCII, got other bytes")
        return token


def parsed(body: memoryview) -> dict[str, JsonValue]:
    """The JSON object in an answer that holds no secret (any more)."""
    if not len(body):
        return {}
    try:
        return parse_object(bytes(body), "openbao's answer")
    except InvalidRequestError as error:
        raise KeyStoreUnavailableError(str(error)) from error


def _check_status(status: int, body: memoryview) -> None:
    if status in _OK:
        return
    try:
        errors = parsed(body).get("errors")
    except KeyStoreUnavailableError:
        errors = None
    reason = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    text = f"openbao: expected 200, got {status} {_NAMES.get(status, '')}: {reason[:MAX_REASON]}".rstrip(": ")
    raise KeyStoreError(text) if status == _BAD_REQUEST else KeyStoreUnavailableError(text)
