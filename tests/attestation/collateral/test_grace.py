"""Grace lengthens the time of the collateral that it names, says so in the claims, and nothing else."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.abi.dcap_collateral import Collateral
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.collateral import Bundle, Windows, vendor_roots
from hermetic.attestation.roots import Grace, SnpTrust, TrustRoots
from hermetic.attestation.verifiers import nvgpu, tdx
from hermetic.errors import ConfigurationError, VerificationError
from tests.attestation import amd
from tests.attestation.collateral.by_hand import FORGED_VCEK, ROWS, VECTORS, whole
from tests.attestation.verifiers.nvgpu_made import BLOCKS, NONCE, NOW, Vendor

DAY = timedelta(days=1)
END = datetime(2026, 4, 15, 22, 6, 9, tzinfo=UTC)  # of the TCB info; identity and PCK list end minutes later
QUOTE: Mapping[str, str] = {"quote": base64.b64encode((VECTORS / "tdx/google_90c06f_v5.quote").read_bytes()).decode()}
BUNDLE = Bundle.load_without_asking_who_signed(whole())
INTEL = "[kinds.tcb-info]\ngrace_days=3\n[kinds.qe-identity]\ngrace_days=3\n"
LISTS = "[kinds.pck-crl]\ngrace_days=3\n"


def windows(text: str = "") -> Windows:
    return Windows.load(f'format = "hermetic-collateral-windows/1"\n{text}')


def judged(time: datetime, text: str) -> Claims:
    return tdx.judge(Checks(), QUOTE, None, BUNDLE.trust(vendor_roots(), windows(text).grace()), time)


def failures(time: datetime, text: str) -> set[str]:
    with pytest.raises(VerificationError) as refused:
        judged(time, text)
    return {failure.name.removeprefix("tdx.collateral.") for failure in refused.value.failures}


def test_without_grace_collateral_ends_when_it_says() -> None:
    claims = judged(END - DAY, "")
    assert claims.tdx is not None
    assert not [name for name in claims.tdx.checks if name.endswith(".grace")]
    assert failures(END + DAY, "") == {"tcb_info.time", "qe_identity.time", "pck_crl.time"}


def test_in_grace_the_claims_name_what_has_ended() -> None:
    claims = judged(END + DAY, INTEL + LISTS)
    assert claims.tdx is not None
    assert claims.tdx.platform.tcb is not None
    assert claims.tdx.platform.tcb.status == "UpToDate"
    assert {name.removeprefix("tdx.collateral.") for name in claims.tdx.checks if name.endswith(".grace")} == {
        "tcb_info.time.grace", "qe_identity.time.grace", "pck_crl.time.grace",
    }  # fmt: skip
    assert "tdx.witness" in claims.tdx.checks  # asked as of the last moment at which all was in its time


def test_a_list_of_another_ca_that_has_ended_stops_no_platform() -> None:
    other = Collateral.parse((VECTORS / "sgx/phala_00a067_v3.collateral.json").read_bytes())  # ended in 2025
    trust = BUNDLE.trust(vendor_roots())
    both = tuple(replace(one, pck_crls=(*other.pck_crls, *one.pck_crls)) for one in trust.dcap.collateral)
    claims = tdx.judge(Checks(), QUOTE, None, replace(trust, dcap=replace(trust.dcap, collateral=both)), END - DAY)
    assert claims.tdx is not None
    assert "tdx.witness" in claims.tdx.checks
    assert claims.tdx.platform == judged(END - DAY, "").tdx.platform  # type: ignore[union-attr]


def test_lists_of_what_was_taken_back_have_no_grace_that_is_not_their_own() -> None:
    assert failures(END + DAY, "grace_days = 90") == {"pck_crl.time"}
    assert failures(END + DAY, INTEL) == {"pck_crl.time"}
    assert failures(END + DAY, LISTS) == {"tcb_info.time", "qe_identity.time"}


def test_grace_ends_by_itself_to_the_second() -> None:
    late = END + 3 * DAY
    judged(late, INTEL + LISTS)
    assert failures(late + timedelta(seconds=1), INTEL + LISTS) == {"tcb_info.time"}


def test_a_bundle_for_a_whole_site_gives_nothing_for_vendors_that_are_not_believed() -> None:
    shipped = vendor_roots()
    intel_alone = TrustRoots(dcap=shipped.dcap)
    found = BUNDLE.trust(intel_alone)
    assert len(found.dcap.collateral) == 1
    assert (found.snp, found.nvgpu) == (intel_alone.snp, intel_alone.nvgpu)
    assert BUNDLE.trust(TrustRoots()) == TrustRoots()
    forged = Bundle.load_without_asking_who_signed(whole([*ROWS[:6], FORGED_VCEK]))
    with pytest.raises(VerificationError, match=r"item\.vouched"):  # what is not used is vouched for all the same
        forged.trust(intel_alone)


def test_before_its_time_nothing_has_grace() -> None:
    assert "tcb_info.time" in failures(datetime(2026, 3, 16, tzinfo=UTC), INTEL + LISTS)


def test_a_platform_s_own_certificate_has_no_grace() -> None:
    late = datetime(2035, 1, 1, tzinfo=UTC)
    assert "tdx.pck.time" in failures(late, "grace_days = 90")


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_keys_that_sign_evidence_have_no_grace_to_write(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="a key that signs evidence"):
        windows(f"[kinds.{kind}]\ngrace_days = 1\n")
    assert "vcek" not in windows("grace_days = 9").grace().periods


def test_amd_s_list_in_its_grace() -> None:
    vendor, chip = amd.Vendor(Generation.MILAN), amd.chip_id("one")
    tcb = amd.tcb_of(Generation.MILAN)
    evidence = amd.evidence(amd.sign(amd.report(), amd.signing_key(chip)), vceks=(vendor.vcek(chip, tcb),))
    crl = vendor.crl(start=amd.START, end=amd.START + 30 * DAY)
    time = amd.START + 31 * DAY
    roots = TrustRoots(snp=SnpTrust((vendor.authorities(),), crls=(crl,)))
    with pytest.raises(VerificationError, match=r"^snp\.crl\.time: "):
        verifiers.snp.judge(Checks(), evidence, None, roots, time)
    graced = replace(roots, snp=replace(roots.snp, grace=Grace({"amd-crl": 2 * DAY})))
    claims = verifiers.snp.judge(Checks(), evidence, None, graced, time)
    assert claims.snp is not None
    assert "snp.crl.time.grace" in claims.snp.checks
    with pytest.raises(VerificationError, match=r"^snp\.crl\.time: "):
        verifiers.snp.judge(Checks(), evidence, None, graced, time + 2 * DAY)
    revoked = replace(
        graced, snp=replace(graced.snp, crls=(vendor.crl("ask", start=amd.START, end=amd.START + 30 * DAY),))
    )
    with pytest.raises(VerificationError, match=r"snp\.chain\.revoked"):  # what it took back stays taken back
        verifiers.snp.judge(Checks(), evidence, None, revoked, time)


def nvidia(kinds: Mapping[str, timedelta], time: datetime) -> Any:
    vendor, chip = _vendor()
    rims = [vendor.rim("580.159.03", {0: [BLOCKS[1]]})]
    answers = [*chip.answers(), *(vendor.answer(one, by) for one, by in _signers(vendor))]
    roots = TrustRoots(nvgpu=replace(vendor.trust(*rims, answers=answers), grace=Grace(kinds)))
    evidence = {"device_evidence_list": [chip.report()]}
    claims = nvgpu.judge(Checks(), evidence, NONCE, roots, time).nvgpu
    assert claims is not None
    return claims


def _vendor() -> tuple[Vendor, Any]:
    vendor = Vendor()
    return vendor, vendor.chip()


def _signers(vendor: Vendor) -> list[tuple[Any, Any]]:
    return [(vendor.rim_signer, vendor.rim_ca), (vendor.rim_ca, vendor.rim_root)]


def test_ocsp_answers_in_their_grace() -> None:
    time = NOW + 2 * DAY  # answers end after one day
    with pytest.raises(VerificationError, match="in its time"):
        nvidia({"driver-rim": 9 * DAY}, time)
    claims = nvidia({"ocsp": 2 * DAY}, time)
    assert "nvgpu.0.revocation.grace" in claims.checks
    with pytest.raises(VerificationError, match="in its time"):
        nvidia({"ocsp": DAY / 2}, time)


def test_grace_names_one_moment_for_one_kind() -> None:
    grace = Grace({"ocsp": DAY})
    assert grace.judged_at("ocsp", NOW, NOW) == NOW
    assert grace.judged_at("ocsp", NOW, NOW + DAY) == NOW
    assert grace.judged_at("ocsp", NOW, NOW + DAY * 1.01) == NOW + DAY * 1.01
    assert grace.judged_at("amd-crl", NOW, NOW + DAY) == NOW + DAY
