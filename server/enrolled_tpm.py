"""A TPM whose attestation key is always enrolled: at the first use, and again before its certificate ends."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.exchange import BrokerClient
from hermetic.errors import BrokerUnreachableError

ENROL_BEFORE_END: Final = timedelta(hours=1)
ENROL_AGAIN: Final = timedelta(minutes=1)  # after a try while the broker was away


class EnrolledTpm:
    """An `Attester`, thread-safe. It shares the broker's connection, and takes its turn at it where it must enrol."""

    tee: Final = "tpm"

    def __init__(self, tpm: TpmAttester, broker: BrokerClient, clock: Callable[[], datetime]) -> None:
        """Keep the parts; `clock` gives the present time with its zone."""
        self._tpm = tpm
        self._broker = broker
        self._clock = clock
        self._not_before: datetime | None = None  # of the next try, where the broker was away

    def extend(self, digest: bytes) -> None:
        """Measure a manifest's SHA-256 `digest`, once per boot; raises `TpmError`."""
        self._tpm.extend(digest)

    def collect(self, report_data: bytes) -> JsonValue:
        """Evidence over `report_data`; raises `TpmError`, and what an enrolment that was due raises.

        While the certificate lasts, a broker that is away is tried again later, and nobody waits for it.
        """
        if self._is_due():
            with self._broker.turn:
                if self._is_due():  # nobody has been quicker
                    self._enrol()
        return self._tpm.collect(report_data)

    def _is_due(self) -> bool:
        ends, now = self._tpm.certificate_ends(), self._clock()
        if ends is None or ends <= now:
            return True
        return ends - now < ENROL_BEFORE_END and (self._not_before is None or now >= self._not_before)

    def _enrol(self) -> None:
        try:
            chain = self._broker.enrol_ak(self._tpm.enrolment_request(), self._tpm.enrolment_answer)
        except BrokerUnreachableError:
            ends, now = self._tpm.certificate_ends(), self._clock()
            if ends is None or ends <= now:
                raise
            self._not_before = now + ENROL_AGAIN
            return
        self._tpm.accept_certificate(chain)
        self._not_before = None
