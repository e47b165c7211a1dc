"""The desk that enrols attestation keys: keeps what is pending, for one attempt each (docs/spec/ak-enrolment.md).

What is demanded of the keys is attestation/enrolment.py's.
"""

import secrets
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime

from hermetic.attestation import enrolment
from hermetic.attestation.broker import entries
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.governed import Rule
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.sessions import hidden
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.broker.state.cells import Cell, Cells, NoRoomError, Room
from hermetic.attestation.enrolment import AkCa, EkTrust, PendingEnrolment
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import EvidenceError, FailedCheck, HermeticError, InvalidRequestError

ENROLMENT = "enrolment"


class AkDesk:
    """Pending enrolments, and the CA that answers them. Thread-safe."""

    def __init__(
        self,
        trust: EkTrust,
        authority: AkCa,
        rule: Rule,
        log: Journal,
        cells: Cells,
        clock: Callable[[], datetime],
        room: Room,
    ) -> None:
        """`rule` says whether operators signed for this trust; `room` is for enrolments that wait in `cells`."""
        self._rule = rule
        self._trust = trust
        self._authority = authority
        self._log = log
        self._clock = clock
        self._cells = cells
        self._room = room

    def challenge(
        self, members: Mapping[str, JsonValue], client: str, identity: ClientIdentity | None
    ) -> dict[str, JsonValue]:
        """POST /hermetic/v1/ak/challenge."""
        secret = secrets.token_bytes(enrolment.SECRET_SIZE)
        try:
            self._demand_signed_trust()
            pending, answer = enrolment.challenge(dict(members), self._trust, self._clock(), secret)
        except (InvalidRequestError, EvidenceError) as error:
            self._record(None, identity, error)
            raise _refused(error) from error
        return {"id": self._keep(client, pending), **answer}

    def certificate(
        self, members: Mapping[str, JsonValue], client: str, identity: ClientIdentity | None
    ) -> dict[str, JsonValue]:
        """POST /hermetic/v1/ak/certificate: the record is durable before the certificate leaves."""
        pending = self._take(members.get("id"), client)
        try:
            answer = enrolment.certificate(dict(members), pending, self._authority, self._clock())
        except (InvalidRequestError, EvidenceError) as error:
            self._record(pending, identity, error)
            raise _refused(error) from error
        if failed := self._record(pending, identity, None):
            raise _refused(EvidenceError(failed))
        return answer

    def _demand_signed_trust(self) -> None:
        with self._log.standing() as (standing, _):
            failed = self._rule.unsigned_parts(standing, "trust")
        if failed:
            raise EvidenceError(failed)

    def _keep(self, client: str, pending: PendingEnrolment) -> str:
        name = uuid.uuid4().hex
        cell = Cell(ENROLMENT, hidden(name), client, pending.expires.timestamp(), pending.to_json())
        try:
            self._cells.add(cell, self._room, self._clock().timestamp())
        except NoRoomError as error:
            raise Refusal(Variant.TOO_MANY_REQUESTS, str(error)) from error
        return name

    def _take(self, name: JsonValue, client: str) -> PendingEnrolment:
        """The pending enrolment, which from now on is gone; a stranger cannot take it."""
        now = self._clock().timestamp()
        cell = self._cells.read(hidden(name), now) if isinstance(name, str) else None
        if cell is None or cell.owner != client or cell.kind != ENROLMENT or not self._cells.remove(cell):
            raise Refusal(Variant.ATTESTATION, "enrolment: expected the id of one that waits, got another")
        return PendingEnrolment.of(cell.value)

    def _record(
        self, pending: PendingEnrolment | None, identity: ClientIdentity | None, error: HermeticError | None
    ) -> tuple[FailedCheck, ...]:
        """Record what was decided, durably; returns what operators' signatures have against it."""

        def act(standing: Standing) -> tuple[Entry, tuple[FailedCheck, ...]]:
            failed = () if error is not None else self._rule.unsigned_parts(standing, "trust")
            why = entries.reasons(failed) if error is None else entries.reason(error)
            fields: dict[str, JsonValue] = {
                "client": entries.client_fields(identity),
                "outcome": "refused" if why else "enrolled",
                "reasons": why,
                "ek": None if pending is None else pending.ek.hex(),
                "ak": None if pending is None else pending.ak.name().hex(),
            }
            return Entry(entries.AK, fields), failed

        return self._log.decide(act)[1]


def _refused(error: HermeticError) -> Refusal:
    return Refusal(Variant.ATTESTATION, f"AK enrolment refused: {error}")
