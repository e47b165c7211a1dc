"""What the broker does for guests: challenge, attest, release, certify (docs/spec/key-broker.md, sections 2 and 3).

Each method is one request: bytes in, an answer or a `Refusal` out. Thread-safe; HTTP is app.py's. A decision is durable
in the log before it has any effect: what decides is written in steps (steps.py), and yields where it waits for that.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.counts import Counts
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.floors import newest_settled
from hermetic.attestation.broker.governed import Rule
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.jwe import encrypt, key_wrap
from hermetic.attestation.broker.key_store import KeyStore, ResourcePath, StoredKey
from hermetic.attestation.broker.lease_state import Holding
from hermetic.attestation.broker.leases import Asker, Leases, against_host
from hermetic.attestation.broker.protocol import parse_attestation, parse_auth
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.release import Asked, ModelPolicy, refusals
from hermetic.attestation.broker.serving import ServingDesk
from hermetic.attestation.broker.sessions import Attested, Session, SessionTable, hidden
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.broker.steps import Steps
from hermetic.attestation.broker.token import TokenSigner, submods
from hermetic.attestation.broker.verification import served_kinds, verify_attestation
from hermetic.attestation.claims import Claims, Profile
from hermetic.attestation.evidence import JsonValue, canonical
from hermetic.attestation.governance.contents import secret_digest
from hermetic.attestation.policy.verdict import warnings
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import (
    EvidenceError,
    FailedCheck,
    InvalidRequestError,
    KeyStoreError,
    LogError,
    SharedStateError,
)

MAX_LOGGED_CLAIMS: Final = 32 * 1024
"""Claims of at most this many canonical bytes stand in the log; of longer ones their SHA-256."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: the verified client certificate's identity, where there was one, and the address."""

    identity: ClientIdentity | None
    address: str

    @property
    def key(self) -> str:
        """What limits and sessions are counted by."""
        return f"address {self.address}" if self.identity is None else self.identity.certificate


@dataclass(frozen=True, slots=True)
class Challenged:
    """The answer to /auth."""

    session: Session
    body: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Released:
    """A key's release: the JWE, the decision's place in the log, a checkpoint that covers it, a model key's lease."""

    jwe: bytes
    index: int
    checkpoint: bytes
    lease: str | None


@dataclass(frozen=True, slots=True)
class Renewed:
    """Another lease, and a checkpoint that covers the decision."""

    lease: str
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class _Decided:
    """A release that is durable: of which key, under which lease (None for a plain secret), where it stands.

    `secret_digest` is that of the key which operators signed for, None where they signed for none.
    """

    resource: ResourcePath
    attested: Attested
    holding: Holding | None
    secret_digest: str | None
    index: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides: the profile, whose evidence is genuine at this moment, and who says what is acceptable."""

    profile: Profile
    trust: Callable[[], TrustRoots]
    rule: Rule


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the broker keeps: sessions, keys, leases, the log, its tokens' signing key, and what it counts."""

    sessions: SessionTable
    keys: KeyStore
    journal: Journal
    signer: TokenSigner
    counts: Counts
    leases: Leases


