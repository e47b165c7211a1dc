"""Sessions and their nonces (docs/spec/key-broker.md, section 2.2): bounded; a nonce is for one attempt.

    challenged --take--> verifying --finish--> attested        any failure, or the deadline: gone

They are cells, which all processes of a broker share: /auth, /attest and the key may each be another's. Time is the
clock that is passed in; a deadline is fixed when the session begins. Not here: what evidence must say.
"""

import base64
import hashlib
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from hermetic.attestation.broker.jwe import TeeKey, tee_key
from hermetic.attestation.broker.protocol import AuthRequest, Version
from hermetic.attestation.broker.rates import Handshakes
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.state.cells import Cell, Cells, NoRoomError, Room
from hermetic.attestation.broker.token import TokenClaims
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue

NONCE_BYTES: Final = 32
SESSION: Final = "session"

_CHALLENGED: Final = "challenged"
_VERIFYING: Final = "verifying"
_ATTESTED: Final = "attested"


@dataclass(frozen=True, slots=True)
class Attested:
    """What one successful /attest established; kept here, never read back from a token.

    `members` are the claims as JSON: they are written three times, and made once.
    """

    client: str
    version: Version
    tee_key: TeeKey
    claims: Claims
    members: Mapping[str, JsonValue] = field(repr=False)
    token: TokenClaims

    @property
    def hybrid_key(self) -> str:
        """The hybrid public key that was attested too (base64url), to which keys are then wrapped; else empty."""
        hermetic = self.claims.hermetic
        return "" if hermetic is None else hermetic.hybrid_key or ""

    def to_json(self) -> dict[str, JsonValue]:
        """What a cell holds."""
        token: dict[str, JsonValue] = {
            "claims": dict(self.token.claims), "id": self.token.id, "expires": self.token.expires.timestamp()
        }  # fmt: skip
        return {"client": self.client, "version": self.version, "key": dict(self.tee_key.jwk),
                "claims": dict(self.members), "token": token}  # fmt: skip

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> "Attested":
        """Read what `to_json` wrote."""
        token = members["token"]
        return cls(
            client=members["client"],
            version=cast(Version, members["version"]),
            tee_key=tee_key(members["key"]),
            claims=Claims.parse(members["claims"]),
            members=members["claims"],
            token=TokenClaims(token["claims"], token["id"], datetime.fromtimestamp(token["expires"], UTC)),
        )


