"""Rules for TDX domains, SGX enclaves and the platforms below them: each refuses by its own name, and "any" shows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from hermetic.attestation.checks import NOT_EVALUATED, Checks
from hermetic.attestation.claims import PlatformClaims, SgxClaims, TcbClaims, TdxClaims
from hermetic.attestation.policy import GENUINE
from hermetic.attestation.policy.dcap import SgxForm, TcbForm, TdxForm, judge_sgx, judge_tdx

assert GENUINE.tdx is not None
assert GENUINE.sgx is not None
GENUINE_TDX, GENUINE_SGX, GENUINE_TCB = GENUINE.tdx, GENUINE.sgx, GENUINE.tdx.tcb
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE, OTHER = "11" * 48, "22" * 48
PPID, INSTANCE = "aa" * 16, "bb" * 16
TCB = TcbClaims(
    status="UpToDate", advisories=("INTEL-SA-00001",), platform_status="UpToDate", module_status="UpToDate",
    qe_status="UpToDate", date=datetime(2025, 1, 1, tzinfo=UTC), evaluation_number=17,
    collateral_expires=datetime(2025, 8, 1, tzinfo=UTC),
)  # fmt: skip
PLATFORM = PlatformClaims(
    fmspc="00806f050000", ppid=PPID, instance_id=INSTANCE, pck_ca="platform", cpu_svn="00" * 16, pce_svn=11,
    configuration={"smt": True}, tcb=TCB,
)  # fmt: skip
TDX = TdxClaims(
    debug=False, checks=(), not_evaluated=(), quote_version=5, platform=PLATFORM, tee_tcb_svn="04" * 16, mr_seam=ONE,
    mr_signer_seam="00" * 48, seam_attributes="00" * 8, attributes=("SEPT_VE_DISABLE", "PKS"), xfam="00" * 8,
    mr_td=ONE, mr_config_id=ONE, mr_owner=ONE, mr_owner_config=ONE, rtmrs=(ONE, ONE, ONE, ONE),
    mr_service_td="00" * 48, boot_log=False, secure_boot=True, measured_code=None,
)  # fmt: skip
SGX = SgxClaims(
    debug=False, checks=(), not_evaluated=(), quote_version=3, platform=PLATFORM, mr_enclave="11" * 32,
    mr_signer="22" * 32, attributes="00" * 16, misc_select="00" * 4, config_id="00" * 64, isv_prod_id=1, isv_svn=5,
)  # fmt: skip
STRICT_TCB = TcbForm(
    collateral="required", statuses=("UpToDate",), advisories=("INTEL-SA-00001",), evaluation_number=17
)
STRICT_TDX = TdxForm(
    tcb=STRICT_TCB, machines=(PPID,), mr_seam=(ONE,), mr_td=(OTHER, ONE), rtmr0=(ONE,), rtmr1=(ONE,), rtmr2=(ONE,),
    rtmr3=(ONE,), mr_config_id=(ONE,), mr_owner=(ONE,), mr_owner_config=(ONE,), service_td="none",
    sept_ve_disable="required", attributes=("PKS",), configuration=("smt",), root_hashes="any", secure_boot="required",
)  # fmt: skip
STRICT_SGX = SgxForm(
    tcb=STRICT_TCB,
    machines=(INSTANCE,),
    mr_enclave=("11" * 32,),
    mr_signer=("22" * 32,),
    isv_prod_id=1,
    isv_svn=5,
    configuration=("smt",),
    measurement_covers_code=True,
)


def tdx(claims: TdxClaims, form: TdxForm) -> Checks:
    checks = Checks()
    judge_tdx(checks, claims, form, NOW)
    return checks


def sgx(claims: SgxClaims, form: SgxForm) -> Checks:
    checks = Checks()
    judge_sgx(checks, claims, form, NOW)
    return checks


def names(checks: Checks) -> set[str]:
    return {check.name for check in checks.failed}


def test_what_every_rule_wants_is_accepted_and_nothing_left_out() -> None:
    for checks in (tdx(TDX, STRICT_TDX), sgx(SGX, STRICT_SGX)):
        assert not checks.failed
        assert not checks.not_evaluated
    assert len(tdx(TDX, STRICT_TDX).all) == 18


def test_any_is_shown_as_not_evaluated() -> None:
    loose, strict = tdx(TDX, GENUINE_TDX), tdx(TDX, STRICT_TDX)
    assert [check.name for check in loose.all] == [check.name for check in strict.all]
    assert set(loose.passed) == {"tdx.tcb.status"}
    assert set(sgx(SGX, GENUINE_SGX).passed) == {"sgx.tcb.status"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"mr_seam": OTHER}, "tdx.mr_seam"),
        ({"mr_td": "33" * 48}, "tdx.mr_td"),
        ({"mr_config_id": OTHER}, "tdx.mr_config_id"),
        ({"mr_owner": OTHER}, "tdx.mr_owner"),
        ({"mr_owner_config": OTHER}, "tdx.mr_owner_config"),
        *[({"rtmrs": tuple(OTHER if i == n else ONE for i in range(4))}, f"tdx.rtmr{n}") for n in range(4)],
        ({"mr_service_td": OTHER}, "tdx.service_td"),
        ({"mr_service_td": None}, "tdx.service_td"),
        ({"attributes": ("PKS",)}, "tdx.sept_ve_disable"),
        ({"attributes": ("SEPT_VE_DISABLE", "BIT_13")}, "tdx.attributes"),
        ({"attributes": ("SEPT_VE_DISABLE", "MIGRATABLE")}, "tdx.attributes"),
    ],
)
def test_each_rule_refuses_by_its_own_name(change: dict[str, Any], name: str) -> None:
    assert names(tdx(TDX.model_copy(update=change), STRICT_TDX)) == {name}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"mr_enclave": "33" * 32}, "sgx.mr_enclave"),
        ({"mr_signer": "33" * 32}, "sgx.mr_signer"),
        ({"isv_prod_id": 2}, "sgx.isv_prod_id"),
        ({"isv_svn": 4}, "sgx.isv_svn"),
    ],
)
def test_each_rule_for_enclaves_refuses_by_its_own_name(change: dict[str, Any], name: str) -> None:
    assert names(sgx(SGX.model_copy(update=change), STRICT_SGX)) == {name}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"status": "OutOfDate"}, "tcb.status"),
        ({"status": "Revoked"}, "tcb.status"),
        ({"advisories": ("INTEL-SA-00001", "INTEL-SA-2")}, "tcb.advisories"),
        ({"evaluation_number": 16}, "tcb.evaluation_number"),
    ],
)
def test_platforms_are_refused_by_what_stands_against_them(change: dict[str, Any], name: str) -> None:
    platform = PLATFORM.model_copy(update={"tcb": TCB.model_copy(update=change)})
    assert names(tdx(TDX.model_copy(update={"platform": platform}), STRICT_TDX)) == {f"tdx.{name}"}
    assert names(sgx(SGX.model_copy(update={"platform": platform}), STRICT_SGX)) == {f"sgx.{name}"}


def test_without_collateral_a_form_that_requires_it_refuses() -> None:
    claims = TDX.model_copy(update={"platform": PLATFORM.model_copy(update={"tcb": None})})
    assert names(tdx(claims, STRICT_TDX)) == {"tdx.tcb.status", "tdx.tcb.advisories", "tdx.tcb.evaluation_number"}
    checks = tdx(claims, GENUINE_TDX)
    assert not checks.failed
    assert [check.result for check in checks.all if check.name == "tdx.tcb.status"] == [NOT_EVALUATED]


def test_a_machine_is_known_by_its_ppid_or_its_instance() -> None:
    for machine, accepted in ((PPID, True), (INSTANCE, True), ("cc" * 16, False)):
        form = STRICT_TDX.model_copy(update={"machines": (machine,)})
        assert ("tdx.machine" in names(tdx(TDX, form))) != accepted


@pytest.mark.parametrize("field", sorted(TdxForm.model_fields))
def test_no_field_of_a_form_can_be_left_out(field: str) -> None:
    members = STRICT_TDX.model_dump()
    with pytest.raises(ValidationError):
        TdxForm.model_validate({name: value for name, value in members.items() if name != field})


@pytest.mark.parametrize(
    "change",
    [{"statuses": []}, {"statuses": ["Fine"]}, {"statuses": "any"}, {"evaluation_number": -1}, {"more": 1}],
)
def test_forms_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TcbForm.model_validate(GENUINE_TCB.model_dump() | change)