class Broker:
    """The public listener's requests."""

    def __init__(
        self, rules: Rules, holdings: Holdings, serving: ServingDesk | None, clock: Callable[[], datetime]
    ) -> None:
        """`serving` is None where no serving certificates are issued."""
        self._rules = rules
        self._holdings = holdings
        self._serving = serving
        self._clock = clock

    def auth(self, body: bytes, caller: Caller) -> Challenged:
        """POST /kbs/v0/auth."""
        try:
            asked = parse_auth(body)
        except InvalidRequestError as error:
            raise Refusal(Variant.ATTESTATION, f"RCAR handshake Auth failed: {error}") from error
        if asked.tee not in self._kinds():
            known = ", ".join(sorted(self._kinds()))
            raise Refusal(Variant.ATTESTATION, f"RCAR handshake Auth failed: tee: expected {known}, got {asked.tee}")
        session = self._holdings.sessions.begin(asked, caller.key)
        return Challenged(session, {"nonce": session.nonce, "extra-params": asked.extra_params()})

    def attest(self, session_id: str | None, body: bytes, caller: Caller) -> Steps[str]:
        """POST /kbs/v0/attest: the token. Whatever fails from here on ends the session."""
        session = self._holdings.sessions.take(session_id, caller.key)  # steps 1 to 4
        if session.attested is not None:
            return self._holdings.signer.sign(session.attested.token)
        try:
            attested = yield from self._verify(session, body, caller)  # steps 5 and 6
        except (InvalidRequestError, EvidenceError) as error:
            self._holdings.sessions.burn(session)
            yield from self._log_attest(session, caller, "refused", {"reasons": entries.reason(error)})
            self._holdings.counts.attested(session.asked.tee, "refused")
            raise Refusal(Variant.ATTESTATION, f"RCAR handshake Attest failed: {error}") from error
        except BaseException:
            self._holdings.sessions.burn(session)
            raise
        self._holdings.sessions.finish(session, attested)
        return self._holdings.signer.sign(attested.token)

    def resource(self, path: str, session_id: str | None, bearer: str | None, caller: Caller) -> Steps[Released]:
        """GET /kbs/v0/resource/<path>: the decision, durable, then the key, and its lease where a model has it."""
        decided = yield from self._decide(path, self.attested(session_id, bearer, caller), caller, "released")
        try:
            with self._holdings.keys.unwrap(decided.resource) as buffer, buffer.view as secret:
                _check_secret(decided, secret)
                jwe = encrypt(secret, decided.attested.tee_key, decided.attested.hybrid_key)
            lease = None if decided.holding is None else self._holdings.leases.signer.sign(decided.holding.terms)
        except Exception as error:
            yield from self._take_back(decided, error)
            raise
        return Released(json.dumps(jwe).encode("ascii"), decided.index, self._holdings.journal.checkpoint(), lease)

    def renew_lease(self, path: str, session_id: str | None, caller: Caller) -> Steps[Renewed]:
        """POST /hermetic/v1/leases/renew: the decision anew, durable, then another lease. No key is unwrapped."""
        decided = yield from self._decide(path, self.attested(session_id, None, caller), caller, "renewed")
        if decided.holding is None:
            raise Refusal(Variant.INVALID_REQUEST, f"resource: expected a model's key, got {decided.resource}")
        lease = self._holdings.leases.signer.sign(decided.holding.terms)
        return Renewed(lease, self._holdings.journal.checkpoint())

    def serving_certificate(self, csr_pem: str, session_id: str | None, caller: Caller) -> bytes:
        """POST /hermetic/v1/serving-certificate: a PEM chain, leaf first."""
        attested = self.attested(session_id, None, caller)
        if self._serving is None:
            raise Refusal(
                Variant.POLICY_DENY, "serving certificate: expected a broker that issues them, got one that does not"
            )
        return self._serving.certify(csr_pem, attested, caller.identity)

    def attested(self, session_id: str | None, bearer: str | None, caller: Caller) -> Attested:
        """What the caller's session established, else what its token stands for; raises `Refusal`."""
        sessions = self._holdings.sessions
        try:
            return sessions.attested(session_id, caller.key)
        except Refusal:
            if bearer is None:
                raise
        return sessions.of_token(self._holdings.signer.verify(bearer), caller.key)

    def _demand_signed_trust(self) -> None:
        """Raise `EvidenceError` where operators signed for other roots than these: then nothing is genuine here."""
        with self._holdings.journal.standing() as (standing, _):
            failed = self._rules.rule.unsigned_parts(standing, "trust")
        if failed:
            raise EvidenceError(failed)

    def _kinds(self) -> frozenset[str]:
        """The kinds of primary evidence that are verified here."""
        return served_kinds(self._rules.trust())

    def _verify(self, session: Session, body: bytes, caller: Caller) -> Steps[Attested]:
        attestation = parse_attestation(body, session.asked, session.nonce)
        self._demand_signed_trust()
        name = None if caller.identity is None else caller.identity.name
        verified = verify_attestation(attestation, session.asked.tee, self._rules.trust(), name, self._clock())
        claims = verified.claims
        members = claims.to_json()
        token = self._holdings.signer.claims(submods(attestation, claims, members, verified.submods))
        facts = {"key": attestation.tee_key.thumbprint, "claims": _logged(claims, members), "reasons": []}
        yield from self._log_attest(session, caller, "genuine", facts)
        self._holdings.counts.attested("+".join([session.asked.tee, *sorted(attestation.devices())]), "genuine")
        return Attested(
            client=caller.key,
            version=session.asked.version,
            tee_key=attestation.tee_key,
            claims=claims,
            members=members,
            token=token,
        )

    def _decide(self, path: str, attested: Attested, caller: Caller, outcome: str) -> Steps[_Decided]:
        """Decide whether the session may have the key at `path`; raises `Refusal`. Durable either way."""
        try:
            resource = ResourcePath.parse(path)
        except InvalidRequestError as error:
            raise Refusal(Variant.INVALID_PATH, str(error)) from error
        key = self._holdings.keys.find(resource)

        def act(standing: Standing) -> tuple[Entry, tuple[Sequence[FailedCheck], Holding | None, str | None]]:
            policy = None if key is None else self._rules.rule.policy(standing, key)
            asking = _Asking(resource, key, policy, attested, caller)
            failed, holding = self._weigh(standing, asking)
            facts = {"outcome": "refused" if failed else outcome, "reasons": entries.reasons(failed),
                     "lease": entries.lease_fields(holding)}  # fmt: skip
            return _release_entry(asking, facts), (failed, holding, self._rules.rule.secret(standing, resource))

        index, (failed, holding, secret_digest) = yield act
        self._holdings.counts.released("refused" if failed else outcome)
        if key is None:
            raise Refusal(Variant.PLUGIN_INTERNAL, f"Plugin internal error: no such resource: {resource}")
        if failed:
            reasons = "; ".join(map(str, failed))
            raise Refusal(Variant.POLICY_DENY, f"Access denied by policy (decision {index}): {reasons}")
        return _Decided(resource, attested, holding, secret_digest, index)

    def _take_back(self, decided: _Decided, error: Exception) -> Steps[None]:
        """Nobody got the key: say so, and end the lease, which nobody got either.

        Where even that cannot be written, the lease ends by itself, and the caller learns why there is no key.
        """
        fields = entries.failed_fields(decided.index, str(decided.resource), decided.holding, error)
        with contextlib.suppress(LogError, SharedStateError):
            yield lambda _: (Entry(entries.RELEASE_FAILED, fields), None)
        self._holdings.counts.released("failed")

    def _weigh(self, standing: Standing, asking: "_Asking") -> tuple[Sequence[FailedCheck], Holding | None]:
        """Every check that speaks against the release, or the lease that goes with it; None for a plain secret."""
        key, policy = asking.key, asking.policy
        if key is None:
            return _MISSING, None
        if failed := self._rules.rule.unsigned_parts(standing, "trust"):
            return failed, None
        if failed := self._rules.rule.unsigned(standing, key):
            return failed, None
        if failed := refusals(self._asked(standing, key, asking.attested.claims, policy), policy):
            return failed, None
        if key.model is None or policy is None:
            return against_host(standing, asking.attested, asking.caller.identity), None
        asker = Asker(asking.attested, asking.caller.identity, asking.resource, key.model)
        holding = self._holdings.leases.draw_up(asker, policy.lengths)
        failed = self._holdings.leases.refusals(standing, holding)
        return failed, None if failed else holding

    def _asked(self, standing: Standing, key: StoredKey, claims: Claims, policy: ModelPolicy | None) -> Asked:
        model, now = key.model, self._clock()
        floor = 0 if model is None else standing.floor(model.name)
        settled = 0
        if model is not None and policy is not None and policy.rollback == "latest-only":
            settled = newest_settled(self._released(standing, model.name), model.name, now, policy.roll_over)
        lease_key = self._holdings.leases.signer.public.digest
        return Asked(key, claims, self._rules.profile, floor, settled, now, lease_key)

    def _released(self, standing: Standing, name: str) -> Iterator[StoredKey]:
        """Keys of a name that may be released: one that nobody has signed for makes no older one obsolete."""
        for key in self._holdings.keys.list():
            if key.model is not None and key.model.name == name and not self._rules.rule.unsigned(standing, key):
                yield key

    def _log_attest(
        self, session: Session, caller: Caller, outcome: str, facts: Mapping[str, JsonValue]
    ) -> Steps[None]:
        attempt = hidden(session.id)
        fixed: dict[str, JsonValue] = {
            "client": entries.client_fields(caller.identity),
            "session": attempt,
            "tee": session.asked.tee,
            "version": session.asked.version,
            "outcome": outcome,
        }

        def act(standing: Standing) -> tuple[Entry, None]:
            standing.forget_attempts(self._clock())
            if attempt in standing.attested:
                raise Refusal(Variant.ATTESTATION, "session: expected one attempt, got a second")
            return Entry(entries.ATTEST, fixed | dict(facts)), None

        yield act


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who asks for which key, and the policy that it has."""

    resource: ResourcePath
    key: StoredKey | None
    policy: ModelPolicy | None
    attested: Attested
    caller: Caller


def _release_entry(asking: _Asking, facts: Mapping[str, JsonValue]) -> Entry:
    key, policy, claims = asking.key, asking.policy, asking.attested.claims
    accepted = policy is not None and facts["outcome"] != "refused"
    fields: dict[str, JsonValue] = {
        "client": entries.client_fields(asking.caller.identity),
        "resource": str(asking.resource),
        **facts,
        "model": entries.model_fields(None if key is None else key.model),
        "key": asking.attested.tee_key.thumbprint,
        "key_wrap": key_wrap(asking.attested.tee_key, asking.attested.hybrid_key),
        "policy": None if policy is None else policy.form.name,
        "policy_digest": None if policy is None else policy.digest,
        "warnings": list(warnings(claims, policy.form)) if policy is not None and accepted else [],
    }
    return Entry(entries.RELEASE, fields)


def _check_secret(decided: _Decided, secret: memoryview) -> None:
    """A key that another one was put in place of, by whoever has the KEK, is not what operators signed for."""
    if decided.secret_digest is not None and secret_digest(secret) != decided.secret_digest:
        raise KeyStoreError(f"resource {decided.resource}: expected the key that operators signed for, got another one")


_MISSING: Final = (FailedCheck("release.resource", "a stored key", "none"),)


def _logged(claims: Claims, members: Mapping[str, JsonValue]) -> JsonValue:
    """The claims as a record holds them. `members` are the claims as JSON, which has the canonical form's length."""
    if len(claims.model_dump_json().encode()) <= MAX_LOGGED_CLAIMS:
        return members
    return {"sha256": hashlib.sha256(canonical(members)).hexdigest()}
