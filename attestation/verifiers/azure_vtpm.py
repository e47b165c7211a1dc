"""Whether the vTPM of an Azure confidential VM quoted for this report data, by the key that the hardware binds.

For SEV-SNP and TDX alike; the hardware's report itself is theirs (azure_snp.py). Check names:
docs/spec/snp-evidence.md, "Kind az-snp-vtpm".
"""

import hashlib

from hermetic.attestation.abi.azure_hcl import PCRS, USER_DATA_SIZE, AzureEvidence
from hermetic.attestation.abi.tpm import Alg, Attest, Signature
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import TpmClaims
from hermetic.attestation.verifiers import certificates, quote

WITH_USER_DATA = 2  # form of evidence whose variable data repeats the report data


def check_binding(checks: Checks, evidence: AzureEvidence, hardware_report_data: bytes) -> None:
    """Check that the hardware's report (64 bytes of report data) is about the variable data, and so about the key."""
    digest = hashlib.sha256(evidence.hcl.variable_data).digest()
    checks.equal("azure.hcl.binding", digest.ljust(len(hardware_report_data), b"\0"), hardware_report_data)


def check_quote(checks: Checks, evidence: AzureEvidence, report_data: bytes | None) -> Attest | None:
    """Check that the bound key quoted all PCRs for `report_data`; None where the quote does not parse."""
    signature = Signature(Alg.RSASSA, Alg.SHA256, (evidence.signature,)).pack()
    quote.check_signature(checks, evidence.message, signature, evidence.hcl.ak)
    attest = quote.check_attest(checks, evidence.message)
    if report_data is None:
        checks.skip("tpm.quote.nonce", "no report data is wanted")
    elif attest is not None:
        quote.check_nonce(checks, attest, report_data, len(report_data))
    if attest is not None:
        quote.check_pcrs(checks, attest, evidence.pcrs, range(PCRS))
    if evidence.form < WITH_USER_DATA or report_data is None:
        checks.skip("azure.hcl.user_data", "this form has none that is about the report data")
    else:
        checks.equal("azure.hcl.user_data", report_data.ljust(USER_DATA_SIZE, b"\0"), evidence.hcl.user_data)
    return attest


def vtpm_claims(checks: Checks, evidence: AzureEvidence, attest: Attest) -> TpmClaims:
    """The vTPM's claims; it has no endorsement of its own, and is worth what the hardware's report is."""
    return TpmClaims(
        checks=checks.passed,
        software=False,
        enrolled="hardware-report",
        ak_name=None,
        ak_spki=hashlib.sha256(certificates.spki(evidence.hcl.ak)).hexdigest(),
        ek=None,
        reset_count=attest.reset_count,
        restart_count=attest.restart_count,
        firmware_version=f"{attest.firmware_version:016x}",
        clock_safe=attest.safe == 1,
        pcrs={str(index): value.hex() for index, value in enumerate(evidence.pcrs)},
        boot_log=False,
        secure_boot=None,
        measured_code=None,
        log_pcr=None,
        log_base=None,
        manifests=(),
    )
