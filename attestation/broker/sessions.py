"""The table of sessions and their nonces (docs/spec/key-broker.md, section 2.2): bounded; a nonce is for one attempt.

    challenged --take--> verifying --finish--> attested        any failure, or the deadline: gone

Time is the clock that is passed in; a deadline is fixed when the session begins. Not here: what evidence must say.
"""

import base64
import secrets
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from hermetic.attestation.broker.jwe import TeeKey
from hermetic.attestation.broker.protocol import AuthRequest, Version
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.token import TokenClaims
from hermetic.attestation.claims import Claims

NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Attested:
    """What one successful /attest established; kept here, never read back from a token."""

    client: str
    version: Version
    tee_key: TeeKey
    claims: Claims
    token: TokenClaims


class _State(Enum):
    CHALLENGED = "challenged"
    VERIFYING = "verifying"
    ATTESTED = "attested"


@dataclass(slots=True)
class Session:
    """One challenge and what came of it. `client` is the caller's key in the tables (certificate or address)."""

    id: str
    client: str
    asked: AuthRequest
    nonce: str
    deadline: datetime
    attested: Attested | None = None
    state: _State = field(default=_State.CHALLENGED, repr=False)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions may be alive, in all and for one client, and how long each lives."""

    most: int
    most_per_client: int
    life: timedelta


class SessionTable:
    """All sessions that are alive. Thread-safe; every refusal is a `Refusal`."""

    def __init__(self, limits: SessionLimits, clock: Callable[[], datetime]) -> None:
        """An empty table."""
        self._limits = limits
        self._clock = clock
        self._mutex = threading.Lock()
        self._sessions: dict[str, Session] = {}  # in the order of deadlines, because all lives are equal
        self._per_client: Counter[str] = Counter()
        self._tokens: dict[str, Attested] = {}  # in the order of expiry, for the same reason

    def begin(self, asked: AuthRequest, client: str) -> Session:
        """A new session with a new nonce."""
        with self._mutex:
            now = self._clock()
            self._forget_expired(now)
            if len(self._sessions) >= self._limits.most:
                raise Refusal(Variant.TOO_MANY_REQUESTS, f"sessions: expected at most {self._limits.most} alive")
            if self._per_client[client] >= self._limits.most_per_client:
                limit = self._limits.most_per_client
                raise Refusal(Variant.TOO_MANY_REQUESTS, f"sessions: expected at most {limit} alive for one client")
            nonce = base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode("ascii")
            session = Session(uuid.uuid4().hex, client, asked, nonce, now + self._limits.life)
            self._sessions[session.id] = session
            self._per_client[client] += 1
            return session

    def take(self, session_id: str | None, client: str) -> Session:
        """Steps 1 to 4 of /attest: the session, either attested already or with its nonce taken by this caller."""
        with self._mutex:
            session = self._alive(session_id, client)
            if session.state is _State.VERIFYING:
                raise Refusal(Variant.ATTESTATION, "session: expected one attempt at a time, got a second")
            if session.state is _State.CHALLENGED:
                session.state = _State.VERIFYING
            return session

    def finish(self, session: Session, attested: Attested) -> None:
        """The attempt succeeded."""
        with self._mutex:
            session.attested = attested
            session.state = _State.ATTESTED
            self._tokens[attested.token.id] = attested
            while len(self._tokens) > self._limits.most:
                self._tokens.pop(next(iter(self._tokens)))

    def burn(self, session: Session) -> None:
        """The attempt failed: the session and its nonce are gone."""
        with self._mutex:
            self._remove(session)

    def attested(self, session_id: str | None, client: str) -> Attested:
        """What the session of this cookie established; refused as `TokenNotFound` unless it is attested."""
        with self._mutex:
            try:
                session = self._alive(session_id, client)
            except Refusal as refusal:
                raise Refusal(Variant.TOKEN_NOT_FOUND, str(refusal)) from refusal
            if session.attested is None:
                raise Refusal(Variant.TOKEN_NOT_FOUND, "session: expected an attested one, got one that is not")
            return session.attested

    def of_token(self, token_id: str, client: str) -> Attested:
        """What the token with this id stands for."""
        with self._mutex:
            attested = self._tokens.get(token_id)
            if attested is None or attested.client != client:
                raise Refusal(Variant.TOKEN_VERIFIER, "token: expected one that this broker issued to this client")
            return attested

    def counts(self) -> Mapping[str, int]:
        """How many sessions and tokens are held, for health and tests."""
        with self._mutex:
            return {"sessions": len(self._sessions), "tokens": len(self._tokens)}

    def _alive(self, session_id: str | None, client: str) -> Session:
        if session_id is None:
            raise Refusal(Variant.ATTESTATION, "cookie not found")
        session = self._sessions.get(session_id)
        # A stranger learns nothing about whose session it is, and cannot end it.
        if session is None or session.client != client:
            raise Refusal(Variant.ATTESTATION, "session: expected one that is alive, got an unknown one")
        if self._clock() >= session.deadline:
            self._remove(session)
            raise Refusal(Variant.ATTESTATION, "session: expected one that is alive, got an expired one")
        return session

    def _remove(self, session: Session) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        self._per_client[session.client] -= 1
        if not self._per_client[session.client]:
            del self._per_client[session.client]

    def _forget_expired(self, now: datetime) -> None:
        while self._sessions and (oldest := next(iter(self._sessions.values()))).deadline <= now:
            self._remove(oldest)
        while self._tokens and (first := next(iter(self._tokens.values()))).token.expires <= now:
            del self._tokens[first.token.id]
