"""A form over stored evidence: what only a connection brings is open, everything else is judged as ever."""

from pathlib import Path

from hermetic.attestation.checks import NOT_EVALUATED, Checks
from hermetic.attestation.claims import HermeticClaims
from hermetic.attestation.policy import AppraisalPolicy, judge
from hermetic.attestation.policy.explain import judge_stored

from .captures import NOW, capture

FORMS = Path(__file__).parents[2] / "vectors" / "appraisal-policy"
FORM = AppraisalPolicy.load((FORMS / "snp.toml").read_bytes()).model_copy(update={"client_certificate": "required"})


def test_it_says_what_judging_says_but_for_client_and_runtime_data() -> None:
    live, stored = Checks(), Checks()
    judge(live, capture("snp-genoa"), FORM, NOW)
    judge_stored(stored, capture("snp-genoa"), FORM, NOW)
    changed = [(one.name, other.result) for one, other in zip(live.all, stored.all, strict=True) if one != other]
    assert changed == [("client_certificate", NOT_EVALUATED), ("hermetic.required", NOT_EVALUATED)]
    assert "snp.chip_id" in {check.name for check in stored.failed}


def test_a_client_or_runtime_data_that_is_given_is_judged() -> None:
    demo = HermeticClaims(profile="demo")
    claims = capture("snp-genoa").model_copy(update={"hermetic": demo, "client": "CN=somebody"})
    form = FORM.model_copy(update={"client_certificate": ("CN=other",)})
    checks = Checks()
    judge_stored(checks, claims, form, NOW)
    assert {"client_certificate", "hermetic.profile", "hermetic.waivers"} <= {check.name for check in checks.failed}
