"""Whether evidence of an Azure TDX VM is genuine: the domain's quote, the key that it binds, the key's quote.

Check names: docs/spec/tdx-evidence.md, "Kind az-tdx-vtpm". The binding is worth what MRTD is: whoever controls a whole
domain can bind a key of his own, so a policy pins the paravisor's MRTD.
"""

from datetime import datetime
from typing import Final

from hermetic.attestation.abi.azure_hcl import AzureEvidence, ReportType
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers.azure_vtpm import check_binding, check_quote, vtpm_claims
from hermetic.attestation.verifiers.dcap_platform import check_platform
from hermetic.attestation.verifiers.tdx import tdx_claims
from hermetic.errors import FailedCheck, InvalidRequestError, VerificationError

TDREPORT_INFO: Final = slice(512, 912)
"""In the TDREPORT that the paravisor keeps: attributes, XFAM, MRTD to RTMR3, as TDINFO_STRUCT has them."""
QUOTED_INFO: Final = slice(120, 520)
"""The same fields in the body of a quote."""


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims (`tdx` and `tpm`) of genuine evidence over `report_data` (48 bytes); raises `VerificationError`."""
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known: those checks are then not evaluated.
    """
    # (1) The evidence has the right form.
    try:
        parsed = AzureEvidence.parse(evidence, "td_quote")
        if parsed.hcl.report_type != ReportType.TDX:
            raise InvalidRequestError(f"HCL report: expected report type 4 (TDX), got {parsed.hcl.report_type}")
        quote = Quote.parse(parsed.endorsement)
        report = quote.body
        if not isinstance(report, TdReport):
            raise InvalidRequestError("td_quote: expected a quote of a TDX domain, got one of an SGX enclave")
    except InvalidRequestError as error:
        checks.fail("azure.structure", "evidence of kind az-tdx-vtpm", error)
        raise VerificationError(checks.failed) from error
    checks.hold("azure.structure")
    # (2) The domain's quote is genuine, and of the domain whose report the paravisor keeps.
    platform = check_platform(checks, "tdx", parsed.endorsement, quote, trust.dcap, time)
    checks.equal("azure.hcl.report", quote.body_bytes[QUOTED_INFO], parsed.hcl.hardware_report[TDREPORT_INFO])
    # (3) It binds the vTPM's key.
    check_binding(checks, parsed, report.report_data)
    # (4) The key quoted for us, now.
    attest = check_quote(checks, parsed, report_data)
    checks.raise_failures(VerificationError)
    if platform is None or attest is None:  # what could not be made has failed: never reached, never claims without it
        raise VerificationError([FailedCheck("azure.structure", "evidence of kind az-tdx-vtpm", "another")])
    return Claims(kinds=(tdx_claims(checks, quote, report, None, platform), vtpm_claims(checks, parsed, attest)))
