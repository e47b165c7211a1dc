"""The desk that enrols attestation keys: keeps what is pending, for one attempt each (docs/spec/ak-enrolment.md).

What is demanded of the keys is attestation/enrolment.py's.
"""

import secrets
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime

from hermetic.attestation import enrolment
from hermetic.attestation.broker import journal
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.enrolment import AkCa, EkTrust, PendingEnrolment
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import EvidenceError, HermeticError, InvalidRequestError


class AkDesk:
    """Pending enrolments, and the CA that answers them. Thread-safe."""

    def __init__(self, trust: EkTrust, authority: AkCa, log: Journal, clock: Callable[[], datetime], most: int) -> None:
        """`most` is how many enrolments may wait for their answer."""
        self._trust = trust
        self._authority = authority
        self._log = log
        self._clock = clock
        self._most = most
        self._mutex = threading.Lock()
        self._pending: dict[str, tuple[str, PendingEnrolment]] = {}  # in the order of expiry: all lives are equal

    def challenge(
        self, members: Mapping[str, JsonValue], client: str, identity: ClientIdentity | None
    ) -> dict[str, JsonValue]:
        """POST /hermetic/v1/ak/challenge."""
        secret = secrets.token_bytes(enrolment.SECRET_SIZE)
        try:
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
        self._record(pending, identity, None)
        return answer

    def _keep(self, client: str, pending: PendingEnrolment) -> str:
        with self._mutex:
            now = self._clock()
            while self._pending and next(iter(self._pending.values()))[1].expires < now:
                self._pending.pop(next(iter(self._pending)))
            if len(self._pending) >= self._most:
                raise Refusal(Variant.TOO_MANY_REQUESTS, f"enrolments: expected at most {self._most} waiting")
            name = uuid.uuid4().hex
            self._pending[name] = (client, pending)
            return name

    def _take(self, name: JsonValue, client: str) -> PendingEnrolment:
        """The pending enrolment, which from now on is gone; a stranger cannot take it."""
        with self._mutex:
            owner, pending = self._pending.get(name, ("", None)) if isinstance(name, str) else ("", None)
            if pending is None or owner != client:
                raise Refusal(Variant.ATTESTATION, "enrolment: expected the id of one that waits, got another")
            del self._pending[str(name)]
            return pending

    def _record(
        self, pending: PendingEnrolment | None, identity: ClientIdentity | None, error: HermeticError | None
    ) -> None:
        fields: dict[str, JsonValue] = {
            "client": journal.client_fields(identity),
            "outcome": "enrolled" if error is None else "refused",
            "reasons": [] if error is None else journal.reason(error),
            "ek": None if pending is None else pending.ek.hex(),
            "ak": None if pending is None else pending.ak.name().hex(),
        }
        self._log.write(journal.AK, fields)


def _refused(error: HermeticError) -> Refusal:
    return Refusal(Variant.ATTESTATION, f"AK enrolment refused: {error}")
