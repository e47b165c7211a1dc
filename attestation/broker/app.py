"""The public listener over HTTP: paths, cookies and headers of docs/spec/key-broker.md, sections 2 and 3."""

import base64
import re
from datetime import datetime
from email.utils import format_datetime
from typing import Final

from hermetic.attestation.broker.ak import AkDesk
from hermetic.attestation.broker.application import Application, Handler
from hermetic.attestation.broker.broker import Broker
from hermetic.attestation.broker.http import Door, bearer, body
from hermetic.attestation.broker.lease_feed import MAX_CURSOR, MAX_WAIT_S, LeaseFeed
from hermetic.attestation.broker.leases import Leases
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.request import Request, Response, json_response
from hermetic.attestation.broker.steps import Pace
from hermetic.attestation.broker.strict_json import exactly, parse_object, text
from hermetic.attestation.exchange import HEADER_CHECKPOINT, HEADER_LEASE, SESSION_COOKIE

HEADER_LOG_INDEX: Final = "hermetic-log-index"
SHORT_BODY_BYTES: Final = 64 * 1024
"""Longest body of a request that brings no evidence: those are read in the event loop."""

LOOP_EVIDENCE_BYTES: Final = 16 * 1024
"""Longest attestation that is verified in the event loop: a few milliseconds, for which a thread that verifies would
hold the interpreter, and with it the loop, all the same."""

_NUMBER: Final = re.compile(r"-?[0-9]{1,16}")


def public_app(
    broker: Broker, ak_desk: AkDesk | None, leases: Leases, feed: LeaseFeed, door: Door, pace: Pace, body_bytes: int
) -> Application:
    """The application; `ak_desk` is None where no attestation keys are enrolled."""
    short = min(body_bytes, SHORT_BODY_BYTES)

    async def auth(request: Request) -> Response:
        caller = door.caller(request)
        data = bytes(await body(request, short))
        challenged = broker.auth(data, caller) if pace.quick else await door.run(broker.auth, data, caller)
        cookie = _cookie(challenged.session.id, challenged.session.deadline)
        return json_response(challenged.body, headers={"set-cookie": cookie})

    async def attest(request: Request) -> Response:
        caller = door.caller(request)
        data = bytes(await body(request, body_bytes))
        steps = broker.attest(_session(request), data, caller)
        token = await pace.follow(steps, long=len(data) > LOOP_EVIDENCE_BYTES)
        return json_response({"token": token})

    async def resource(request: Request) -> Response:
        caller = door.caller(request)
        path = request.path_params["path"]
        released = await pace.follow(broker.resource(path, _session(request), bearer(request), caller))
        headers = _checkpoint_header(released.checkpoint) | {HEADER_LOG_INDEX: str(released.index)}
        headers |= {} if released.lease is None else {HEADER_LEASE: released.lease}
        return Response(released.jwe, headers=headers)

    async def serving_certificate(request: Request) -> Response:
        caller = door.caller(request)
        members = parse_object(await body(request, short), "request")
        exactly(members, "request", ("csr",))
        csr = text(members, "csr", "request")
        chain = await door.run(broker.serving_certificate, csr, _session(request), caller)
        return json_response({"certificate": chain.decode("ascii")})

    routes: dict[tuple[str, str], Handler] = {
        ("POST", "/kbs/v0/auth"): auth,
        ("POST", "/kbs/v0/attest"): attest,
        ("GET", "/kbs/v0/resource/{path:path}"): resource,
        ("POST", "/hermetic/v1/serving-certificate"): serving_certificate,
    }
    return Application(
        routes | _ak_routes(ak_desk, door, short) | _lease_routes(broker, leases, feed, door, pace, short),
        door,
    )


def _ak_routes(desk: AkDesk | None, door: Door, body_bytes: int) -> dict[tuple[str, str], Handler]:
    if desk is None:
        return {}

    async def challenge(request: Request) -> Response:
        caller = door.caller(request)
        members = parse_object(await body(request, body_bytes), "request")
        return json_response(await door.run(desk.challenge, members, caller.key, caller.identity))

    async def certificate(request: Request) -> Response:
        caller = door.caller(request)
        members = parse_object(await body(request, body_bytes), "request")
        return json_response(await door.run(desk.certificate, members, caller.key, caller.identity))

    return {
        ("POST", "/hermetic/v1/ak/challenge"): challenge,
        ("POST", "/hermetic/v1/ak/certificate"): certificate,
    }


def _lease_routes(
    broker: Broker, leases: Leases, feed: LeaseFeed, door: Door, pace: Pace, body_bytes: int
) -> dict[tuple[str, str], Handler]:
    async def key(request: Request) -> Response:
        door.caller(request)
        return json_response(dict(leases.signer.public.jwk))

    async def renew(request: Request) -> Response:
        caller = door.caller(request)
        members = parse_object(await body(request, body_bytes), "request")
        exactly(members, "request", ("resource",))
        path = text(members, "resource", "request")
        renewed = await pace.follow(broker.renew_lease(path, _session(request), caller))
        return json_response({"lease": renewed.lease}, headers=_checkpoint_header(renewed.checkpoint))

    async def events(request: Request) -> Response:
        caller = door.caller(request)
        after, wait_s = _number(request, "after", MAX_CURSOR, least=-1), _number(request, "wait_s", MAX_WAIT_S)
        return json_response({"events": await feed.poll(caller.identity, after, wait_s)})

    return {
        ("GET", "/hermetic/v1/leases/key"): key,
        ("POST", "/hermetic/v1/leases/renew"): renew,
        ("GET", "/hermetic/v1/leases/events"): events,
    }


def _number(request: Request, name: str, most: int, least: int = 0) -> int:
    try:
        value = request.parameter(name)
    except ValueError as error:
        raise Refusal(Variant.INVALID_REQUEST, f"query: {error}") from error
    value = str(least) if value is None else value
    if not _NUMBER.fullmatch(value) or not least <= int(value) <= most:
        raise Refusal(Variant.INVALID_REQUEST, f"{name}: expected a number from {least} to {most}, got {value[:40]!r}")
    return int(value)


def _session(request: Request) -> str | None:
    return request.cookie(SESSION_COOKIE)


def _checkpoint_header(checkpoint: bytes) -> dict[str, str]:
    return {HEADER_CHECKPOINT: base64.b64encode(checkpoint).decode("ascii")}


def _cookie(session: str, deadline: datetime) -> str:
    """As Trustee sets it: a name, a value, when it ends, and no other attribute."""
    if not session.isalnum():
        raise Refusal(Variant.INTERNAL, "session id: expected letters and digits")
    return f"{SESSION_COOKIE}={session}; Expires={format_datetime(deadline, usegmt=True)}"
