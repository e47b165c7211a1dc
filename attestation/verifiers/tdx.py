"""Whether TDX evidence is genuine: a quote over this report data, by a platform that Intel vouches for, with its log.

The steps are those of docs/spec/tdx-evidence.md. Whether the domain is one that anybody wants (its measurements, its
attributes, debug, the platform's TCB status) is asked by policies (policy/dcap.py).
"""

from datetime import datetime

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tcg_event_log import EventLog
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.abi.tpm import Alg
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, PlatformClaims, TdxClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import boot_chain, ccel
from hermetic.attestation.verifiers.dcap_evidence import DcapEvidence
from hermetic.attestation.verifiers.dcap_platform import check_platform
from hermetic.errors import InvalidRequestError, VerificationError


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of genuine TDX evidence over `report_data` (64 bytes) at `time`; raises `VerificationError`."""
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known: that check is then not evaluated.
    """
    # (1) The evidence has the right form.
    try:
        parsed = DcapEvidence.parse(evidence)
        report = parsed.report(TdReport)
    except InvalidRequestError as error:
        checks.fail("tdx.structure", "evidence of kind tdx", error)
        raise VerificationError(checks.failed) from error
    checks.hold("tdx.structure")
    # (2) It was made for this exchange.
    check_report_data(checks, "tdx", report_data, report.report_data)
    # (3) Intel vouches for who signed it, and says how the platform stands.
    platform = check_platform(checks, "tdx", parsed.raw, parsed.quote, trust.dcap, time)
    # (4) The log tells the story of exactly these registers.
    if parsed.event_log is None:
        checks.skip("tdx.event_log", "no event log came along")
    else:
        ccel.check_ccel(checks, parsed.event_log, report.rtmrs)
    checks.raise_failures(VerificationError)
    if platform is None:
        raise VerificationError(checks.failed)
    return Claims(kinds=(tdx_claims(checks, parsed.quote, report, parsed.event_log, platform),))


def check_report_data(checks: Checks, kind: str, wanted: bytes | None, got: bytes) -> None:
    """Check `<kind>.report_data`, all 64 bytes; not evaluated where nothing is `wanted`."""
    if wanted is None:
        checks.skip(f"{kind}.report_data", "no report data was given")
    else:
        checks.equal(f"{kind}.report_data", wanted, got)


def tdx_claims(
    checks: Checks, quote: Quote, report: TdReport, log: EventLog | None, platform: PlatformClaims
) -> TdxClaims:
    """What a quote says whose `checks` have all been made."""
    return TdxClaims(
        debug=report.debug,
        checks=checks.passed,
        not_evaluated=checks.not_evaluated,
        quote_version=quote.header.version,
        platform=platform,
        tee_tcb_svn=report.tee_tcb_svn.hex(),
        mr_seam=report.mr_seam.hex(),
        mr_signer_seam=report.mr_signer_seam.hex(),
        seam_attributes=report.seam_attributes.hex(),
        attributes=report.attributes,
        xfam=report.xfam.hex(),
        mr_td=report.mr_td.hex(),
        mr_config_id=report.mr_config_id.hex(),
        mr_owner=report.mr_owner.hex(),
        mr_owner_config=report.mr_owner_config.hex(),
        rtmrs=tuple(value.hex() for value in report.rtmrs),
        mr_service_td=None if report.mr_service_td is None else report.mr_service_td.hex(),
        boot_log=log is not None,
        secure_boot=None if log is None else boot_chain.secure_boot(log, ccel.CONFIGURATION, Alg.SHA384),
        measured_code=None if log is None else ccel.measured_code(log),
    )
