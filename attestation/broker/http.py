"""What both listeners share over HTTP: callers, bounded bodies, blocking work, and the body of a refusal."""

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hermetic.attestation.broker.broker import Caller
from hermetic.attestation.broker.counts import Counts
from hermetic.attestation.broker.identity import client_identity
from hermetic.attestation.broker.rates import Rates
from hermetic.attestation.broker.refusals import RETRY_AFTER_S, Refusal, Variant
from hermetic.attestation.broker.tls import TLS_EXTENSION
from hermetic.errors import CallerError, HermeticError, KeyStoreUnavailableError, SharedStateError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FOR_NOW: Final = frozenset({Variant.TOO_MANY_REQUESTS, Variant.KEY_STORE_UNAVAILABLE, Variant.STATE_UNAVAILABLE})

BEARER: Final = "bearer "
PLUGINS_PREFIX: Final = "/kbs/v0/"

# Not a logger that shows local variables beside a traceback: keys are local variables.
_log = logging.getLogger("hermetic.broker")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Door:
    """What stands before every request of a listener; `work` bounds what is verified or decided at once."""

    rates: Rates
    work: anyio.CapacityLimiter
    certificate_required: bool
    demo: bool
    counts: Counts

    def caller(self, request: Request) -> Caller:
        """Who sent `request`, once within its rate; raises `Refusal`."""
        der = request.scope.get("extensions", {}).get(TLS_EXTENSION, {}).get("client_certificate")
        address = request.client.host if request.client is not None else "unknown"
        if der is None and self.certificate_required:
            raise Refusal(Variant.ATTESTATION, "client certificate: expected one, got none")
        identity = None if der is None else client_identity(der, demo=self.demo)
        caller = Caller(identity, address)
        self.rates.spend(caller.key)
        return caller

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run blocking work in a thread."""
        return await run_sync(lambda: function(*args, **kwargs), limiter=self.work)


def application(routes: Mapping[tuple[str, str], Handler], counts: Counts) -> Starlette:
    """An application that answers every failure with the protocol's body; `routes` is (method, path) to handler."""
    table = [Route(path, handler, methods=[method]) for (method, path), handler in routes.items()]
    handlers = {
        HTTPException: _unknown_path,
        CallerError: _refused,
        KeyStoreUnavailableError: _later,
        SharedStateError: _away,
        HermeticError: _fault,
        ClientDisconnect: _gone,
        Exception: _fault,
    }
    app = Starlette(routes=[*table, Route("/healthz", _health)], exception_handlers=handlers)
    app.state.counts = counts
    return app


async def body(request: Request, limit: int) -> bytearray:
    """The request's body, at most `limit` bytes, in a buffer that can be wiped; raises `Refusal`."""
    declared = request.headers.get("content-length", "0")
    data = bytearray()
    if declared.isdecimal() and int(declared) <= limit:
        async for part in request.stream():
            data += part
            if len(data) > limit:
                break
        else:
            return data
    raise Refusal(Variant.PAYLOAD_TOO_LARGE, f"body: expected at most {limit} bytes, got more")


def bearer(request: Request) -> str | None:
    """The token of `Authorization: Bearer ...`, None without one."""
    value = request.headers.get("authorization", "")
    return value[len(BEARER) :].strip() if value[: len(BEARER)].lower() == BEARER else None


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refused(request: Request, error: Exception) -> Response:
    refusal = error if isinstance(error, Refusal) else Refusal(Variant.INVALID_REQUEST, str(error))
    if refusal.variant in _FOR_NOW:
        request.app.state.counts.limited(refusal.variant.type.rpartition("/")[2])
    return JSONResponse(refusal.body(), refusal.variant.status, refusal.headers())


async def _unknown_path(request: Request, _: Exception) -> Response:
    path = request.scope["path"]
    if path.startswith(PLUGINS_PREFIX):
        plugin = path.removeprefix(PLUGINS_PREFIX).partition("/")[0]
        if plugin not in ("auth", "attest", "resource"):
            return await _refused(request, Refusal(Variant.PLUGIN_NOT_FOUND, f"Plugin {plugin[:80]} not found"))
    return await _refused(request, Refusal(Variant.INVALID_PATH, f"Request path {path[:400]} is invalid"))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


async def _later(request: Request, error: Exception) -> Response:
    """What opens the keys is away: the caller may ask again; why is for our own log."""
    _log.warning("key store unavailable: path %r: %s", request.scope["path"], error)
    text = "key store: it does not answer now; ask again later"
    return await _refused(request, Refusal(Variant.KEY_STORE_UNAVAILABLE, text, RETRY_AFTER_S))


async def _away(request: Request, error: Exception) -> Response:
    """What the brokers share is away: nothing was decided, or nothing that anybody may act on; ask again."""
    _log.warning("shared state unavailable: path %r: %s", request.scope["path"], error)
    text = "shared state: it does not answer now; ask again later"
    return await _refused(request, Refusal(Variant.STATE_UNAVAILABLE, text, RETRY_AFTER_S))


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the caller gets an id, our own log the story."""
    name = uuid.uuid4().hex
    _log.error("request failed: id %s, path %r", name, request.scope["path"], exc_info=error)
    return await _refused(request, Refusal(Variant.INTERNAL, f"internal error {name}"))
