"""The desk that hands out serving certificates: appraise, record, sign (docs/spec/key-broker.md, section 3.2)."""

from collections.abc import Callable
from datetime import datetime

from cryptography import x509

from hermetic.attestation.broker import journal
from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.serving_ca import ServingAuthority, ServingNames, verify_request
from hermetic.attestation.broker.sessions import Attested
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import AppraisalError, HermeticError, InvalidRequestError

CURRENT_FORM = "0.4.0"


class ServingDesk:
    """Certifies attested serving keys that a policy accepts."""

    def __init__(
        self,
        authority: ServingAuthority,
        accept: Callable[[Claims], object],
        log: Journal,
        clock: Callable[[], datetime],
    ) -> None:
        """`accept` raises `AppraisalError` with every failure."""
        self._authority = authority
        self._accept = accept
        self._log = log
        self._clock = clock

    def certify(self, csr_pem: str, attested: Attested, client: ClientIdentity | None) -> bytes:
        """A certificate chain for the attested key, PEM; the record is durable before the signature is made."""
        try:
            if attested.version != CURRENT_FORM:
                raise InvalidRequestError(f"session: expected the form {CURRENT_FORM}, got {attested.version}")
            key = verify_request(csr_pem, attested.tee_key.public_key)
            names = self._authority.names_for(client)
            self._accept(attested.claims)
        except (InvalidRequestError, AppraisalError) as error:
            self._record(attested, client, None, error)
            raise Refusal(Variant.POLICY_DENY, f"serving certificate refused: {error}") from error
        self._record(attested, client, names, None)
        return self._authority.issue(key, names, self._clock())

    def _record(
        self, attested: Attested, client: ClientIdentity | None, names: ServingNames | None, error: HermeticError | None
    ) -> None:
        shown: list[JsonValue] = [] if names is None else [names.common_name, *map(_shown, names.alternatives)]
        fields: dict[str, JsonValue] = {
            "client": journal.client_fields(client),
            "outcome": "issued" if error is None else "refused",
            "reasons": [] if error is None else journal.reason(error),
            "key": attested.tee_key.thumbprint(),
            "names": shown,
        }
        self._log.write(journal.SERVING_CERTIFICATE, fields)


def _shown(name: x509.GeneralName) -> str:
    return str(name.value)
