"""The refusal matrix: for each rule of each kind's table, claims that fail it, by its name and by no other.

The forms are the strict ones of the vectors, which write a value everywhere; `ROWS` names every rule that they have.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hermetic.attestation.checks import FAIL, NOT_EVALUATED, Checks
from hermetic.attestation.claims import (
    Claims,
    HermeticClaims,
    KindClaims,
    MeasuredCode,
    NvGpuClaims,
    NvidiaDevice,
    PlatformClaims,
    SgxClaims,
    SnpClaims,
    SnpTcb,
    TcbClaims,
    TdxClaims,
)
from hermetic.attestation.policy import AppraisalPolicy, appraise, judge
from hermetic.errors import AppraisalError, ConfigurationError

FORMS = Path(__file__).parents[2] / "vectors" / "appraisal-policy"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
UNTIL = datetime(2027, 1, 31, tzinfo=UTC)
ELSE = "ee"


class Row(NamedTuple):
    """A change of good claims, and the one rule that it breaks."""

    kind: str
    rule: str
    change: Callable[[Any], Any]
    what: str = ""


def strict(name: str) -> AppraisalPolicy:
    return AppraisalPolicy.load((FORMS / f"{name}.toml").read_bytes())


HERMETIC = HermeticClaims(
    profile="production", manifest_digest="9" * 64, waivers=(), trusted_publishers="a" * 64, zeroing="enforced"
)
SVNS = SnpTcb(bootloader=10, tee=1, snp=27, microcode=84)
SNP = SnpClaims(
    debug=False, checks=(), not_evaluated=(), version=5, generation="Genoa", signed_by="VCEK", chip_id="c1" * 64,
    csp_id=None, endorsement="0" * 64, measurement="11" * 48, host_data="22" * 32, id_key_digest="33" * 48,
    author_key_digest="44" * 48, family_id="55" * 16, image_id="66" * 16, guest_svn=7, vmpl=0, report_id="77" * 32,
    migration_agent=None, abi="1.55",
    policy=("single-socket", "mem-aes-256-xts", "rapl-dis", "ciphertext-hiding", "page-swap-disable"),
    platform=("tsme", "ecc", "rapl-dis", "ciphertext-hiding", "alias-check-complete"), reported_tcb=SVNS,
    current_tcb=SVNS, committed_tcb=SVNS, launch_tcb=SVNS, firmware="1.55.1", committed_firmware="1.55.1",
    launch_mitigations="000000000000000b", current_mitigations="000000000000000f",
)  # fmt: skip
TCB = TcbClaims(
    status="UpToDate", advisories=("INTEL-SA-00289",), platform_status="UpToDate", module_status="UpToDate",
    qe_status="UpToDate", date=datetime(2026, 1, 1, tzinfo=UTC), evaluation_number=17,
    collateral_expires=datetime(2027, 8, 1, tzinfo=UTC),
)  # fmt: skip
PLATFORM = PlatformClaims(
    fmspc="00806f050000", ppid="aa" * 16, instance_id="bb" * 16, pck_ca="platform", cpu_svn="00" * 16, pce_svn=11,
    configuration={"smt": True, "cached-keys": False}, tcb=TCB,
)  # fmt: skip
TDX = TdxClaims(
    debug=False, checks=(), not_evaluated=(), quote_version=5, platform=PLATFORM, tee_tcb_svn="04" * 16,
    mr_seam="11" * 48, mr_signer_seam="00" * 48, seam_attributes="00" * 8, attributes=("SEPT_VE_DISABLE", "PKS"),
    xfam="00" * 8, mr_td="12" * 48, mr_config_id="17" * 48, mr_owner="18" * 48, mr_owner_config="19" * 48,
    rtmrs=("13" * 48, "14" * 48, "15" * 48, "16" * 48), mr_service_td="00" * 48, boot_log=True, secure_boot=True,
    measured_code=MeasuredCode(by="verity-command-line", root_hashes=("d" * 64,), rests_on=(0, 1, 2)),
)  # fmt: skip
SGX = SgxClaims(
    debug=False, checks=(), not_evaluated=(), quote_version=3, platform=PLATFORM, mr_enclave="11" * 32,
    mr_signer="12" * 32, attributes="00" * 16, misc_select="00" * 4, config_id="00" * 64, isv_prod_id=1, isv_svn=5,
)  # fmt: skip
GPU = NvidiaDevice(
    arch="HOPPER", device="1" * 64, ueid="1", driver_version="570.124.06", vbios_version="96.00.A5.00.01",
    mode="protected-pcie", driver_rim="match", vbios_rim="match", revocation="good",
)  # fmt: skip
OTHER_GPU = GPU.model_copy(update={"device": "2" * 64, "ueid": "2"})
SWITCH = NvidiaDevice(
    arch="LS10", device="3" * 64, ueid="3", driver_version=None, vbios_version="96.10.55.00.0A", mode=None,
    driver_rim="not evaluated", vbios_rim="match", revocation="good",
)  # fmt: skip
NVGPU = NvGpuClaims(checks=(), not_evaluated=(), devices=(GPU, OTHER_GPU, SWITCH), cc_state="stated", topology="match")


def claims_of(*kinds: KindClaims) -> Claims:
    return Claims(kinds=kinds, hermetic=HERMETIC, client="spiffe://bank/gpu-7")


GOOD = {
    "snp": (strict("snp"), claims_of(SNP)),
    "tdx": (strict("tdx"), claims_of(TDX)),
    "sgx": (strict("sgx"), claims_of(SGX)),
    "nvgpu": (strict("snp-and-gpus"), claims_of(SNP, NVGPU)),
}


def but(**changes: Any) -> Callable[[Any], Any]:
    """The same claims with these members changed."""
    return lambda claims: claims.model_copy(update=changes)


def platform(**changes: Any) -> Callable[[Any], Any]:
    return but(platform=PLATFORM.model_copy(update=changes))


def tcb(**changes: Any) -> Callable[[Any], Any]:
    return platform(tcb=TCB.model_copy(update=changes))


def gpu(**changes: Any) -> Callable[[Any], Any]:
    return but(devices=(GPU, OTHER_GPU.model_copy(update=changes), SWITCH))


def switch(**changes: Any) -> Callable[[Any], Any]:
    return but(devices=(GPU, OTHER_GPU, SWITCH.model_copy(update=changes)))


def without(flags: tuple[str, ...], flag: str) -> tuple[str, ...]:
    return tuple(one for one in flags if one != flag)


def snp_rows() -> Iterator[Row]:
    yield Row("snp", "snp.debug", but(debug=True))
    yield Row("snp", "snp.chip_id", but(chip_id=ELSE * 64), "another chip")
    yield Row("snp", "snp.chip_id", but(chip_id=None), "a masked chip")
    yield Row("snp", "snp.signed_by", but(signed_by="VLEK", csp_id="provider.example"))
    yield Row("snp", "snp.measurement", but(measurement=ELSE * 48))
    yield Row("snp", "snp.host_data", but(host_data=ELSE * 32))
    yield Row("snp", "snp.id_key_digest", but(id_key_digest=ELSE * 48), "another key")
    yield Row("snp", "snp.id_key_digest", but(id_key_digest="00" * 48), "no ID block")
    yield Row("snp", "snp.author_key_digest", but(author_key_digest=ELSE * 48), "another key")
    yield Row("snp", "snp.author_key_digest", but(author_key_digest=None), "no key")
    yield Row("snp", "snp.family_id", but(family_id=ELSE * 16))
    yield Row("snp", "snp.image_id", but(image_id=ELSE * 16))
    yield Row("snp", "snp.guest_svn", but(guest_svn=6))
    yield Row("snp", "snp.vmpl", but(vmpl=1))
    yield Row("snp", "snp.migration_agent", but(migration_agent=ELSE * 32))
    yield Row("snp", "snp.abi", but(abi="1.54"), "an older minor")
    yield Row("snp", "snp.abi", but(abi="0.99"), "an older major")
    yield Row("snp", "snp.mitigations", but(current_mitigations="0000000000000003"), "a bit missing")
    yield Row("snp", "snp.mitigations", but(current_mitigations=None), "an older report")
    for flag in ("smt", "migrate-ma", "cxl-allow"):
        yield Row("snp", f"snp.guest_policy.{flag.replace('-', '_')}", but(policy=(*SNP.policy, flag)))
    for flag in SNP.policy:
        yield Row("snp", f"snp.guest_policy.{flag.replace('-', '_')}", but(policy=without(SNP.policy, flag)))
    for flag in ("smt", "tio"):
        yield Row("snp", f"snp.platform.{flag}", but(platform=(*SNP.platform, flag)))
    for flag in SNP.platform:
        yield Row("snp", f"snp.platform.{flag.replace('-', '_')}", but(platform=without(SNP.platform, flag)))
    yield Row("snp", "snp.generation", but(generation="Milan"))
    for moment in ("reported", "current", "committed", "launch"):
        for component in ("bootloader", "tee", "snp", "microcode"):
            lower = SVNS.model_copy(update={component: getattr(SVNS, component) - 1})
            yield Row("snp", f"snp.tcb.{moment}.{component}", but(**{f"{moment}_tcb": lower}))


def platform_rows(kind: str) -> Iterator[Row]:
    yield Row(kind, f"{kind}.debug", but(debug=True))
    yield Row(kind, f"{kind}.machine", platform(ppid=ELSE * 16), "another platform")
    yield Row(kind, f"{kind}.configuration", platform(configuration={"smt": True, "cached-keys": True}))
    yield Row(kind, f"{kind}.tcb.status", tcb(status="Revoked"))
    yield Row(kind, f"{kind}.tcb.status", tcb(status="ConfigurationNeeded"), "not listed")
    yield Row(kind, f"{kind}.tcb.advisories", tcb(advisories=("INTEL-SA-00289", "INTEL-SA-00960")))
    yield Row(kind, f"{kind}.tcb.evaluation_number", tcb(evaluation_number=16))


def tdx_rows() -> Iterator[Row]:
    for name in ("mr_seam", "mr_td", "mr_config_id", "mr_owner", "mr_owner_config"):
        yield Row("tdx", f"tdx.{name}", but(**{name: ELSE * 48}))
    for index in range(4):
        rtmrs = tuple(ELSE * 48 if at == index else value for at, value in enumerate(TDX.rtmrs))
        yield Row("tdx", f"tdx.rtmr{index}", but(rtmrs=rtmrs))
    yield Row("tdx", "tdx.service_td", but(mr_service_td=ELSE * 48), "a service domain")
    yield Row("tdx", "tdx.service_td", but(mr_service_td=None), "a report that does not say")
    yield Row("tdx", "tdx.sept_ve_disable", but(attributes=("PKS",)))
    yield Row("tdx", "tdx.attributes", but(attributes=("SEPT_VE_DISABLE", "MIGRATABLE")), "a known one")
    yield Row("tdx", "tdx.attributes", but(attributes=("SEPT_VE_DISABLE", "BIT_13")), "a reserved one")
    yield Row("tdx", "tdx.secure_boot", but(secure_boot=False), "off")
    yield Row("tdx", "tdx.secure_boot", but(secure_boot=None), "unsaid")
    yield Row("tdx", "tdx.code_measured", but(measured_code=None))
    other = MeasuredCode(by="verity-command-line", root_hashes=("f" * 64,), rests_on=(0, 1, 2))
    yield Row("tdx", "tdx.root_hashes", but(measured_code=other), "another root")
    bare = MeasuredCode(by="verity-command-line", rests_on=(0, 1, 2))
    yield Row("tdx", "tdx.root_hashes", but(measured_code=bare), "no root")


def sgx_rows() -> Iterator[Row]:
    yield Row("sgx", "sgx.mr_enclave", but(mr_enclave=ELSE * 32))
    yield Row("sgx", "sgx.mr_signer", but(mr_signer=ELSE * 32))
    yield Row("sgx", "sgx.isv_prod_id", but(isv_prod_id=2))
    yield Row("sgx", "sgx.isv_svn", but(isv_svn=4))


def nvgpu_rows() -> Iterator[Row]:
    yield Row("nvgpu", "nvgpu.debug", but(debug=True))
    yield Row("nvgpu", "nvgpu.gpus", but(devices=(GPU, SWITCH)), "one missing")
    yield Row("nvgpu", "nvgpu.gpus", but(devices=(GPU, OTHER_GPU, OTHER_GPU, SWITCH)), "one too many")
    yield Row("nvgpu", "nvgpu.switches", but(devices=(GPU, OTHER_GPU)), "none")
    yield Row("nvgpu", "nvgpu.devices", gpu(device="f" * 64), "another GPU")
    yield Row("nvgpu", "nvgpu.devices", switch(device="f" * 64), "another switch")
    yield Row("nvgpu", "nvgpu.arch", gpu(arch="BLACKWELL"))
    yield Row("nvgpu", "nvgpu.driver", gpu(driver_version="570.86.15"), "an older one")
    yield Row("nvgpu", "nvgpu.driver", gpu(driver_version="570.124"), "a shorter one")
    yield Row("nvgpu", "nvgpu.driver", gpu(driver_version=None), "none said")
    yield Row("nvgpu", "nvgpu.driver", gpu(driver_version="999.0-beta"), "one that is no number")
    yield Row("nvgpu", "nvgpu.vbios", gpu(vbios_version="96.00.A5.00.02"), "not in the list")
    yield Row("nvgpu", "nvgpu.vbios", switch(vbios_version="96.10.55.00.09"), "an older one")
    yield Row("nvgpu", "nvgpu.driver_rim", gpu(driver_rim="not evaluated"))
    yield Row("nvgpu", "nvgpu.vbios_rim", gpu(vbios_rim="not evaluated"), "of a GPU")
    yield Row("nvgpu", "nvgpu.vbios_rim", switch(vbios_rim="not evaluated"), "of a switch")
    yield Row("nvgpu", "nvgpu.revocation", gpu(revocation="hold"), "on hold")
    yield Row("nvgpu", "nvgpu.revocation", gpu(revocation="not evaluated"), "unknown")
    yield Row("nvgpu", "nvgpu.cc_state", but(cc_state="not evaluated"))
    yield Row("nvgpu", "nvgpu.mode", gpu(mode="single"), "another")
    yield Row("nvgpu", "nvgpu.mode", gpu(mode=None), "unsaid")
    yield Row("nvgpu", "nvgpu.topology", but(topology="not evaluated"))


ROWS = [*snp_rows(), *platform_rows("tdx"), *tdx_rows(), *platform_rows("sgx"), *sgx_rows(), *nvgpu_rows()]


def failures(claims: Claims, policy: AppraisalPolicy, time: datetime = NOW) -> set[str]:
    checks = Checks()
    judge(checks, claims, policy, time)
    return {check.name for check in checks.failed}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.rule} {row.what}".strip())
def test_each_rule_refuses_alone(row: Row) -> None:
    policy, good = GOOD[row.kind]
    kinds = tuple(row.change(one) if one.kind == row.kind else one for one in good.kinds)
    bad = good.model_copy(update={"kinds": kinds})
    with pytest.raises(AppraisalError) as refused:
        appraise(bad, policy, NOW)
    (failed,) = refused.value.failures
    assert failed.name == row.rule
    assert failed.wanted
    assert failed.got


@pytest.mark.parametrize("kind", GOOD)
def test_strict_forms_pass_good_claims_and_every_rule_of_theirs_has_a_row(kind: str) -> None:
    policy, good = GOOD[kind]
    checks = Checks()
    judge(checks, good, policy, NOW)
    assert not checks.failed
    own = {check for check in checks.all if check.name.startswith(f"{kind}.")}
    # Of a VCEK nobody asks whose VLEK it is; a launch digest measures the code where its form says so.
    elsewhere = {"snp.csp_id", "snp.code_measured", "sgx.code_measured", "tdx.code_pinned"}
    assert {check.name for check in own if check.result == NOT_EVALUATED} <= elsewhere
    shown = {row.rule for row in ROWS if row.kind == kind}
    assert {check.name for check in own} - elsewhere == shown


class TestRulesThatNeedAnotherForm:
    def test_a_vlek_is_one_of_the_named_providers(self) -> None:
        policy, good = GOOD["snp"]
        assert policy.snp is not None
        form = policy.model_copy(update={"snp": policy.snp.model_copy(update={"signed_by": "any"})})
        ours = SNP.model_copy(update={"signed_by": "VLEK", "csp_id": "provider.example"})
        assert failures(good.model_copy(update={"kinds": (ours,)}), form) == set()
        for csp in ("elsewhere.example", None):
            theirs = ours.model_copy(update={"csp_id": csp})
            assert failures(good.model_copy(update={"kinds": (theirs,)}), form) == {"snp.csp_id"}

    def test_turin_has_floors_of_its_own_with_fmc(self) -> None:
        policy, good = GOOD["snp"]
        svns = SnpTcb(bootloader=1, tee=1, snp=4, microcode=80, fmc=1)
        turin = SNP.model_copy(update={"generation": "Turin", **dict.fromkeys(
            ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"), svns)})  # fmt: skip
        assert failures(good.model_copy(update={"kinds": (turin,)}), policy) == set()
        lower = turin.model_copy(update={"committed_tcb": svns.model_copy(update={"fmc": 0})})
        assert failures(good.model_copy(update={"kinds": (lower,)}), policy) == {"snp.tcb.committed.fmc"}
        # Its form leaves the launch TCB open.
        freely = turin.model_copy(update={"launch_tcb": svns.model_copy(update={"fmc": 0, "microcode": 0})})
        assert failures(good.model_copy(update={"kinds": (freely,)}), policy) == set()

    def test_a_chain_whose_registers_are_not_all_pinned_measures_nothing(self) -> None:
        policy, good = GOOD["tdx"]
        assert policy.tdx is not None
        for register in ("mr_td", "rtmr0", "rtmr1", "rtmr2"):
            loose = policy.model_copy(update={"tdx": policy.tdx.model_copy(update={register: "any"})})
            assert failures(good, loose) == {"tdx.code_pinned"}

    def test_without_collateral_a_form_that_requires_it_refuses_by_each_rule(self) -> None:
        for kind, name in ((TDX, "tdx"), (SGX, "sgx")):
            policy, good = GOOD[name]
            bare = kind.model_copy(update={"platform": PLATFORM.model_copy(update={"tcb": None})})
            wanted = {f"{name}.tcb.{rule}" for rule in ("status", "advisories", "evaluation_number")}
            assert failures(good.model_copy(update={"kinds": (bare,)}), policy) == wanted


class TestExpiry:
    @pytest.mark.parametrize("kind", ["tdx", "sgx"])
    @pytest.mark.parametrize(
        ("changes", "rule", "what"),
        [
            ({"status": "OutOfDate"}, "status", "OutOfDate"),
            ({"advisories": ("INTEL-SA-00615",)}, "advisories", "INTEL-SA-00615"),
        ],
    )
    def test_accepted_with_a_warning_till_then_and_refused_by_name_after(
        self, kind: str, changes: dict[str, Any], rule: str, what: str
    ) -> None:
        policy, good = GOOD[kind]
        claims = good.model_copy(update={"kinds": (tcb(**changes)(good.kinds[0]),)})
        assert f"{kind}: {what} accepted until 2027-01-31T00:00:00Z" in appraise(claims, policy, NOW).warnings
        for late in (UNTIL, datetime(2030, 1, 1, tzinfo=UTC)):
            with pytest.raises(AppraisalError) as refused:
                appraise(claims, policy, late)
            (failed,) = refused.value.failures
            assert failed.name == f"{kind}.tcb.{rule}"
            assert f"{what} until 2027-01-31T00:00:00Z" in failed.wanted
            assert what in failed.got

    def test_what_is_accepted_anyway_lapses_never_and_warns_of_nothing(self) -> None:
        policy, good = GOOD["tdx"]
        assert not appraise(good, policy, datetime(2040, 1, 1, tzinfo=UTC)).warnings

    @pytest.mark.parametrize("time", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
    def test_a_time_that_utc_does_not_have_is_refused(self, time: str) -> None:
        text = (FORMS / "tdx.toml").read_text().replace("2027-01-31T00:00:00Z", time)
        with pytest.raises(ConfigurationError, match="between the years 1 and 9999"):
            AppraisalPolicy.load(text)

    def test_the_time_zone_of_the_file_does_not_change_the_digest(self) -> None:
        text = (FORMS / "tdx.toml").read_text()
        other = text.replace("2027-01-31T00:00:00Z", "2027-01-31T01:00:00+01:00")
        assert AppraisalPolicy.load(other).digest() == AppraisalPolicy.load(text).digest()
        assert AppraisalPolicy.load(text.replace("2027-01-31T", "2027-02-01T")).digest() != strict("tdx").digest()


class TestTogether:
    def test_a_missing_kind_and_a_kind_too_many_are_refused(self) -> None:
        policy, good = GOOD["nvgpu"]
        assert failures(good.model_copy(update={"kinds": (SNP,)}), policy) == {"kinds.nvgpu"}
        assert failures(good.joined(Claims(kinds=(SGX,))), policy) == {"kinds"}

    def test_a_second_piece_of_one_kind_is_refused_in_either_place(self) -> None:
        policy, good = GOOD["snp"]
        foreign = SNP.model_copy(update={"chip_id": ELSE * 64, "measurement": ELSE * 48})
        assert failures(good.joined(Claims(kinds=(foreign,))), policy) == {"kinds.distinct"}
        first = Claims(kinds=(foreign,), hermetic=HERMETIC).joined(good)
        assert "kinds.distinct" in failures(first, policy)

    def test_debug_is_refused_of_a_kind_that_the_form_does_not_even_name(self) -> None:
        policy, good = GOOD["snp"]
        assert failures(good.joined(Claims(kinds=(TDX.model_copy(update={"debug": True}),))), policy) == {
            "kinds", "tdx.debug"
        }  # fmt: skip

    def test_one_kind_that_measures_the_code_is_enough(self) -> None:
        tdx, sgx = strict("tdx"), strict("sgx")
        both = tdx.model_copy(update={"kinds": ("tdx", "sgx"), "sgx": sgx.sgx})
        unmeasured = TDX.model_copy(update={"measured_code": None})
        claims = claims_of(unmeasured, SGX)
        # The enclave's digest covers the code; root hashes that are written are demanded all the same.
        assert failures(claims, both) == {"tdx.root_hashes"}
        assert tdx.tdx is not None
        rootless = both.model_copy(update={"tdx": tdx.tdx.model_copy(update={"root_hashes": "any"})})
        assert failures(claims, rootless) == set()
        checks = Checks()
        judge(checks, claims, rootless, NOW)
        assert FAIL not in {check.result for check in checks.all}
        assert "tdx.code_measured" in checks.not_evaluated


def test_what_nobody_knows_is_a_warning() -> None:
    policy, good = GOOD["tdx"]
    assert policy.tdx is not None
    lenient = policy.tdx.tcb.model_copy(update={"collateral": "if-given"})
    form = policy.model_copy(update={"tdx": policy.tdx.model_copy(update={"tcb": lenient})})
    claims = good.model_copy(update={"kinds": (platform(tcb=None)(TDX),)})
    assert "tdx: TCB status unknown" in appraise(claims, form, NOW).warnings
    policy, good = GOOD["nvgpu"]
    assert policy.nvgpu is not None
    form = policy.model_copy(update={"nvgpu": policy.nvgpu.model_copy(update={"cc_state": "any"})})
    claims = good.model_copy(update={"kinds": (SNP, but(cc_state="not evaluated")(NVGPU))})
    assert "nvgpu: DEVTOOLS unknown" in appraise(claims, form, NOW).warnings
