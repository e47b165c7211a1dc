"""`Application`: which path is whose, and what every failure is answered with (docs/spec/key-broker.md, section 5).

An ASGI application on Starlette's requests and responses, without its layers: a table, one try, and the body of a
refusal. What the handlers do is app.py's and admin_app.py's.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from hermetic.attestation.broker.counts import Counts
from hermetic.attestation.broker.refusals import RETRY_AFTER_S, Refusal, Variant
from hermetic.errors import CallerError, KeyStoreUnavailableError, SharedStateError

PLUGINS_PREFIX: Final = "/kbs/v0/"

Handler = Callable[[Request], Awaitable[Response]]

_FOR_NOW: Final = frozenset({Variant.TOO_MANY_REQUESTS, Variant.KEY_STORE_UNAVAILABLE, Variant.STATE_UNAVAILABLE})

# Not a logger that shows local variables beside a traceback: keys are local variables.
_log = logging.getLogger("hermetic.broker")


class Application:
    """An application that answers every failure with the protocol's body."""

    def __init__(self, routes: Mapping[tuple[str, str], Handler], counts: Counts) -> None:
        """`routes` is (method, path) to handler; a path may have `{name}`, one segment, or `{name:path}`, the rest."""
        self._counts = counts
        self._exact: dict[tuple[str, str], Handler] = {("GET", "/healthz"): _health, ("HEAD", "/healthz"): _health}
        self._exact |= {key: handler for key, handler in routes.items() if "{" not in key[1]}
        self._patterns = [
            (method, compile_path(path)[0], handler) for (method, path), handler in routes.items() if "{" in path
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive, send)
        try:
            response = await self._handler(scope)(request)
        except Exception as error:  # noqa: BLE001 - each has its answer
            response = self._answer(scope["path"], error)
        await response(scope, receive, send)

    def _handler(self, scope: Scope) -> Handler:
        """Whose request it is; raises `Refusal` where it is nobody's."""
        method, path = scope["method"], scope["path"]
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact
        for wanted, pattern, handler in self._patterns:
            if wanted == method and (found := pattern.match(path)) is not None:
                scope["path_params"] = found.groupdict()
                return handler
        raise _unknown(path)

    def _answer(self, path: str, error: Exception) -> Response:
        if isinstance(error, CallerError):
            return self._refused(error if isinstance(error, Refusal) else Refusal(Variant.INVALID_REQUEST, str(error)))
        if isinstance(error, ClientDisconnect):
            return Response(status_code=400)
        if isinstance(error, KeyStoreUnavailableError):
            # What opens the keys is away: the caller may ask again; why is for our own log.
            _log.warning("key store unavailable: path %r: %s", path, error)
            return self._refused(_later(Variant.KEY_STORE_UNAVAILABLE, "key store"))
        if isinstance(error, SharedStateError):
            # What the brokers share is away: nothing was decided, or nothing that anybody may act on.
            _log.warning("shared state unavailable: path %r: %s", path, error)
            return self._refused(_later(Variant.STATE_UNAVAILABLE, "shared state"))
        # A fault of ours: the caller gets an id, our own log the story.
        name = uuid.uuid4().hex
        _log.error("request failed: id %s, path %r", name, path, exc_info=error)
        return self._refused(Refusal(Variant.INTERNAL, f"internal error {name}"))

    def _refused(self, refusal: Refusal) -> Response:
        if refusal.variant in _FOR_NOW:
            self._counts.limited(refusal.variant.type.rpartition("/")[2])
        return JSONResponse(refusal.body(), refusal.variant.status, refusal.headers())


def _unknown(path: str) -> Refusal:
    if path.startswith(PLUGINS_PREFIX):
        plugin = path.removeprefix(PLUGINS_PREFIX).partition("/")[0]
        if plugin not in ("auth", "attest", "resource"):
            return Refusal(Variant.PLUGIN_NOT_FOUND, f"Plugin {plugin[:80]} not found")
    return Refusal(Variant.INVALID_PATH, f"Request path {path[:400]} is invalid")


def _later(variant: Variant, what: str) -> Refusal:
    return Refusal(variant, f"{what}: it does not answer now; ask again later", RETRY_AFTER_S)


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})
