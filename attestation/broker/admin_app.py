"""The admin listener over HTTP (docs/spec/key-broker.md, section 4)."""

from collections.abc import Callable

from hermetic.attestation.broker import admin as acts
from hermetic.attestation.broker.admin import Admin
from hermetic.attestation.broker.application import Application, Handler
from hermetic.attestation.broker.http import Door, bearer, body
from hermetic.attestation.broker.key_store import MAX_SECRET_BYTES
from hermetic.attestation.broker.request import Request, Response, json_response
from hermetic.attestation.broker.strict_json import parse_object
from hermetic.attestation.governance.change import MAX_CHANGE_BYTES

METRICS_TYPE = "text/plain; version=0.0.4"
MAX_BODY_BYTES = 65536
"""Longest JSON body of an admin request, in bytes."""


def admin_app(admin: Admin, page: Callable[[], str], door: Door) -> Application:
    """The application; `page` gives the metrics, which need an operator's certificate and no token."""

    def asked(request: Request, act: str) -> acts.Request:
        return _asked(door, request, act)

    async def upload(request: Request) -> Response:
        question = asked(request, "upload")
        secret = await body(request, MAX_SECRET_BYTES)
        try:
            with memoryview(secret) as view:
                state = await door.run(admin.upload, question, request.path_params["path"], view, request.headers)
        finally:
            secret[:] = bytes(len(secret))
        return json_response({"state": state})

    async def keys(request: Request) -> Response:
        return json_response({"keys": await door.run(admin.keys, asked(request, "list-keys"))})

    async def floors(request: Request) -> Response:
        return json_response({"floors": await door.run(admin.floors, asked(request, "list-floors"))})

    async def raise_floor(request: Request) -> Response:
        question = asked(request, "raise-floor")
        members = parse_object(await body(request, MAX_BODY_BYTES), "request")
        return json_response(
            {"floor": await door.run(admin.raise_floor, question, request.path_params["name"], members)}
        )

    async def lower_floor(request: Request) -> Response:
        question = asked(request, "lower-floor")
        members = parse_object(await body(request, MAX_BODY_BYTES), "request")
        return json_response(
            {"floor": await door.run(admin.lower_floor, question, request.path_params["name"], members)}
        )

    async def metrics(request: Request) -> Response:
        door.caller(request)
        return Response((await door.run(page)).encode(), media_type=METRICS_TYPE)

    routes: dict[tuple[str, str], Handler] = {
        ("POST", "/kbs/v0/resource/{path:path}"): upload,
        ("GET", "/metrics"): metrics,
        ("GET", "/hermetic/v1/keys"): keys,
        ("GET", "/hermetic/v1/floors"): floors,
        ("POST", "/hermetic/v1/floors/{name}/raise"): raise_floor,
        ("POST", "/hermetic/v1/floors/{name}/lower"): lower_floor,
    }
    return Application(routes | _lease_routes(admin, door) | _governance_routes(admin, door), door)


def _governance_routes(admin: Admin, door: Door) -> dict[tuple[str, str], Handler]:
    async def state(request: Request) -> Response:
        return json_response(await door.run(admin.governance, _asked(door, request, "list-governance")))

    async def change(request: Request) -> Response:
        question = _asked(door, request, "hand-in-change")
        return json_response(await door.run(admin.change, question, bytes(await body(request, MAX_CHANGE_BYTES))))

    return {
        ("GET", "/hermetic/v1/governance"): state,
        ("POST", "/hermetic/v1/governance/changes"): change,
    }


def _lease_routes(admin: Admin, door: Door) -> dict[tuple[str, str], Handler]:
    def asked(request: Request, act: str) -> acts.Request:
        return _asked(door, request, act)

    async def leases(request: Request) -> Response:
        return json_response(await door.run(admin.leases, asked(request, "list-leases")))

    async def revoke(request: Request) -> Response:
        question = asked(request, "revoke-lease")
        members = parse_object(await body(request, MAX_BODY_BYTES), "request")
        return json_response({"ended": await door.run(admin.revoke, question, members)})

    async def restore(request: Request) -> Response:
        question = asked(request, "restore-lease")
        members = parse_object(await body(request, MAX_BODY_BYTES), "request")
        await door.run(admin.restore, question, members)
        return json_response({})

    return {
        ("GET", "/hermetic/v1/leases"): leases,
        ("POST", "/hermetic/v1/leases/revoke"): revoke,
        ("POST", "/hermetic/v1/leases/restore"): restore,
    }


def _asked(door: Door, request: Request, act: str) -> acts.Request:
    return acts.Request(door.caller(request), bearer(request), act, request.path)
