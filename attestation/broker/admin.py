"""What the broker does for operators: uploads, floors, lists (docs/spec/key-broker.md, section 4).

Every request is a token's only one: it is spent by a durable record before anything else happens. Blocking,
serialised by one lock; HTTP is admin_app.py's.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote

from hermetic.attestation.admin_client import HEADER_MANIFEST_DIGEST, HEADER_NAME, HEADER_PUBLISHER, HEADER_VERSION
from hermetic.attestation.broker import entries
from hermetic.attestation.broker.admin_tokens import AdminToken, AdminTokens, Scope
from hermetic.attestation.broker.broker import Caller
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.floors import Floors
from hermetic.attestation.broker.governance_desk import GovernanceDesk
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.key_store import (
    MAX_NAME_LENGTH,
    MAX_SECRET_BYTES,
    MODEL_KEY_BYTES,
    KeyStore,
    ModelFacts,
    ResourcePath,
    StoredKey,
)
from hermetic.attestation.broker.lease_state import Target
from hermetic.attestation.broker.leases import Leases
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.standing import Standing, spent_key
from hermetic.attestation.broker.stores.key_file import model_facts
from hermetic.attestation.claims import Profile
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.governance.contents import secret_digest
from hermetic.errors import InvalidRequestError

MAX_SPENT: Final = 100_000
"""Most token ids remembered at once; each is forgotten when its token has ended."""

MAX_REASON: Final = 500
"""Longest reason for an act that needs one, in characters."""

MAX_VERSION: Final = 2**53 - 1

_WITHOUT_SIGNED_ROLES: Final = ("list-governance", "hand-in-change")
"""What a role may do that operators have not signed for: what it takes to have it signed for."""

_HEADERS: Final = (HEADER_NAME, HEADER_VERSION, HEADER_MANIFEST_DIGEST, HEADER_PUBLISHER)


@dataclass(frozen=True, slots=True)
class Request:
    """An admin request: who sent it, with which token, to do what under which path."""

    caller: Caller
    bearer: str | None
    act: str
    path: str


class Admin:
    """The admin listener's requests."""

    def __init__(
        self,
        tokens: AdminTokens,
        keys: KeyStore,
        floors: Floors,
        leases: Leases,
        log: Journal,
        *,
        governance: GovernanceDesk,
        profile: Profile,
        clock: Callable[[], datetime],
    ) -> None:
        """`log` knows which tokens are spent, `governance` whether operators sign."""
        self._tokens = tokens
        self._keys = keys
        self._floors = floors
        self._leases = leases
        self._log = log
        self._governance = governance
        self._profile = profile
        self._clock = clock
        self._mutex = threading.Lock()

    def upload(self, request: Request, path: str, secret: memoryview, headers: Mapping[str, str]) -> str:
        """Store a new key, once its record is durable; returns its state. Raises `Refusal`."""
        with self._mutex:
            self._authorise(request, _named(headers))
            key = self._upload_facts(path, secret, headers)
            error = self._clash(key.resource, key.model)
            self._log_upload(request, key, secret, error)
            if error is not None:
                raise error
            self._keys.create(key, secret)
            return self._governance.states([key])[0]

    def keys(self, request: Request) -> list[JsonValue]:
        """The facts of every key of a name that the token's role acts for."""
        with self._mutex:
            scope = self._authorise(request, None)
            keys = [key for key in self._keys.list() if scope.covers("" if key.model is None else key.model.name)]
            states = self._governance.states(keys)
            return [{**_key_facts(key), "state": state} for key, state in zip(keys, states, strict=True)]

    def floors(self, request: Request) -> dict[str, int]:
        """The floor of every name that the token's role acts for."""
        with self._mutex:
            scope = self._authorise(request, None)
            return {name: floor for name, floor in self._floors.all().items() if scope.covers(name)}

    def raise_floor(self, request: Request, name: str, members: Mapping[str, JsonValue]) -> int:
        """Retire every version of `name` below the member `below`."""
        with self._mutex:
            self._authorise(request, name)
            below = _version(members, {"below"})
            return self._floors.raise_to(_name(name), below, entries.client_fields(request.caller.identity))

    def lower_floor(self, request: Request, name: str, members: Mapping[str, JsonValue]) -> int:
        """Let versions of `name` from the member `below` on be released again, for a recorded reason.

        Not where operators govern: they sign for it.
        """
        with self._mutex:
            self._authorise(request, name)
            self._governance.leave_to_operators(f"floor of {name}")
            below, reason = _version(members, {"below", "reason"}), _reason(members)
            return self._floors.lower_to(_name(name), below, entries.client_fields(request.caller.identity), reason)

    def leases(self, request: Request) -> dict[str, JsonValue]:
        """What is leased to whom, and what is revoked."""
        with self._mutex:
            scope = self._authorise(request, None)
            return {what: _within(scope, entries) for what, entries in self._leases.overview().items()}

    def revoke(self, request: Request, members: Mapping[str, JsonValue]) -> int:
        """End every lease of a model, a server or a chip, and issue no other; returns how many were ended."""
        with self._mutex:
            self._authorise(request, _text(members.get("model")))
            target, reason = _target(members), _reason(members)
            return self._leases.revoke(target, reason, entries.client_fields(request.caller.identity))

    def restore(self, request: Request, members: Mapping[str, JsonValue]) -> None:
        """Take a revocation back, for a recorded reason. Not where operators govern: they sign for it."""
        with self._mutex:
            self._authorise(request, _text(members.get("model")))
            self._governance.leave_to_operators("taking a revocation back")
            target, reason = _target(members), _reason(members)
            self._leases.restore(target, reason, entries.client_fields(request.caller.identity))

    def governance(self, request: Request) -> dict[str, JsonValue]:
        """Who the operators are, what is in force, and what waits for signatures."""
        with self._mutex:
            self._authorise(request, "")
            return self._governance.state()

    def change(self, request: Request, data: bytes) -> dict[str, JsonValue]:
        """Hand in a change; what counts are the signatures on it."""
        with self._mutex:
            self._authorise(request, None)
            return self._governance.submit(data, entries.client_fields(request.caller.identity))

    def _authorise(self, request: Request, about: str | None) -> Scope:
        """Verify the token, spend it durably, then ask whether its role may do this, and for which names.

        `about` is the model's name that the request is about, "" for none or all; None: a list, of what it may see.
        """
        token = self._tokens.verify(request.bearer)
        scope = self._tokens.scope(token, request.path)

        def act(standing: Standing) -> tuple[Entry, str]:
            self._check_unspent(standing, token)
            wanted = self._missing(standing, request, about, scope)
            fields: dict[str, JsonValue] = {
                "client": entries.client_fields(request.caller.identity),
                "issuer": token.issuer,
                "role": token.role,
                "jti": token.id,
                "expires": token.expires,
                "act": request.act,
                "path": request.path[:MAX_NAME_LENGTH],
                "outcome": "refused" if wanted else "allowed",
                "reasons": [f"role {token.role}: expected {wanted}"[:MAX_REASON]] if wanted else [],
            }
            return Entry(entries.ADMIN, fields), wanted

        if wanted := self._log.decide(act)[1]:
            raise Refusal(Variant.ADMIN_ACCESS, f"role {token.role}: expected {wanted}")
        return scope

    def _missing(self, standing: Standing, request: Request, about: str | None, scope: Scope) -> str:
        """What the role would need; empty: it may do this."""
        if request.act not in _WITHOUT_SIGNED_ROLES and self._governance.unsigned_roles(standing):
            return "roles and issuers that operators signed for (governance.configuration)"
        if bool(scope.prefixes) if about is None else scope.covers(about):
            return ""
        return f"a rule that allows {request.path}" + (f" for {about}" if about and scope.prefixes else "")

    def _check_unspent(self, standing: Standing, token: AdminToken) -> None:
        standing.forget_ended(self._clock())
        if spent_key(token.issuer, token.id) in standing.spent:
            raise Refusal(Variant.ADMIN_ACCESS, "token: expected one not used yet, got a used one")
        if len(standing.spent) >= MAX_SPENT:
            raise Refusal(Variant.TOO_MANY_REQUESTS, f"tokens: expected at most {MAX_SPENT} used ones still alive")

    def _clash(self, resource: ResourcePath, model: ModelFacts | None) -> Refusal | None:
        if self._keys.find(resource) is not None:
            return Refusal(Variant.RESOURCE_EXISTS, f"resource {resource}: expected a new one, got one that exists")
        if model is None:
            return None
        for key in self._keys.list():
            if key.model is not None and (key.model.name, key.model.version) == (model.name, model.version):
                what = f"{model.name} version {model.version}"
                return Refusal(Variant.RESOURCE_EXISTS, f"{what}: expected no key yet, got {key.resource}")
        return None

    def _upload_facts(self, path: str, secret: memoryview, headers: Mapping[str, str]) -> StoredKey:
        resource, model = _upload_facts(path, secret, headers)
        return StoredKey(resource, model, self._profile, self._clock())

    def _log_upload(self, request: Request, key: StoredKey, secret: memoryview, error: Refusal | None) -> None:
        fields: dict[str, JsonValue] = {
            "client": entries.client_fields(request.caller.identity),
            "resource": str(key.resource),
            "model": entries.model_fields(key.model),
            "profile": key.profile,
            "created": key.created.astimezone(UTC).isoformat(),
            "secret": None if key.model is None else secret_digest(secret),
            "outcome": "accepted" if error is None else "refused",
            "reasons": [] if error is None else [str(error)],
        }
        self._log.write(entries.UPLOAD, fields)


