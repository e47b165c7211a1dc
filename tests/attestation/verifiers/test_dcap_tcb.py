"""Levels: the first that is reached in everything counts, and what an old part makes of the whole."""

from dataclasses import replace
from typing import Any

import pytest

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.dcap_collateral import Collateral, Status
from hermetic.attestation.abi.pck import PckExtension, parse_chain
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import TcbClaims
from hermetic.attestation.verifiers import dcap_tcb
from hermetic.attestation.verifiers.dcap import Platform

from .dcap_quotes import collateral, quote

QUOTE = Quote.parse(quote("tdx/google_90c06f_v5.quote"))
CHAIN = parse_chain(QUOTE.signature.certificates)
PLATFORM = Platform(CHAIN, PckExtension.of(CHAIN[0]))
INFO = next(one for one in collateral("intel-2026-03") if one.tcb_info.fmspc == "90c06f000000")


def judged(
    pck: PckExtension = PLATFORM.pck, body: TdReport | None = None, used: Collateral = INFO
) -> TcbClaims | set[str]:
    checks = Checks()
    made = QUOTE if body is None else replace(QUOTE, body=body)
    claims = dcap_tcb.judge(checks, "tdx", used, made, Platform(CHAIN, pck))
    if claims is None:
        return {check.name for check in checks.failed}
    assert not checks.failed
    return claims


def status(**changes: Any) -> str:
    claims = judged(replace(PLATFORM.pck, **changes))
    assert isinstance(claims, TcbClaims)
    return claims.status


def body(**changes: Any) -> TdReport:
    assert isinstance(QUOTE.body, TdReport)
    return replace(QUOTE.body, **changes)


def svn(index: int, value: int) -> bytes:
    raw = bytearray(body().tee_tcb_svn)
    raw[index] = value
    return bytes(raw)


def test_the_recorded_platform_is_up_to_date() -> None:
    claims = judged()
    assert isinstance(claims, TcbClaims)
    assert (claims.status, claims.module_status, claims.qe_status) == ("UpToDate",) * 3


@pytest.mark.parametrize("index", range(16))
def test_one_component_below_a_level_is_enough_to_miss_it(index: int) -> None:
    wanted = INFO.tcb_info.tcbLevels[0].tcb.sgxtcbcomponents[index].svn
    if wanted == 0:
        return
    components = list(PLATFORM.pck.components)
    components[index] = wanted - 1
    claims = judged(replace(PLATFORM.pck, components=tuple(components)))
    assert claims == {"tdx.tcb.level"} or (isinstance(claims, TcbClaims) and claims.status == "OutOfDate")


def test_the_pce_counts_too_and_zeros_reach_no_level() -> None:
    assert status(pce_svn=INFO.tcb_info.tcbLevels[0].tcb.pcesvn) == "UpToDate"
    assert status(pce_svn=INFO.tcb_info.tcbLevels[0].tcb.pcesvn - 1) == "OutOfDate"
    assert judged(replace(PLATFORM.pck, pce_svn=0)) == {"tdx.tcb.level"}
    assert judged(replace(PLATFORM.pck, components=(0,) * 16)) == {"tdx.tcb.level"}


def test_the_module_is_judged_by_its_own_version() -> None:
    assert body().module_version == 1
    old = judged(body=body(tee_tcb_svn=svn(0, 5)))
    assert isinstance(old, TcbClaims)
    assert (old.status, old.module_status, old.platform_status) == ("OutOfDate", "OutOfDate", "UpToDate")
    assert "INTEL-SA-01036" in old.advisories
    assert judged(body=body(tee_tcb_svn=svn(0, 1))) == {"tdx.module.level"}
    assert judged(body=body(tee_tcb_svn=svn(1, 2))) == {"tdx.module.identity"}
    assert judged(body=body(tee_tcb_svn=svn(2, 0))) == {"tdx.tcb.level"}


def test_a_module_of_another_signer_or_with_attributes_is_refused() -> None:
    checks = Checks()
    made = replace(QUOTE, body=body(mr_signer_seam=b"\1" * 48, seam_attributes=b"\1" + bytes(7)))
    dcap_tcb.judge(checks, "tdx", INFO, made, PLATFORM)
    assert {check.name for check in checks.failed} == {"tdx.module.mr_signer", "tdx.module.attributes"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"mrsigner": "00" * 32}, "tdx.qe.mr_signer"),
        ({"isvprodid": 7}, "tdx.qe.prod_id"),
        ({"miscselect": "00000001"}, "tdx.qe.misc_select"),
        ({"attributes": "12" + "00" * 15}, "tdx.qe.attributes"),
    ],
)
def test_a_quoting_enclave_that_is_another_is_refused(change: dict[str, object], name: str) -> None:
    checks = Checks()
    used = replace(INFO, qe_identity=INFO.qe_identity.model_copy(update=change))
    dcap_tcb.judge(checks, "tdx", used, QUOTE, PLATFORM)
    assert {check.name for check in checks.failed} == {name}


@pytest.mark.parametrize(
    ("platform", "part", "whole"),
    [
        ("UpToDate", "UpToDate", "UpToDate"),
        ("UpToDate", "OutOfDate", "OutOfDate"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "UpToDate", "OutOfDate"),
        ("OutOfDate", "Revoked", "Revoked"),
        ("Revoked", "OutOfDate", "Revoked"),
        ("UpToDate", "SWHardeningNeeded", "SWHardeningNeeded"),
        ("ConfigurationNeeded", "UpToDate", "ConfigurationNeeded"),
    ],
)
def test_an_old_part_spoils_the_whole(platform: Status, part: Status, whole: Status) -> None:
    assert dcap_tcb.merged([platform, part]) == whole
    assert dcap_tcb.merged([platform, "UpToDate", part]) == whole


def test_a_quoting_enclave_below_every_level_is_refused() -> None:
    level = INFO.qe_identity.tcbLevels[0]
    higher = level.model_copy(update={"tcb": level.tcb.model_copy(update={"isvsvn": 0xFFFF})})
    used = replace(INFO, qe_identity=INFO.qe_identity.model_copy(update={"tcbLevels": (higher,)}))
    assert judged(used=used) == {"tdx.qe.level"}
