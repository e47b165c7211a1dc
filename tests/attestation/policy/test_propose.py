"""Forms proposed from recorded evidence: they load, accept what was captured, and refuse what was not."""

from datetime import timedelta

import pytest

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, SampleClaims
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.policy.explain import judge_stored
from hermetic.attestation.policy.propose import propose
from hermetic.attestation.policy.propose.dcap import GRACE
from hermetic.errors import AppraisalError, ConfigurationError, InvalidRequestError

from .captures import CAPTURES, NOW, capture


def form(*names: str) -> AppraisalPolicy:
    return AppraisalPolicy.load(propose([capture(name) for name in names], "proposed", ["fraud-*"], NOW))


def failures(claims: Claims, policy: AppraisalPolicy, later: timedelta = timedelta()) -> set[str]:
    checks = Checks()
    judge_stored(checks, claims, policy, NOW + later)
    return {check.name for check in checks.failed}


@pytest.mark.parametrize("name", CAPTURES)
def test_a_form_from_one_capture_accepts_it_and_no_other(name: str) -> None:
    policy = form(name)
    assert not failures(capture(name), policy)
    for other in CAPTURES:
        if other != name:
            assert failures(capture(other), policy), other


@pytest.mark.parametrize("name", CAPTURES)
def test_a_proposed_form_never_means_anyone(name: str) -> None:
    policy = form(name)
    assert not policy.allow_any_machine
    assert policy.names_machine
    assert policy.hermetic.required


def test_a_form_from_several_captures_accepts_each() -> None:
    names = ("snp-milan", "snp-milan-other", "snp-genoa")
    policy = form(*names)
    assert policy.snp is not None
    assert len(policy.snp.chip_ids) == len(names)
    for name in names:
        assert not failures(capture(name), policy)
    assert {"snp.chip_id", "snp.signed_by"} <= failures(capture("snp-milan-vlek"), policy)


def test_floors_are_the_least_seen() -> None:
    policy = form("snp-milan", "snp-milan-other")
    assert policy.snp is not None
    assert policy.snp.tcb != "any"
    seen = [guest.reported_tcb for name in ("snp-milan", "snp-milan-other") if (guest := capture(name).snp)]
    floors = policy.snp.tcb.accepted["Milan"].reported
    assert floors != "any"
    assert floors.microcode == min(tcb.microcode for tcb in seen)
    guest = capture("snp-milan").snp
    assert guest is not None
    lower = guest.reported_tcb.model_copy(update={"microcode": floors.microcode - 1})
    claims = Claims(kinds=(guest.model_copy(update={"reported_tcb": lower}),))
    assert failures(claims, policy) == {"snp.tcb.reported.microcode"}


def test_a_status_that_is_not_up_to_date_is_accepted_for_a_while() -> None:
    policy, claims = form("tdx-out-of-date"), capture("tdx-out-of-date")
    assert not failures(claims, policy, GRACE - timedelta(seconds=1))
    assert failures(claims, policy, GRACE) == {"tdx.tcb.status", "tdx.tcb.advisories"}


def test_every_field_that_evidence_cannot_settle_says_review() -> None:
    text = propose([capture("snp-and-gpus")], "proposed", ["*"], NOW)
    lines = text.splitlines()
    for field in ("measurement_covers_code", "host_data", "driver_rim", "revocation", "cc_state"):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{field} = "))
        assert lines[at - 1].startswith("# REVIEW: "), field


def test_debug_evidence_sample_and_revoked_platforms_are_refused() -> None:
    tdx, snp = capture("tdx-good").tdx, capture("snp-milan").snp
    assert tdx is not None
    assert snp is not None
    gpus = capture("four-hoppers").nvgpu
    assert gpus is not None
    assert tdx.platform.tcb is not None
    revoked = tdx.platform.model_copy(update={"tcb": tdx.platform.tcb.model_copy(update={"status": "Revoked"})})
    for kind, name in (
        (tdx.model_copy(update={"debug": True}), "tdx.debug"),
        (snp.model_copy(update={"debug": True}), "snp.debug"),
        (SampleClaims(checks=(), svn="1"), "kinds.sample"),
        (tdx.model_copy(update={"platform": revoked}), "tdx.tcb.status"),
        (gpus.model_copy(update={"devices": gpus.devices * 2}), "nvgpu.distinct"),
    ):
        with pytest.raises(AppraisalError) as refused:
            propose([Claims(kinds=(kind,))], "proposed", ["*"], NOW)
        assert {check.name for check in refused.value.failures} == {name}


def test_captures_of_different_kinds_and_none_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the same kinds of evidence in each"):
        propose([capture("snp-milan"), capture("tdx-good")], "proposed", ["*"], NOW)
    with pytest.raises(InvalidRequestError, match="got none"):
        propose([], "proposed", ["*"], NOW)


@pytest.mark.parametrize("name", ['a"\nkinds = ["sample"]', "", "a b", "genuine"])
def test_a_name_cannot_write_lines_of_its_own(name: str) -> None:
    with pytest.raises(ConfigurationError):
        propose([capture("snp-milan")], name, ["*"], NOW)


def test_text_of_evidence_cannot_write_lines_of_its_own() -> None:
    snp = capture("snp-milan-vlek").snp
    assert snp is not None
    hostile = snp.model_copy(update={"csp_id": 'x"]\n[snp.guest_policy]\nsmt = "any"\n#'})
    with pytest.raises(ConfigurationError, match="csp_ids"):
        propose([Claims(kinds=(hostile,))], "proposed", ["*"], NOW)


def test_it_is_the_same_text_each_time() -> None:
    captures = [capture("snp-milan"), capture("snp-genoa")]
    assert propose(captures, "p", ["*"], NOW) == propose(captures, "p", ["*"], NOW)
    assert propose(captures, "p", ["*"], NOW) == propose(captures[::-1], "p", ["*"], NOW)
