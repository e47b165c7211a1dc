"""Evidence of a SEV-SNP guest, by configfs-tsm.

The supervisor is the only process that holds one. The endorsement key's certificate comes from the hypervisor where it
gives one, else from files that the operator fetched; without either the verifier needs it in its own store. Not here:
the kernel's interface (configfs_tsm.py), any judgement (verifiers/, policy/).
"""

from dataclasses import dataclass
from typing import Final

from hermetic.attestation.abi import snp_certificates
from hermetic.attestation.abi.snp import MASKED, TURIN_HWID_SIZE, WITH_CPUID, Generation, Report, SigningKey
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.evidence import REPORT_DATA_SIZE, JsonValue, fit
from hermetic.errors import InvalidRequestError, TsmError

PROVIDER: Final = "sev_guest"


@dataclass(frozen=True, slots=True)
class SnpSettings:
    """Where reports come from, and what goes with them."""

    tsm: ConfigfsTsm
    endorsement: bytes | None = None  # certificate (DER) of this chip's VCEK or of the loaded VLEK
    crl: bytes | None = None  # DER


class SnpAttester:
    """Makes evidence of kind `snp`. Thread-safe."""

    tee: Final = "snp"

    def __init__(self, settings: SnpSettings) -> None:
        """Make evidence with `settings`; nothing is asked of the kernel yet."""
        self._settings = settings

    def extend(self, digest: bytes) -> None:
        """Do nothing: SEV-SNP has no register for what is loaded after launch."""

    def collect(self, report_data: bytes) -> JsonValue:
        """A report about `report_data` (padded to 64 bytes), and certificates; raises `TsmError`."""
        wanted = fit(report_data, REPORT_DATA_SIZE["snp"])
        made = self._settings.tsm.report(wanted)
        if made.provider != PROVIDER:
            raise TsmError(f"configfs-tsm: expected provider {PROVIDER}, got {made.provider[:64]!r}")
        try:
            report = Report.parse(made.outblob)
            if report.report_data != wanted:
                raise InvalidRequestError("SNP report: expected one about our report data, got another")
            certificates = self._certificates(report, made.auxblob)
            return SnpEvidence(made.outblob, certificates).to_json(_generation(report))
        except InvalidRequestError as error:
            raise TsmError(f"configfs-tsm: {error}") from error

    def _certificates(self, report: Report, table: bytes) -> Certificates:
        given = snp_certificates.parse(table)
        own = () if self._settings.endorsement is None else (self._settings.endorsement,)
        crls = given.crls if self._settings.crl is None else (self._settings.crl,)
        # The operator's before the hypervisor's, and only of the key that has signed.
        if report.signing_key is SigningKey.VLEK:
            return Certificates(vleks=own or given.vleks, crls=crls)
        return Certificates(vceks=own or given.vceks, crls=crls)


def _generation(report: Report) -> Generation:
    """Whose layout the report's TCBs have; raises `InvalidRequestError` for a processor that is not known here."""
    if report.version < WITH_CPUID:  # tells Turin by its shorter chip_id; Milan and Genoa share a layout
        is_short = report.chip_id != MASKED and not any(report.chip_id[TURIN_HWID_SIZE:])
        return Generation.TURIN if is_short else Generation.GENOA
    generation = Generation.of(report.cpuid_fam_id, report.cpuid_mod_id)
    if generation is None:
        raise InvalidRequestError(
            f"SNP report: expected a processor known here, got family {report.cpuid_fam_id:#x} "
            f"model {report.cpuid_mod_id:#x}"
        )
    return generation
