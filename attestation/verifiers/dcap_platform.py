"""All that is judged of the platform below a TDX domain or an SGX enclave (docs/spec/tdx-evidence.md, steps 3 to 6)."""

from collections.abc import Sequence
from datetime import datetime

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.dcap_collateral import Collateral
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import PlatformClaims, TcbClaims
from hermetic.attestation.roots import DcapTrust
from hermetic.attestation.verifiers import dcap_tcb
from hermetic.attestation.verifiers.dcap import PCK_ISSUERS, Platform, check_quote
from hermetic.attestation.verifiers.dcap_chain import common_name
from hermetic.attestation.verifiers.dcap_collateral import check_collateral, choose
from hermetic.attestation.verifiers.dcap_witness import check_witness


def check_platform(
    checks: Checks, kind: str, raw: bytes, quote: Quote, trust: DcapTrust, time: datetime
) -> PlatformClaims | None:
    """Check quote, platform and collateral; what is known of the platform, None where that cannot be read."""
    platform = check_quote(checks, kind, quote, trust.roots, time)
    if platform is None:
        return None
    collateral = choose(checks, kind, trust.collateral, platform)
    tcb = None if collateral is None else _check_tcb(checks, kind, raw, quote, platform, collateral, trust, time)
    if collateral is None:
        _skip(checks, kind, ("tcb.level", "witness"), "no collateral for this platform was given")
    pck = platform.pck
    return PlatformClaims(
        fmspc=pck.fmspc.hex(),
        ppid=pck.ppid.hex(),
        instance_id=None if pck.instance_id is None else pck.instance_id.hex(),
        pck_ca=PCK_ISSUERS.get(common_name(platform.chain[1].subject)),
        cpu_svn=bytes(pck.components).hex(),
        pce_svn=pck.pce_svn,
        configuration=pck.configuration,
        tcb=tcb,
    )


def _check_tcb(
    checks: Checks,
    kind: str,
    raw: bytes,
    quote: Quote,
    platform: Platform,
    collateral: Collateral,
    trust: DcapTrust,
    time: datetime,
) -> TcbClaims | None:
    check_collateral(checks, kind, collateral, platform, trust, time)
    tcb = dcap_tcb.judge(checks, kind, collateral, quote, platform)
    if tcb is None or checks.failed:
        _skip(checks, kind, ("witness",), "refused already")
        return tcb
    # The library knows no grace: what was used in grace has passed our checks, and was in its time at this moment.
    in_time = min([time, *collateral.ends])
    check_witness(checks, kind, raw, quote, platform, collateral, tcb, in_time)
    return tcb


def _skip(checks: Checks, kind: str, names: Sequence[str], why: str) -> None:
    for name in names:
        checks.skip(f"{kind}.{name}", why)
