from datetime import UTC, datetime
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.errors import VerificationError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPORT_DATA = bytes(range(48))
DEMO = TrustRoots(profile="demo")


def failures(evidence: Any, trust: TrustRoots = DEMO, report_data: bytes = REPORT_DATA) -> set[str]:
    with pytest.raises(VerificationError) as caught:
        verifiers.verify("sample", evidence, report_data, trust, NOW)
    return {check.name for check in caught.value.failures}


def test_it_is_trustee_s_json_and_passes_in_the_demo_only() -> None:
    evidence = SampleAttester().collect(REPORT_DATA)
    assert evidence == {
        "svn": "1", "report_data": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v"
    }  # fmt: skip
    claims = verifiers.verify("sample", evidence, REPORT_DATA, DEMO, NOW)
    assert [kind.kind for kind in claims.kinds] == ["sample"]
    assert not claims.kinds[0].code_measured
    assert failures(evidence, TrustRoots()) == {"sample.profile"}


def test_it_is_bound_to_its_report_data() -> None:
    assert failures(SampleAttester().collect(REPORT_DATA), report_data=bytes(48)) == {"sample.report_data"}


@pytest.mark.parametrize(
    "evidence", [None, [], {}, {"svn": 1}, {"svn": "1" * 65, "report_data": "A" * 129}, "x"], ids=str
)
def test_garbage_is_a_refusal(evidence: Any) -> None:
    assert "sample.report_data" in failures(evidence)