def _upload_facts(path: str, secret: memoryview, headers: Mapping[str, str]) -> tuple[ResourcePath, ModelFacts | None]:
    try:
        resource = ResourcePath.parse(path)
        model = _model(headers)
    except (InvalidRequestError, UnicodeDecodeError) as error:
        raise Refusal(Variant.INVALID_REQUEST, str(error)) from error
    if model is not None and len(secret) != MODEL_KEY_BYTES:
        raise Refusal(Variant.INVALID_REQUEST, f"model key: expected {MODEL_KEY_BYTES} bytes, got {len(secret)}")
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise Refusal(Variant.INVALID_REQUEST, f"secret: expected 1 to {MAX_SECRET_BYTES} bytes, got {len(secret)}")
    return resource, model


def _model(headers: Mapping[str, str]) -> ModelFacts | None:
    given = [name for name in _HEADERS if name in headers]
    if not given:
        return None
    if len(given) != len(_HEADERS):
        raise InvalidRequestError(f"upload: expected all of {', '.join(_HEADERS)} or none, got {', '.join(given)}")
    version = headers[HEADER_VERSION]
    if not version.isascii() or not version.isdecimal() or len(version) > len(str(MAX_VERSION)):
        raise InvalidRequestError(f"{HEADER_VERSION}: expected a decimal number, got {version[:40]!r}")
    members: dict[str, JsonValue] = {
        "name": unquote(headers[HEADER_NAME], errors="strict"),
        "version": int(version),
        "manifest_digest": headers[HEADER_MANIFEST_DIGEST],
        "publisher": unquote(headers[HEADER_PUBLISHER], errors="strict"),
    }
    return model_facts(members)


