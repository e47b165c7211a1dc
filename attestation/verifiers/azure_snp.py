"""Whether evidence of an Azure SEV-SNP VM is genuine: the processor's report, the key that it binds, the key's quote.

Check names: docs/spec/snp-evidence.md, "Kind az-snp-vtpm".
"""

from datetime import datetime
from typing import Final

from hermetic.attestation.abi.azure_hcl import AzureEvidence, ReportType
from hermetic.attestation.abi.snp_json import Certificates
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers.azure_vtpm import check_binding, check_quote, vtpm_claims
from hermetic.attestation.verifiers.snp import check_report
from hermetic.attestation.verifiers.snp_claims import snp_claims
from hermetic.errors import FailedCheck, InvalidRequestError, VerificationError

PARAVISOR_VMPL: Final = 0
"""Only the paravisor asks at this level. A report that the guest itself asked for could bind a key of its own."""


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims (`snp` and `tpm`) of genuine evidence over `report_data` (48 bytes); raises `VerificationError`."""
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known: those checks are then not evaluated.
    """
    # (1) The evidence has the right form.
    try:
        parsed = AzureEvidence.parse(evidence, "vcek")
        if parsed.hcl.report_type != ReportType.SNP:
            raise InvalidRequestError(f"HCL report: expected report type 2 (SNP), got {parsed.hcl.report_type}")
    except InvalidRequestError as error:
        checks.fail("azure.structure", "evidence of kind az-snp-vtpm", error)
        raise VerificationError(checks.failed) from error
    checks.hold("azure.structure")
    # (2) The processor's report is genuine, and the paravisor's.
    hardware = parsed.hcl.hardware_report
    checked = check_report(checks, hardware, Certificates(vceks=(parsed.endorsement,)), trust.snp, time)
    if checked is not None:
        checks.equal("azure.hcl.vmpl", PARAVISOR_VMPL, checked.report.vmpl)
        # (3) It binds the vTPM's key.
        check_binding(checks, parsed, checked.report.report_data)
    # (4) The key quoted for us, now.
    attest = check_quote(checks, parsed, report_data)
    checks.raise_failures(VerificationError)
    if checked is None or attest is None:  # what could not be made has failed: never reached, never claims without it
        raise VerificationError([FailedCheck("azure.structure", "evidence of kind az-snp-vtpm", "another")])
    return Claims(
        kinds=(
            snp_claims(checks, checked.report, checked.generation, checked.certificate),
            vtpm_claims(checks, parsed, attest),
        )
    )
