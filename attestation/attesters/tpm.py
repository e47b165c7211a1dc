"""Evidence of a TPM 2.0: enrol the attestation key, measure manifests, quote.

The supervisor is the only process that holds one. Extending, quoting and taking the log that goes with a quote are
serialised by one lock, so evidence is never of two moments. Not here: TPM commands (tpm_device.py), the kept log
(measured_log.py), any judgement (verifiers/, policy/).
"""

import base64
import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.event_log import ZEROS, Event, EventLog
from hermetic.attestation.abi.members import base64_member
from hermetic.attestation.abi.tpm import Public
from hermetic.attestation.attesters import measured_log
from hermetic.attestation.attesters.tpm_device import TpmDevice
from hermetic.attestation.enrolment import VERSION, quote_nonce
from hermetic.attestation.evidence import REPORT_DATA_SIZE, JsonObject, JsonValue, fit
from hermetic.attestation.verifiers import certificates
from hermetic.attestation.verifiers.tpm import LOG_PCRS
from hermetic.errors import ConfigurationError, InvalidRequestError, TpmError

DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
DEFAULT_LOG_PCR: Final = 14
DEFAULT_LOG: Final = Path("/run/hermetic/event-log.json")
DEFAULT_BOOT_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
MAX_ID_OBJECT_SIZE: Final = 256  # bytes
MAX_SECRET_SIZE: Final = 512  # bytes: RSA-4096


@dataclass(frozen=True, slots=True)
class TpmSettings:
    """Where this machine's TPM and logs are."""

    tcti: str = DEFAULT_TCTI
    log_pcr: int = DEFAULT_LOG_PCR
    log: Path = DEFAULT_LOG
    boot_log: Path | None = DEFAULT_BOOT_LOG  # None: none is sent, and no code counts as measured
    ek_intermediates: tuple[bytes, ...] = field(default=())  # DER, where the vendor's CA has levels


class TpmAttester:
    """Makes evidence of kind `tpm`. Thread-safe; close it, or use it in a `with`."""

    tee: Final = "tpm"

    def __init__(self, settings: TpmSettings) -> None:
        """Open the TPM and find this boot's log.

        Raises `ConfigurationError` for a PCR that can be reset or is the firmware's, `TpmError` when the TPM does not
        answer or the log does not explain the PCR.
        """
        if settings.log_pcr not in LOG_PCRS:
            raise ConfigurationError(
                f"log_pcr: expected a static PCR, {LOG_PCRS[0]} to {LOG_PCRS[-1]}, got {settings.log_pcr}"
            )
        self._settings = settings
        self._lock = threading.Lock()
        self._chain: tuple[bytes, ...] = ()
        self._boot_log = _read_boot_log(settings.boot_log)
        self._device = TpmDevice(settings.tcti)
        try:
            self._boot = self._device.boot()
            self._log = self._recover()
        except BaseException:
            self._device.close()
            raise

    def close(self) -> None:
        """Let the TPM go."""
        with self._lock:
            self._device.close()

    def __enter__(self) -> Self:
        """Return the attester itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def extend(self, digest: bytes) -> None:
        """Measure the manifest with SHA-256 `digest`, once per boot: write it to the log, then extend the PCR."""
        event = Event(digest)
        with self._lock:
            if event in self._log.events:
                return
            log = self._log.with_event(event)
            measured_log.write(self._settings.log, self._boot, log)
            self._device.extend(log.pcr, event.measured())
            self._log = log

    def collect(self, report_data: bytes) -> JsonValue:
        """A quote over all PCRs with `report_data` (cut to 32 bytes) as its nonce, and the logs that explain it."""
        with self._lock:
            quote = self._device.quote(fit(report_data, REPORT_DATA_SIZE["tpm"]))
            log, chain = self._log, self._chain
        additions: dict[str, JsonValue] = {"event_log": log.to_json()}
        if chain:
            additions["ak_certificate"] = [_b64(der) for der in chain]
            additions["ak_public_area"] = _b64(self._device.ak_public)
        if self._boot_log is not None:
            additions["boot_log"] = _b64(self._boot_log)
        return {
            "ak_public": _b64(self.ak_spki()),
            "tpm_quote": {
                "message": _b64(quote.message),
                "signature": _b64(quote.signature),
                "pcrs": [value.hex() for value in quote.pcrs],
            },
            "hermetic": additions,
        }

    def ak_spki(self) -> bytes:
        """The AK's SubjectPublicKeyInfo (DER): what is provisioned by hand where no enrolment is offered."""
        return certificates.spki(Public.parse(self._device.ak_public).public_key())

    def enrolment_request(self) -> JsonObject:
        """The body of POST /hermetic/v1/ak/challenge (docs/spec/ak-enrolment.md)."""
        with self._lock:
            ek = [self._device.ek_certificate(), *self._settings.ek_intermediates]
            ek_public = self._device.ek_public()
        return {
            "version": VERSION,
            "ek-certificates": [_b64(der) for der in ek],
            "ek-public": _b64(ek_public),
            "ak-public": _b64(self._device.ak_public),
        }

    def enrolment_answer(self, challenge: JsonObject) -> JsonObject:
        """The body of POST /hermetic/v1/ak/certificate for the broker's reply to `enrolment_request`."""
        id_object = base64_member(challenge, "credential-blob", MAX_ID_OBJECT_SIZE)
        encrypted = base64_member(challenge, "encrypted-secret", MAX_SECRET_SIZE)
        with self._lock:
            secret = self._device.activate(id_object, encrypted)
            quote = self._device.quote(quote_nonce(secret))
        return {
            "id": challenge.get("id"),
            "secret": _b64(secret),
            "quote": _b64(quote.message),
            "signature": _b64(quote.signature),
        }

    def certificate_ends(self) -> datetime | None:
        """When the AK's certificate ends, so that the TPM is enrolled again before; None while there is none."""
        with self._lock:
            return None if not self._chain else certificates.parse(self._chain[0]).not_valid_after_utc

    def accept_certificate(self, chain_pem: bytes) -> None:
        """Send `chain_pem` (leaf first) beside every quote from now on; raises `InvalidRequestError` if not for us."""
        try:
            chain = x509.load_pem_x509_certificates(chain_pem)
        except ValueError as error:
            raise InvalidRequestError(f"AK certificate: expected PEM, leaf first, got {error}") from error
        if certificates.spki(chain[0]) != self.ak_spki():
            raise InvalidRequestError("AK certificate: expected one for this TPM's attestation key, got another's")
        with self._lock:
            self._chain = tuple(one.public_bytes(Encoding.DER) for one in chain)

    def _recover(self) -> EventLog:
        base = ZEROS
        if self._boot_log is not None:
            base = tcg_event_log.replay(tcg_event_log.parse(self._boot_log)).get(self._settings.log_pcr, ZEROS)
        value = self._device.pcrs()[self._settings.log_pcr]
        return measured_log.recovered(self._settings.log, self._boot, self._settings.log_pcr, base, value)


def _read_boot_log(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            log = file.read(tcg_event_log.MAX_LOG_SIZE + 1)
    except FileNotFoundError:
        return None  # no firmware log on this machine: evidence without it, and no code counts as measured
    except OSError as error:
        raise TpmError(f"boot log {path}: could not read it: {error}") from error
    if not log:
        return None
    try:
        tcg_event_log.replay(tcg_event_log.parse(log))
    except InvalidRequestError as error:
        raise ConfigurationError(
            f"boot log {path}: expected one with the SHA-256 bank, or none at all, got {error}"
        ) from error
    return log


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
