"""The guest's side of the key broker protocol (docs/spec/key-broker.md): RCAR 0.4.0 and our additions.

    challenge -> attest -> resource              a model key, as a JWE that only the attested key opens
    challenge -> attest -> certify_serving_key   a short certificate for the attested serving key
    challenge -> attest -> renew_lease           another lease for a key that is held (docs/spec/leases.md)
    lease_events                                 what was revoked
    enrol_ak                                     once per TPM: the broker's certificate for its attestation key

`BrokerClient` is blocking, keeps one connection and is not thread-safe. It never tries anything twice: a refusal is
an answer. It works towards Trustee too, which knows nothing under /hermetic/v1. Not here: making evidence
(attesters/), opening the JWE (the worker), and uploads (admin_client.py).
"""

import base64
import contextlib
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from types import TracebackType
from typing import Final, Self

import httpx

from hermetic.attestation import hybrid_key
from hermetic.attestation.evidence import JsonObject, JsonValue
from hermetic.attestation.lease import LeaseKey
from hermetic.errors import BrokerRefusedError, BrokerUnreachableError, ConfigurationError, InvalidRequestError

__all__ = ["PROTOCOL_VERSION", "BrokerClient", "Challenge", "LeaseEvent"]

PROTOCOL_VERSION: Final = "0.4.0"
SESSION_COOKIE: Final = "kbs-session-id"
KEY_ID_SCHEME: Final = "kbs:///"
KEY_WRAPS: Final = "hermetic-key-wraps"

HEADER_CHECKPOINT: Final = "hermetic-checkpoint"
"""Response header of a key's release and a renewal: the broker's signed checkpoint (C2SP), standard base64."""

HEADER_LEASE: Final = "hermetic-lease"
"""Response header of a model key's release: its lease, a JWT (docs/spec/leases.md)."""

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024
"""Longest answer that is read, in bytes: RCAR's own body limit."""

NO_SUCH_PATH: Final = ("InvalidRequestPath", "PluginNotFound")
"""What a broker says that knows nothing of a path."""

UNKNOWN: Final = "Unknown"
"""The variant of a refusal that does not say one."""

MAX_REFUSAL_TEXT: Final = 2000
"""Longest refusal text that is repeated, in characters."""