def _version(members: Mapping[str, JsonValue], expected: set[str]) -> int:
    below = members.get("below")
    if members.keys() != expected:
        raise Refusal(Variant.INVALID_REQUEST, f"expected the members {sorted(expected)}, got {sorted(members)}")
    if not isinstance(below, int) or isinstance(below, bool) or not 0 <= below <= MAX_VERSION:
        raise Refusal(Variant.INVALID_REQUEST, f"below: expected a version, got {below!r}")
    return below


def _reason(members: Mapping[str, JsonValue]) -> str:
    reason = members.get("reason")
    if not isinstance(reason, str) or not 0 < len(reason) <= MAX_REASON:
        raise Refusal(Variant.INVALID_REQUEST, f"reason: expected 1 to {MAX_REASON} characters of text")
    return reason


def _target(members: Mapping[str, JsonValue]) -> Target:
    try:
        return Target.parse({name: value for name, value in members.items() if name != "reason"})
    except InvalidRequestError as error:
        raise Refusal(Variant.INVALID_REQUEST, str(error)) from error


def _name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise Refusal(Variant.INVALID_REQUEST, f"name: expected 1 to {MAX_NAME_LENGTH} printable characters")
    return name


def _named(headers: Mapping[str, str]) -> str:
    """The model's name that an upload is about; "" for a secret of no model."""
    return unquote(headers.get(HEADER_NAME, ""), errors="replace")


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""


def _within(scope: Scope, entries: JsonValue) -> list[JsonValue]:
    """Those of the entries that are about a model's name of the scope; of what is about no model, "" alone."""
    found = entries if isinstance(entries, list) else []
    return [one for one in found if isinstance(one, Mapping) and scope.covers(_text(one.get("model", "")))]


def _key_facts(key: StoredKey) -> dict[str, JsonValue]:
    return {
        "resource": str(key.resource),
        "model": entries.model_fields(key.model),
        "profile": key.profile,
        "created": key.created.isoformat(),
    }
