"""Claims of two kinds from one machine: a vTPM is worth what the processor's report that binds its key is worth."""

from datetime import UTC, datetime
from typing import Any

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, HermeticClaims, TpmClaims
from hermetic.attestation.policy import AppraisalPolicy, judge
from hermetic.attestation.policy.propose import propose

from .captures import capture

NOW = datetime(2026, 11, 23, tzinfo=UTC)
HERMETIC = HermeticClaims(profile="production", manifest_digest="9" * 64, waivers=(), zeroing="enforced")
CLAIMS = capture("azure-snp").model_copy(update={"hermetic": HERMETIC, "client": "spiffe://bank/gpu-7"})
FORM = AppraisalPolicy.load(propose([capture("azure-snp")], "azure", ["*"], NOW))


def judged(claims: Claims, form: AppraisalPolicy = FORM) -> Checks:
    checks = Checks()
    judge(checks, claims, form, NOW)
    return checks


def failures(claims: Claims, form: AppraisalPolicy = FORM) -> set[str]:
    return {check.name for check in judged(claims, form).failed}


def vtpm(**changes: Any) -> Claims:
    assert CLAIMS.tpm is not None
    kinds = tuple(one.model_copy(update=changes) if isinstance(one, TpmClaims) else one for one in CLAIMS.kinds)
    return CLAIMS.model_copy(update={"kinds": kinds})


def test_the_recorded_machine_is_accepted_and_what_binds_its_manifest_is_said() -> None:
    checks = judged(CLAIMS)
    assert not checks.failed
    assert {"tpm.enrolled", "snp.measurement", "snp.chip_id"} <= set(checks.passed)
    assert "tpm.manifests" in checks.not_evaluated


def test_a_key_that_only_hardware_vouches_for_needs_a_form_that_demands_the_hardware() -> None:
    alone = FORM.model_copy(update={"kinds": ("tpm",), "snp": None})
    assert failures(CLAIMS, alone) == {"kinds", "tpm.enrolled"}


def test_a_provisioned_key_is_no_vtpm_s() -> None:
    assert failures(vtpm(enrolled="provisioned")) == {"tpm.enrolled", "tpm.manifests"}


def test_only_a_vtpm_without_a_log_may_have_no_manifests() -> None:
    # One that carries our log is held to it.
    assert failures(vtpm(log_pcr=14, log_base="0" * 64)) == {"tpm.manifests"}
    assert failures(vtpm(enrolled="certificate")) == {"tpm.manifests"}


def test_a_bare_report_beside_azure_s_does_not_escape() -> None:
    own = capture("snp-milan")
    assert failures(CLAIMS.joined(own)) == {"kinds.distinct"}
    first = own.joined(CLAIMS).model_copy(update={"hermetic": HERMETIC, "client": CLAIMS.client})
    assert "kinds.distinct" in failures(first)


def test_pcrs_of_another_boot_are_refused_by_number() -> None:
    assert CLAIMS.tpm is not None
    assert failures(vtpm(pcrs={**CLAIMS.tpm.pcrs, "4": "f" * 64})) == {"tpm.pcrs.4"}


def test_azure_tdx_without_sept_ve_disable_is_a_decision_that_shows() -> None:
    text = propose([capture("azure-tdx")], "azure", ["*"], NOW)
    assert 'sept_ve_disable = "any"' in text
    strict = AppraisalPolicy.load(text.replace('sept_ve_disable = "any"', 'sept_ve_disable = "required"'))
    claims = capture("azure-tdx").model_copy(update={"hermetic": HERMETIC, "client": "spiffe://bank/gpu-7"})
    assert failures(claims, AppraisalPolicy.load(text)) == set()
    assert failures(claims, strict) == {"tdx.sept_ve_disable"}