@dataclass(frozen=True, slots=True)
class Session:
    """One challenge and what came of it. `client` is the caller's key in the tables (certificate or address)."""

    id: str
    client: str
    asked: AuthRequest
    nonce: str
    deadline: datetime
    attested: Attested | None = None
    cell: Cell | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions may be alive, in all and for one client, and how long each lives."""

    most: int
    most_per_client: int
    life: timedelta


class SessionTable:
    """All sessions that are alive. Thread-safe; every refusal is a `Refusal`."""

    def __init__(
        self, cells: Cells, limits: SessionLimits, handshakes: Handshakes, clock: Callable[[], datetime]
    ) -> None:
        """`handshakes` says how often a session may begin."""
        self._cells = cells
        self._room = Room(limits.most, limits.most_per_client)
        self._life = limits.life
        self._handshakes = handshakes
        self._clock = clock

    def begin(self, asked: AuthRequest, client: str) -> Session:
        """A new session with a new nonce."""
        now = self._clock()
        nonce = base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode("ascii")
        session = Session(uuid.uuid4().hex, client, asked, nonce, now + self._life)
        value: dict[str, JsonValue] = {
            "state": _CHALLENGED,
            "asked": {
                "version": asked.version,
                "tee": asked.tee,
                "hermetic": asked.hermetic,
                "hybrid": asked.hybrid,
            },
            "nonce": nonce,
            "deadline": session.deadline.timestamp(),
        }
        cell = Cell(SESSION, hidden(session.id), client, session.deadline.timestamp(), value)
        try:
            self._cells.add(cell, self._room, now.timestamp(), self._handshakes.budgets(client))
        except NoRoomError as error:
            raise Refusal(Variant.TOO_MANY_REQUESTS, str(error), error.wait_s) from error
        return session

    def take(self, session_id: str | None, client: str) -> Session:
        """Steps 1 to 4 of /attest: the session, either attested already or with its nonce taken by this caller."""
        session, cell = self._alive(session_id, client)
        if cell.value["state"] == _ATTESTED:
            return session
        taken = cell.changed({**cell.value, "state": _VERIFYING})
        # Of two that read it as it was, whatever process they are in, one puts its own in the place of that.
        if cell.value["state"] == _VERIFYING or not self._cells.put(taken):
            raise Refusal(Variant.ATTESTATION, "session: expected one attempt at a time, got a second")
        return Session(session.id, client, session.asked, session.nonce, session.deadline, cell=taken)

    def finish(self, session: Session, attested: Attested) -> None:
        """The attempt succeeded; raises `Refusal` where the session is gone meanwhile."""
        cell = _taken(session)
        value = {**cell.value, "state": _ATTESTED, "attested": attested.to_json()}
        ends = max(cell.expires, attested.token.expires.timestamp())
        done = cell.changed(value, alias=hidden(attested.token.id), expires=ends, read=attested)
        if not self._cells.put(done):
            raise Refusal(Variant.ATTESTATION, "session: expected one that is alive, got an expired one")

    def burn(self, session: Session) -> None:
        """The attempt failed: the session and its nonce are gone."""
        self._cells.remove(_taken(session))

    def attested(self, session_id: str | None, client: str) -> Attested:
        """What the session of this cookie established; refused as `TokenNotFound` unless it is attested."""
        try:
            session, _ = self._alive(session_id, client)
        except Refusal as refusal:
            raise Refusal(Variant.TOKEN_NOT_FOUND, str(refusal)) from refusal
        if session.attested is None:
            raise Refusal(Variant.TOKEN_NOT_FOUND, "session: expected an attested one, got one that is not")
        return session.attested

    def of_token(self, token_id: str, client: str) -> Attested:
        """What the token with this id stands for."""
        cell = self._cells.read_alias(hidden(token_id), self._clock().timestamp())
        if cell is None or cell.owner != client or cell.value["state"] != _ATTESTED:
            raise Refusal(Variant.TOKEN_VERIFIER, "token: expected one that this broker issued to this client")
        return _established(cell)

    def _alive(self, session_id: str | None, client: str) -> tuple[Session, Cell]:
        if session_id is None:
            raise Refusal(Variant.ATTESTATION, "cookie not found")
        now = self._clock()
        cell = self._cells.read(hidden(session_id), now.timestamp())
        # A stranger learns nothing about whose session it is, and cannot end it.
        if cell is None or cell.owner != client or cell.kind != SESSION:
            raise Refusal(Variant.ATTESTATION, "session: expected one that is alive, got an unknown or expired one")
        session = _session(session_id, cell)
        if now >= session.deadline:
            raise Refusal(Variant.ATTESTATION, "session: expected one that is alive, got an expired one")
        return session, cell


def hidden(name: str) -> str:
    """How an id of a session or token stands where others may read: its SHA-256, hex."""
    return hashlib.sha256(name.encode()).hexdigest()


def _session(session_id: str, cell: Cell) -> Session:
    value = cast(Mapping[str, Any], cell.value)
    attested = _established(cell) if value["state"] == _ATTESTED else None
    deadline = datetime.fromtimestamp(value["deadline"], UTC)
    return Session(session_id, cell.owner, AuthRequest(**value["asked"]), value["nonce"], deadline, attested, cell)


def _established(cell: Cell) -> Attested:
    """What an attested session's cell holds; read once where this process has made it."""
    if isinstance(cell.read, Attested):
        return cell.read
    return Attested.of(cast(Mapping[str, Any], cell.value["attested"]))


def _taken(session: Session) -> Cell:
    if session.cell is None:
        raise Refusal(Variant.INTERNAL, "session: expected one whose nonce was taken")
    return session.cell
