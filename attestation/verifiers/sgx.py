"""Whether SGX evidence is genuine: a quote over this report data, of a platform that Intel vouches for.

Hermetic itself runs in no SGX enclave: this kind lets a broker and a client judge peers that do. The steps are those of
docs/spec/tdx-evidence.md, less the event log.
"""

from datetime import datetime

from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, SgxClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers.dcap_evidence import DcapEvidence
from hermetic.attestation.verifiers.dcap_platform import check_platform
from hermetic.attestation.verifiers.tdx import check_report_data
from hermetic.errors import InvalidRequestError, VerificationError


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of genuine SGX evidence over `report_data` (64 bytes) at `time`; raises `VerificationError`."""
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known: that check is then not evaluated.
    """
    try:
        parsed = DcapEvidence.parse(evidence)
        report = parsed.report(EnclaveReport)
        if parsed.event_log is not None:
            raise InvalidRequestError("evidence: expected no event log of an enclave, got one")
    except InvalidRequestError as error:
        checks.fail("sgx.structure", "evidence of kind sgx", error)
        raise VerificationError(checks.failed) from error
    checks.hold("sgx.structure")
    check_report_data(checks, "sgx", report_data, report.report_data)
    platform = check_platform(checks, "sgx", parsed.raw, parsed.quote, trust.dcap, time)
    checks.raise_failures(VerificationError)
    if platform is None:
        raise VerificationError(checks.failed)
    claims = SgxClaims(
        debug=report.debug,
        checks=checks.passed,
        not_evaluated=checks.not_evaluated,
        quote_version=parsed.quote.header.version,
        platform=platform,
        mr_enclave=report.mr_enclave.hex(),
        mr_signer=report.mr_signer.hex(),
        attributes=report.attributes.hex(),
        misc_select=report.misc_select.hex(),
        config_id=report.config_id.hex(),
        isv_prod_id=report.isv_prod_id,
        isv_svn=report.isv_svn,
    )
    return Claims(kinds=(claims,))
