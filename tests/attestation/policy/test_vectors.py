"""Appraisals of the vectors: every case gives its verdict, by its names; captured forms are what is proposed today."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.policy import AppraisalPolicy, appraise, judge
from hermetic.attestation.policy.propose import propose
from hermetic.errors import AppraisalError

from .captures import capture

FORMS = Path(__file__).parents[2] / "vectors" / "appraisal-policy"
CASES = sorted((FORMS / "cases").glob("*.json"))
CAPTURED = {
    "captured-milan": "snp-milan",
    "captured-tdx-out-of-date": "tdx-out-of-date",
    "captured-azure": "azure-snp",
    "captured-genoa-and-gpus": "snp-and-gpus",
}
NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_case_gives_its_verdict(path: Path) -> None:
    case = json.loads(path.read_text())
    policy = AppraisalPolicy.load((FORMS / case["form"]).read_bytes())
    claims, time = Claims.parse(case["claims"]), datetime.fromisoformat(case["time"])
    checks = Checks()
    judge(checks, claims, policy, time)
    assert sorted({check.name for check in checks.failed}) == case["failed"]
    assert sorted(checks.not_evaluated) == case["not_evaluated"]
    assert case["verdict"] == ("refused" if case["failed"] else "accepted")
    if case["failed"]:
        with pytest.raises(AppraisalError) as refused:
            appraise(claims, policy, time)
        assert {check.name for check in refused.value.failures} == set(case["failed"])
    else:
        assert list(appraise(claims, policy, time).warnings) == case["warnings"]


def test_there_are_cases_of_both_verdicts() -> None:
    assert {json.loads(path.read_text())["verdict"] for path in CASES} == {"accepted", "refused"}


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_forms_are_what_is_proposed(name: str) -> None:
    text = propose([capture(CAPTURED[name])], name, ["*"], NOW)
    assert (FORMS / f"{name}.toml").read_text() == f"# accepted\n{text}"