DEFAULT_EXTRA_PARAMS: Final[JsonObject] = {
    "supported-hash-algorithms": ["sha256", "sha384", "sha512"],
    "hermetic": {"version": 1},
    KEY_WRAPS: [hybrid_key.ALGORITHM],
}
"""What we tell at /auth: Trustee ignores all but the first, our broker answers with what it knows of them too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response: its status code, headers and at most `MAX_ANSWER_BYTES` of body."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    """One session at a broker: its single-use nonce (base64 text, to be used as it is) and its cookie."""

    session: str
    nonce: str
    extra_params: JsonValue

    @property
    def knows_hermetic(self) -> bool:
        """Whether the broker takes `runtime-data.hermetic`; Trustee does not, and would not hash it."""
        params = self.extra_params
        return isinstance(params, dict) and params.get("hermetic") == {"version": 1}

    @property
    def offers_hybrid(self) -> bool:
        """Whether the broker wraps to a hybrid key that `runtime-data.hermetic` names (docs/spec/post-quantum.md)."""
        params = self.extra_params
        return self.knows_hermetic and isinstance(params, dict) and params.get(KEY_WRAPS) == [hybrid_key.ALGORITHM]


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """One revocation: its cursor, what was revoked, and the ids of our leases that it ended."""

    cursor: int
    revoked: str
    leases: tuple[str, ...]

    @classmethod
    def parse(cls, value: JsonValue) -> Self:
        """Read one event; `BrokerUnreachableError` where it is none."""
        members = value if isinstance(value, dict) else {}
        cursor, revoked, leases = members.get("cursor"), members.get("revoked"), members.get("leases")
        if not isinstance(cursor, int) or not isinstance(revoked, str) or not isinstance(leases, list):
            raise BrokerUnreachableError(f"answer: expected an event, got {sorted(members)}")
        return cls(cursor, revoked, tuple(map(str, leases)))


PATIENCE_S: Final = 30
"""Longest time that a challenge waits for a broker that says when to come again, in seconds."""

JITTER: Final = 0.25
"""Most that is waited longer than told, as a part of it."""

MAX_RETRY_DIGITS: Final = 5


class BrokerClient:
    """One key broker, spoken to over mutual TLS.

    Every method raises `BrokerRefusedError` when the broker says no (final: the text carries its error type and
    detail) and `BrokerUnreachableError` when there is no answer, or none that the protocol allows.
    """

    def __init__(
        self,
        url: str,
        ssl_context: ssl.SSLContext,
        timeout_s: float = 20.0,
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`url` is `https://host[:port]`; `ssl_context` holds the broker's CA and our client certificate."""
        self._wait = wait
        self._http = httpx.Client(
            base_url=url, verify=ssl_context, timeout=timeout_s, trust_env=False, follow_redirects=False
        )
        self.turn: Final = threading.RLock()
        """Held by whoever uses the connection, for a whole session: it is one at a time."""
        self._session: str | None = None
        self.last_checkpoint: bytes | None = None
        """The signed checkpoint that came with the last key or lease; None before one, and from Trustee."""
        self.last_lease: str = ""
        """The lease that came with the last key release; empty from Trustee."""

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def challenge(self, tee: str, extra_params: JsonObject = DEFAULT_EXTRA_PARAMS) -> Challenge:
        """Begin a session for evidence of the kind `tee` (RCAR's request and challenge).

        A broker that says when to come again (429, 503) is waited for and asked again, for `PATIENCE_S` in all.
        """
        body: JsonValue = {"version": PROTOCOL_VERSION, "tee": tee, "extra-params": dict(extra_params)}
        response = self._patiently("POST", "/kbs/v0/auth", body)
        answer = _object(response)
        nonce = answer.get("nonce")
        if not isinstance(nonce, str) or not nonce:
            raise BrokerUnreachableError(f"challenge: expected a nonce, got {sorted(answer)}")
        session = _session_cookie(response)
        self._session = session
        return Challenge(session, nonce, answer.get("extra-params"))

    def attest(
        self,
        challenge: Challenge,
        tee_pubkey: JsonObject,
        evidence: JsonValue,
        hermetic: JsonObject | None = None,
        *,
        additional_evidence: str = "",
        init_data: JsonObject | None = None,
    ) -> str:
        """Send evidence over the challenge; returns the attestation token (EAR, a JWT).

        `hermetic` is `runtime-data.hermetic`; it must be None when `challenge.knows_hermetic` is false, because a
        broker that does not hash it would refuse the evidence. A failed attempt burns the challenge.
        """
        if hermetic is not None and not challenge.knows_hermetic:
            raise InvalidRequestError("attest: this broker takes no runtime-data.hermetic; expected None")
        runtime: dict[str, JsonValue] = {"nonce": challenge.nonce, "tee-pubkey": dict(tee_pubkey)}
        if hermetic is not None:
            runtime["hermetic"] = dict(hermetic)
        body: JsonValue = {
            "init-data": None if init_data is None else dict(init_data),
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": additional_evidence},
        }
        self._session = challenge.session
        token = _object(self._send("POST", "/kbs/v0/attest", json_body=body)).get("token")
        if not isinstance(token, str) or not token:
            raise BrokerUnreachableError("attest: expected a token in the answer, got none")
        return token

    def resource(self, path: str) -> bytes:
        """Fetch `repo/type/tag` (or `kbs:///repo/type/tag`) in the attested session: a flattened JWE, as JSON.

        The checkpoint that came with it is kept in `last_checkpoint`, the lease in `last_lease`.
        """
        response = self._send("GET", f"/kbs/v0/resource/{path.removeprefix(KEY_ID_SCHEME)}")
        self.last_checkpoint = _checkpoint(response)
        self.last_lease = response.headers.get(HEADER_LEASE, "")
        return response.content

    def lease_key(self) -> str | None:
        """Return the key that signs this broker's leases, as a JWK in canonical JSON; None where it offers none."""
        try:
            members = _object(self._send("GET", "/hermetic/v1/leases/key"))
        except BrokerRefusedError as error:
            if error.variant in NO_SUCH_PATH:
                return None
            raise
        try:
            return LeaseKey.loads(json.dumps(members)).text
        except ConfigurationError as error:
            raise BrokerUnreachableError(f"answer: {error}") from error

    def renew_lease(self, path: str) -> str:
        """Return another lease for the key at `path` in the attested session; no key comes with it.

        The checkpoint that came with it is kept in `last_checkpoint`.
        """
        path = path.removeprefix(KEY_ID_SCHEME)
        response = self._send("POST", "/hermetic/v1/leases/renew", json_body={"resource": path})
        self.last_checkpoint = _checkpoint(response)
        return _text(_object(response), "lease")

    def lease_events(self, after: int, wait_s: int) -> list[LeaseEvent]:
        """Return the revocations after the cursor `after` that ended leases of ours; waits up to `wait_s` for one."""
        path = f"/hermetic/v1/leases/events?after={after}&wait_s={wait_s}"
        events = _object(self._send("GET", path)).get("events")
        if not isinstance(events, list):
            raise BrokerUnreachableError(f"answer: expected a list of events, got {type(events).__name__}")
        return [LeaseEvent.parse(event) for event in events]

    def certify_serving_key(self, csr_pem: bytes) -> bytes:
        """Exchange a CSR (PEM) for the attested tee-pubkey for a certificate chain: PEM, leaf first."""
        answer = _object(
            self._send("POST", "/hermetic/v1/serving-certificate", json_body={"csr": csr_pem.decode("ascii")})
        )
        return _text(answer, "certificate").encode("ascii")

    def enrol_ak(self, request: JsonObject, answer: Callable[[JsonObject], JsonObject]) -> bytes:
        """Prove that an AK lives in a TPM (docs/spec/ak-enrolment.md); returns its certificate chain, PEM, leaf first.

        `request` is `TpmAttester.enrolment_request()`, `answer` is `TpmAttester.enrolment_answer`.
        """
        puzzle = _object(self._send("POST", "/hermetic/v1/ak/challenge", json_body=request))
        proof = dict(answer(puzzle))
        certificate = _object(self._send("POST", "/hermetic/v1/ak/certificate", json_body=proof))
        return _text(certificate, "certificate").encode("ascii")

    def _patiently(self, method: str, path: str, body: JsonValue) -> Answer:
        """Send what takes nothing away when it is refused; every other request is sent once."""
        patience_s = float(PATIENCE_S)
        while True:
            try:
                return self._send(method, path, json_body=body)
            except BrokerUnreachableError as error:
                if error.retry_after_s is None or error.retry_after_s > patience_s:
                    raise
                # By chance a little later, or all who were told the same come back in the same moment.
                pause_s = error.retry_after_s * random.uniform(1, 1 + JITTER)  # noqa: S311 - no secret
                patience_s -= pause_s
                self._wait(pause_s)

    def _send(self, method: str, path: str, *, json_body: JsonValue = None) -> Answer:
        headers = {} if self._session is None else {"cookie": f"{SESSION_COOKIE}={self._session}"}
        return send(self._http, method, path, headers=headers, json_body=json_body)


