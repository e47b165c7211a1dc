"""grpc.health.v1 on the same port, behind the same gate: Check, List, Watch.

The empty service name and the inference service's name stand for the server. Source:
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from hermetic.errors import HermeticError, InvalidRequestError, NotFoundError, OverloadedError
from hermetic.server.access import HEALTH
from hermetic.server.gate import Handler, Request

SERVICES: Final = ("", "inference.GRPCInferenceService")
WATCHERS_LIMIT: Final = 256  # streams of Watch at a time
WATCHERS_PER_TENANT: Final = 32  # streams of Watch of one tenant

_Response: Final = health_pb2.HealthCheckResponse


class Health:
    """The health service; `ready` says whether the server serves, `changed` tells those who watch."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._watchers: dict[Request, str] = {}
        self._told = False

    def table(self) -> dict[str, Handler]:
        """Return every method of the service -> its handler."""
        return {HEALTH + "Check": self._check, HEALTH + "List": self._list, HEALTH + "Watch": self._watch}

    def changed(self) -> None:
        """Tell all watchers, if the answer is another one than before."""
        if self._told == self._ready():
            return
        self._told = not self._told
        for request, service in list(self._watchers.items()):
            request.call.send(self._status(service).SerializeToString())

    def judge(self, check: Callable[[Request], None]) -> None:
        """End the streams of those whom `check` refuses now."""
        for request in list(self._watchers):
            try:
                check(request)
            except HermeticError as error:
                self._forget(request)
                request.fail(error)

    def end(self) -> None:
        """End all streams: the server is going away."""
        self.changed()
        for request in list(self._watchers):
            self._forget(request)
            request.finish_stream()

    def _check(self, request: Request, message: bytes) -> None:
        service = _service(message)
        if service not in SERVICES:
            raise NotFoundError(f"unknown service: expected one of {list(SERVICES)}")
        request.reply(self._status(service).SerializeToString())

    def _list(self, request: Request, _message: bytes) -> None:
        statuses = {service: self._status(service) for service in SERVICES}
        request.reply(health_pb2.HealthListResponse(statuses=statuses).SerializeToString())

    def _watch(self, request: Request, message: bytes) -> None:
        of_tenant = sum(watcher.tenant == request.tenant for watcher in self._watchers)
        if len(self._watchers) >= WATCHERS_LIMIT or of_tenant >= WATCHERS_PER_TENANT:
            raise OverloadedError(
                f"watchers: wanted at most {WATCHERS_PER_TENANT} of a tenant and {WATCHERS_LIMIT} in all, got one more"
            )
        self._told = self._ready()
        self._watchers[request] = _service(message)
        request.on_cancel = lambda: self._forget(request)
        request.call.send(self._status(self._watchers[request]).SerializeToString())

    def _forget(self, request: Request) -> None:
        self._watchers.pop(request, None)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in SERVICES:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        return _Response(status=_Response.SERVING if self._ready() else _Response.NOT_SERVING)


def _service(message: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(message).service)
    except DecodeError:
        raise InvalidRequestError(
            "message: expected a serialised HealthCheckRequest, got bytes that do not parse as one"
        ) from None
