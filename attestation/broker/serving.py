"""The desk that hands out serving certificates: appraise, record, sign (docs/spec/key-broker.md, section 3.2)."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.governed import Rule
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.leases import against_host
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.release import accepted
from hermetic.attestation.broker.serving_ca import ServingAuthority, ServingNames, verify_request
from hermetic.attestation.broker.sessions import Attested
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import AppraisalError, FailedCheck, HermeticError, InvalidRequestError

CURRENT_FORM: Final = "0.4.0"
SERVING_PURPOSE: Final = "serving-key"


class ServingDesk:
    """Certifies attested serving keys that a policy accepts."""

    def __init__(
        self,
        authority: ServingAuthority,
        rule: Rule,
        log: Journal,
        clock: Callable[[], datetime],
    ) -> None:
        """`rule` says what a session must meet, as of a decision, and whether operators signed for our names."""
        self._authority = authority
        self._rule = rule
        self._log = log
        self._clock = clock

    def certify(
        self,
        csr_pem: str,
        attested: Attested,
        client: ClientIdentity | None,
    ) -> bytes:
        """A certificate chain for the attested key, PEM; the record is durable before the signature is made."""
        try:
            if attested.version != CURRENT_FORM:
                raise InvalidRequestError(f"session: expected the form {CURRENT_FORM}, got {attested.version}")
            key = verify_request(csr_pem, attested.tee_key.public_key)
            names = self._authority.names_for(client)
            self._check_purpose(attested)
        except InvalidRequestError as error:
            self._record(attested, client, None, error)
            raise _refused(error) from error
        if failed := self._record(attested, client, names, None):
            raise _refused(AppraisalError(failed))
        return self._authority.issue(key, names, self._clock())

    def _check_purpose(self, attested: Attested) -> None:
        """A worker's key never becomes a server's: the session must have said what its key is for."""
        hermetic = attested.claims.hermetic
        purpose = None if hermetic is None else hermetic.purpose
        if purpose != SERVING_PURPOSE:
            raise InvalidRequestError(f"session: expected the purpose {SERVING_PURPOSE}, got {purpose}")

    def _record(
        self, attested: Attested, client: ClientIdentity | None, names: ServingNames | None, error: HermeticError | None
    ) -> tuple[FailedCheck, ...]:
        """Record what was decided, durably; returns what speaks against it: then it was refused."""
        shown: list[JsonValue] = [] if names is None else [names.common_name, *map(_shown, names.alternatives)]

        def act(standing: Standing) -> tuple[Entry, tuple[FailedCheck, ...]]:
            failed = self._refusals(standing, attested, client) if error is None else ()
            why = entries.reasons(failed) if error is None else entries.reason(error)
            fields: dict[str, JsonValue] = {
                "client": entries.client_fields(client),
                "outcome": "refused" if why else "issued",
                "reasons": why,
                "key": attested.tee_key.thumbprint,
                "names": [] if why else shown,
            }
            return Entry(entries.SERVING_CERTIFICATE, fields), failed

        return self._log.decide(act)[1]

    def _refusals(
        self, standing: Standing, attested: Attested, client: ClientIdentity | None
    ) -> tuple[FailedCheck, ...]:
        """What the policy in force says against it, else what is revoked of the host."""
        if failed := self._rule.unsigned_parts(standing, "trust", "serving"):
            return failed
        form = self._rule.serving(standing)
        if form is None:
            return (FailedCheck("serving.policy", "a policy of serving certificates", "none that can be used"),)
        return accepted(attested.claims, form, self._clock()) or against_host(standing, attested, client)


def _refused(error: HermeticError) -> Refusal:
    return Refusal(Variant.POLICY_DENY, f"serving certificate refused: {error}")


def _shown(name: x509.GeneralName) -> str:
    return str(name.value)
