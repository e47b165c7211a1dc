"""`Application`: which path is whose, and what every failure is answered with (docs/spec/key-broker.md, section 5).

A table, one try, and the body of a refusal. What the handlers do is app.py's and admin_app.py's.
"""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from hermetic.attestation.broker.http import Door
from hermetic.attestation.broker.refusals import RETRY_AFTER_S, Refusal, Variant
from hermetic.attestation.broker.request import DisconnectedError, Request, Response, json_response
from hermetic.errors import CallerError, KeyStoreUnavailableError, SharedStateError

_HEALTH: Final = (("GET", "/healthz"), ("HEAD", "/healthz"))
PLUGINS_PREFIX: Final = "/kbs/v0/"

Handler = Callable[[Request], Awaitable[Response]]

_FOR_NOW: Final = frozenset({Variant.TOO_MANY_REQUESTS, Variant.KEY_STORE_UNAVAILABLE, Variant.STATE_UNAVAILABLE})

# Not a logger that shows local variables beside a traceback: keys are local variables.
_log = logging.getLogger("hermetic.broker")


class Application:
    """An application that answers every failure with the protocol's body."""

    def __init__(self, routes: Mapping[tuple[str, str], Handler], door: Door) -> None:
        """`routes` is (method, path) to handler; a path may have `{name}`, one segment, or `{name:path}`, the rest.

        Handlers ask `door` who comes. Who asks for what is nobody's, or how the broker is, is counted there as well.
        """
        self._door = door
        self._exact: dict[tuple[str, str], Handler] = {
            ("GET", "/healthz"): self._health,
            ("HEAD", "/healthz"): self._health,
        }
        self._exact |= {key: handler for key, handler in routes.items() if "{" not in key[1]}
        self._patterns = [
            (method, _pattern(path), handler) for (method, path), handler in routes.items() if "{" in path
        ]

    async def answer(self, request: Request) -> Response:
        """Answer one request, whatever happens."""
        try:
            return await self._handler(request)(request)
        except Exception as error:  # noqa: BLE001 - each has its answer
            return self._answer(request.path, error)

    def _handler(self, request: Request) -> Handler:
        """Whose request it is; raises `Refusal` where it is nobody's."""
        method, path = request.method, request.path
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact
        for wanted, pattern, handler in self._patterns:
            if wanted == method and (found := pattern.fullmatch(path)) is not None:
                request.path_params = found.groupdict()
                return handler
        self._door.caller(request)
        raise _unknown(path)

    async def _health(self, request: Request) -> Response:
        self._door.caller(request)
        return json_response({"status": "ok"})

    def _answer(self, path: str, error: Exception) -> Response:
        if isinstance(error, CallerError):
            return self._refused(error if isinstance(error, Refusal) else Refusal(Variant.INVALID_REQUEST, str(error)))
        if isinstance(error, DisconnectedError):
            return Response(b"", 400)
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
            self._door.counts.limited(refusal.variant.type.rpartition("/")[2])
        return json_response(refusal.body(), refusal.variant.status, refusal.headers())


def _unknown(path: str) -> Refusal:
    if path.startswith(PLUGINS_PREFIX):
        plugin = path.removeprefix(PLUGINS_PREFIX).partition("/")[0]
        if plugin not in ("auth", "attest", "resource"):
            return Refusal(Variant.PLUGIN_NOT_FOUND, f"Plugin {plugin[:80]} not found")
    return Refusal(Variant.INVALID_PATH, f"Request path {path[:400]} is invalid")


def _later(variant: Variant, what: str) -> Refusal:
    return Refusal(variant, f"{what}: it does not answer now; ask again later", RETRY_AFTER_S)


def _pattern(path: str) -> re.Pattern[str]:
    """No part matches the end of a line."""
    parts = re.split(r"\{([a-z]+)(:path)?\}", path)
    wanted = [re.escape(parts[0])]
    for name, rest, fixed in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        wanted.append(f"(?P<{name}>{'.*' if rest else '[^/]+'}){re.escape(fixed)}")
    return re.compile("".join(wanted))
