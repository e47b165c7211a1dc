"""What Intel's collateral says of a platform: its TCB level, and those of the TDX module and the quoting enclave.

The matching is that of Intel's "TDX DCAP" verification: the first level, from the top, that is reached in everything.
That there is one is part of being genuine; whether its status is acceptable is asked by a policy (policy/dcap.py).
"""

from collections.abc import Sequence
from typing import Final

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.dcap_collateral import (
    Collateral,
    IsvLevel,
    PlatformLevel,
    QeIdentity,
    Status,
    TcbInfo,
    TdxModule,
)
from hermetic.attestation.abi.pck import PckExtension
from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import TcbClaims
from hermetic.attestation.verifiers.dcap import Platform

_WITH_CONFIGURATION: Final = frozenset({"ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"})
_UNSPOILT: Final = frozenset({"UpToDate", "SWHardeningNeeded"})


def judge(checks: Checks, kind: str, collateral: Collateral, quote: Quote, platform: Platform) -> TcbClaims | None:
    """Check that platform, module and quoting enclave are ones that Intel lists; what it says of them."""
    qe = _check_qe(checks, f"{kind}.qe", collateral.qe_identity, EnclaveReport.parse(quote.signature.qe_report))
    body = quote.body
    module: IsvLevel | None = None
    if isinstance(body, TdReport):
        module = _check_module(checks, f"{kind}.module", collateral.tcb_info, body)
    level = _platform_level(collateral.tcb_info, platform.pck, body)
    reached = f"PCE {platform.pck.pce_svn}, SGX {platform.pck.components}"
    if isinstance(body, TdReport):
        reached += f", TDX {tuple(body.tee_tcb_svn)}"
    checks.demand(f"{kind}.tcb.level", level is not None, "a listed TCB level that is reached", reached)
    has_module_levels = isinstance(body, TdReport) and body.module_version > 0
    if level is None or qe is None or (module is None and has_module_levels):
        return None
    parts = [one for one in (level, module, qe) if one is not None]
    return TcbClaims(
        status=merged([one.tcbStatus for one in parts]),
        advisories=tuple(sorted({advisory for one in parts for advisory in one.advisoryIDs})),
        platform_status=level.tcbStatus,
        module_status=None if module is None else module.tcbStatus,
        qe_status=qe.tcbStatus,
        date=level.tcbDate,
        evaluation_number=min(
            collateral.tcb_info.tcbEvaluationDataNumber, collateral.qe_identity.tcbEvaluationDataNumber
        ),
        collateral_expires=collateral.expires,
    )


def merged(statuses: Sequence[Status]) -> Status:
    """The status of a whole whose first part is the platform: an old or revoked part spoils it, as with Intel."""
    whole = statuses[0]
    for part in statuses[1:]:
        if "Revoked" in (part, whole):
            whole = "Revoked"
        elif part == "OutOfDate" and whole in _UNSPOILT:
            whole = "OutOfDate"
        elif part == "OutOfDate" and whole in _WITH_CONFIGURATION:
            whole = "OutOfDateConfigurationNeeded"
        elif part not in {"OutOfDate", "UpToDate"} and whole == "UpToDate":
            whole = part
    return whole


def _check_qe(checks: Checks, name: str, identity: QeIdentity, qe: EnclaveReport) -> IsvLevel | None:
    checks.equal(f"{name}.mr_signer", identity.mrsigner, qe.mr_signer.hex())
    checks.equal(f"{name}.prod_id", identity.isvprodid, qe.isv_prod_id)
    _check_masked(checks, f"{name}.misc_select", identity.miscselect, identity.miscselectMask, qe.misc_select)
    _check_masked(checks, f"{name}.attributes", identity.attributes, identity.attributesMask, qe.attributes)
    level = _isv_level(identity.tcbLevels, qe.isv_svn)
    checks.demand(f"{name}.level", level is not None, "a listed level that is reached", f"ISVSVN {qe.isv_svn}")
    return level


def _check_module(checks: Checks, name: str, info: TcbInfo, report: TdReport) -> IsvLevel | None:
    """Check who signed the TDX module; its level, None for modules from before there were several versions."""
    version = report.module_version
    identity: TdxModule | None = info.tdxModule
    levels: tuple[IsvLevel, ...] = ()
    wanted = "the TDX module"
    if version > 0:
        wanted = f"TDX_{version:02X}"
        found = next((one for one in info.tdxModuleIdentities if one.id.upper() == wanted), None)
        identity, levels = found, () if found is None else found.tcbLevels
    checks.demand(f"{name}.identity", identity is not None, "a listed module", wanted)
    if identity is None:
        return None
    checks.equal(f"{name}.mr_signer", identity.mrsigner, report.mr_signer_seam.hex())
    _check_masked(checks, f"{name}.attributes", identity.attributes, identity.attributesMask, report.seam_attributes)
    if version == 0:
        checks.skip(f"{name}.level", "a module of version 0 is judged with the platform")
        return None
    level = _isv_level(levels, report.module_svn)
    checks.demand(f"{name}.level", level is not None, "a listed level that is reached", f"SVN {report.module_svn}")
    return level


def _check_masked(checks: Checks, name: str, wanted: str, mask: str, got: bytes) -> None:
    """Check `got` where `mask` has ones."""
    masked = (int(mask, 16) & int.from_bytes(got, "big")).to_bytes(len(got), "big")
    checks.equal(name, wanted, masked.hex())


def _isv_level(levels: Sequence[IsvLevel], svn: int) -> IsvLevel | None:
    return next((level for level in levels if svn >= level.tcb.isvsvn), None)


def _platform_level(info: TcbInfo, pck: PckExtension, body: TdReport | EnclaveReport) -> PlatformLevel | None:
    return next((level for level in info.tcbLevels if _is_reached(level, pck, body)), None)


def _is_reached(level: PlatformLevel, pck: PckExtension, body: TdReport | EnclaveReport) -> bool:
    wanted = level.tcb
    if pck.pce_svn < wanted.pcesvn or not _all_reached(pck.components, [c.svn for c in wanted.sgxtcbcomponents]):
        return False
    if not isinstance(body, TdReport):
        return True
    if wanted.tdxtcbcomponents is None:
        return False
    # The first two are the module's own SVN and version: judged by its identity where there are several versions.
    first = 2 if body.module_version > 0 else 0
    return _all_reached(body.tee_tcb_svn[first:], [c.svn for c in wanted.tdxtcbcomponents[first:]])


def _all_reached(got: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(one >= least for one, least in zip(got, wanted, strict=True))
