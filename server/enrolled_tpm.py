"""A TPM whose attestation key is always enrolled: at the first use, and again before its certificate ends."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.exchange import BrokerClient

ENROL_BEFORE_END: Final = timedelta(hours=1)


class EnrolledTpm:
    """An `Attester`. It shares the broker's connection, so whoever holds the one holds the other."""

    tee: Final = "tpm"

    def __init__(self, tpm: TpmAttester, broker: BrokerClient, clock: Callable[[], datetime]) -> None:
        """Keep the parts; `clock` gives the present time with its zone."""
        self._tpm = tpm
        self._broker = broker
        self._clock = clock

    def extend(self, digest: bytes) -> None:
        """Measure a manifest's SHA-256 `digest`, once per boot; raises `TpmError`."""
        self._tpm.extend(digest)

    def collect(self, report_data: bytes) -> JsonValue:
        """Evidence over `report_data`; raises `TpmError`, and what an enrolment that was due raises."""
        ends = self._tpm.certificate_ends()
        if ends is None or ends - self._clock() < ENROL_BEFORE_END:
            chain = self._broker.enrol_ak(self._tpm.enrolment_request(), self._tpm.enrolment_answer)
            self._tpm.accept_certificate(chain)
        return self._tpm.collect(report_data)
