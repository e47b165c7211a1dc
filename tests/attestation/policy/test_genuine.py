"""The built-in form: what it asks of recorded evidence, and that nothing that releases or trusts can use it."""

import re
from pathlib import Path

import pytest

from hermetic.attestation.broker.key_store import ResourcePath, StoredKey
from hermetic.attestation.broker.release import Asked, ModelPolicy, refusals
from hermetic.attestation.checks import NOT_EVALUATED, Checks
from hermetic.attestation.claims import Claims, SampleClaims
from hermetic.attestation.policy import GENUINE, AppraisalPolicy, appraise, judge
from hermetic.errors import ConfigurationError

from .captures import CAPTURES, NOW, capture

ROOT = Path(__file__).resolve().parents[3]
FORMS = Path(__file__).parents[2] / "vectors" / "appraisal-policy"


def judged(claims: Claims) -> Checks:
    checks = Checks()
    judge(checks, claims, GENUINE, NOW)
    return checks


@pytest.mark.parametrize("name", CAPTURES)
def test_genuine_evidence_passes_but_for_a_status_that_is_not_up_to_date(name: str) -> None:
    claims = capture(name)
    checks = judged(claims)
    bad = {
        f"{kind.kind}.tcb.status"
        for kind in (claims.tdx, claims.sgx)
        if kind is not None and kind.platform.tcb is not None and kind.platform.tcb.status != "UpToDate"
    }
    assert {check.name for check in checks.failed} == bad
    assert bool(bad) == (name in {"tdx-out-of-date", "sgx", "azure-tdx"})


@pytest.mark.parametrize("name", ["snp-milan", "tdx-good", "sgx", "four-hoppers", "azure-snp", "tpm-provisioned"])
def test_what_it_does_not_ask_is_said_to_be_not_evaluated(name: str) -> None:
    checks = judged(capture(name))
    asked = {check.name for check in checks.all if check.result != NOT_EVALUATED}
    assert {one.partition(".")[2] for one in asked if "." in one} <= {
        "debug", "distinct", "sample", "software", "tcb.status"
    }  # fmt: skip
    assert {"kinds", "client_certificate", "hermetic.required"} <= set(checks.not_evaluated)


def test_debug_and_sample_are_refused() -> None:
    tdx = capture("tdx-good").tdx
    assert tdx is not None
    debugged = Claims(kinds=(tdx.model_copy(update={"debug": True}),))
    assert {check.name for check in judged(debugged).failed} == {"tdx.debug"}
    sample = Claims(kinds=(SampleClaims(checks=(), svn="1"),))
    assert {check.name for check in judged(sample).failed} == {"kinds.sample"}


def test_without_collateral_nobody_knows_the_status_and_it_says_so() -> None:
    tdx = capture("tdx-out-of-date").tdx
    assert tdx is not None
    bare = tdx.model_copy(update={"platform": tdx.platform.model_copy(update={"tcb": None})})
    checks = judged(Claims(kinds=(bare,)))
    assert not checks.failed
    assert "tdx.tcb.status" in checks.not_evaluated


class TestNobodyElseCanUseIt:
    def test_appraising_with_it_is_an_error(self) -> None:
        with pytest.raises(ConfigurationError, match="expected a form of your own, got the built-in 'genuine'"):
            appraise(capture("snp-milan"), GENUINE, NOW)

    def test_a_broker_that_is_handed_it_releases_nothing(self) -> None:
        key = StoredKey(ResourcePath("a", "b", "c"), None, "production", NOW)
        with pytest.raises(ConfigurationError):
            refusals(Asked(key, capture("snp-milan"), "production", 0, 0, NOW, "2" * 64), ModelPolicy(GENUINE))

    def test_no_file_carries_its_name(self) -> None:
        text = (FORMS / "snp.toml").read_text()
        AppraisalPolicy.load(text)
        with pytest.raises(ConfigurationError, match='name: "genuine" is the built-in form'):
            AppraisalPolicy.load(text.replace('name = "guests"', 'name = "genuine"'))

    def test_neither_client_nor_server_nor_broker_names_it(self) -> None:
        rooms = [ROOT / "client", ROOT / "server", ROOT / "enclave", ROOT / "attestation/broker"]
        sources = [path for room in rooms for path in room.rglob("*.py")]
        assert sources
        assert not [path for path in sources if re.search(r"\bGENUINE\b|judge_stored", path.read_text())]