def send(
    http: httpx.Client,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str],
    json_body: JsonValue = None,
    content: bytes | None = None,
) -> Answer:
    """Send one request and read its bounded answer; raises as the class `BrokerClient` says."""
    http.cookies.clear()  # the session is ours to send: the broker's cookie names no path
    request = http.build_request(method, path, headers=dict(headers), json=json_body, content=content)
    try:
        response = http.send(request, stream=True)
        with contextlib.closing(response):
            answer = Answer(response.status_code, response.headers, _read_bounded(response))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise BrokerUnreachableError(f"{method} {request.url}: no answer from the broker: {error}") from error
    _raise_for_refusal(method, path, answer)
    return answer


def _read_bounded(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    length = 0
    for part in response.iter_bytes():
        length += len(part)
        if length > MAX_ANSWER_BYTES:
            raise BrokerUnreachableError(f"answer: expected at most {MAX_ANSWER_BYTES} bytes, got more")
        parts.append(part)
    return b"".join(parts)


def _raise_for_refusal(method: str, path: str, answer: Answer) -> None:
    status = answer.status
    if status == httpx.codes.OK:
        return
    kind, detail = _error_body(answer)
    if status == httpx.codes.NOT_FOUND and kind == UNKNOWN:
        kind = NO_SUCH_PATH[0]  # outside /kbs/v0 Trustee's own router answers, in no words
    text = f"{method} {path}: broker answered {status} {kind}: {detail}"
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise BrokerUnreachableError(text, retry_after_s=_retry_after_s(answer))
    raise BrokerRefusedError(text, variant=kind)


def _retry_after_s(answer: Answer) -> int | None:
    """Whole seconds of Retry-After; None without it, or where it is anything else (RFC 9110 allows a date too)."""
    value = answer.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= MAX_RETRY_DIGITS else None


def _error_body(answer: Answer) -> tuple[str, str]:
    """The variant and detail of a refusal; Trustee sets no content type on it, so only the body is looked at."""
    try:
        body = json.loads(answer.content)
    except (ValueError, RecursionError):
        return UNKNOWN, answer.content[:MAX_REFUSAL_TEXT].decode("utf-8", "replace")
    if not isinstance(body, dict):
        return UNKNOWN, str(body)[:MAX_REFUSAL_TEXT]
    return str(body.get("type", UNKNOWN)).rpartition("/")[2], str(body.get("detail", ""))[:MAX_REFUSAL_TEXT]


def _object(answer: Answer) -> dict[str, JsonValue]:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError) as error:
        raise BrokerUnreachableError(f"answer: expected a JSON object, got {len(answer.content)} bytes") from error
    if not isinstance(value, dict):
        raise BrokerUnreachableError(f"answer: expected a JSON object, got {type(value).__name__}")
    return value


def _session_cookie(answer: Answer) -> str:
    for line in answer.headers.get_list("set-cookie"):
        try:
            morsel = SimpleCookie(line).get(SESSION_COOKIE)
        except CookieError:
            continue
        if morsel is not None and morsel.value:
            return morsel.value
    raise BrokerUnreachableError(f"challenge: expected the cookie {SESSION_COOKIE}, got none")


def _checkpoint(answer: Answer) -> bytes | None:
    text = answer.headers.get(HEADER_CHECKPOINT)
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise BrokerUnreachableError(f"{HEADER_CHECKPOINT}: expected standard base64, got {text[:80]!r}") from error


def _text(answer: JsonObject, name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise BrokerUnreachableError(f"answer: expected text in {name!r}, got {type(value).__name__}")
    return value
