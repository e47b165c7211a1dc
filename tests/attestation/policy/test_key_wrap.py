"""`key_wrap`: the one field that may be left out, and whom it refuses."""

from pathlib import Path

import pytest

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import HermeticClaims
from hermetic.attestation.hybrid_key import public_key
from hermetic.attestation.policy.form import AppraisalPolicy
from hermetic.attestation.policy.hermetic import judge_hermetic
from hermetic.errors import ConfigurationError

TEXT = Path("tests/vectors/appraisal-policy/demo-sample.toml").read_text()
HYBRID = public_key(bytes(32))


def form(line: str, text: str = TEXT) -> AppraisalPolicy:
    head, table, rest = text.partition("[hermetic]\n")
    return AppraisalPolicy.load(f"{head}{table}{line}\n{rest}")


def judged(key: str | None, purpose: str = "model") -> Checks:
    policy, checks = form('key_wrap = "hybrid"'), Checks()
    claims = HermeticClaims.parse({"profile": "demo", "purpose": purpose, "hybrid-key": key, "waivers": []})
    judge_hermetic(checks, claims, policy.hermetic, policy.profile)
    return checks


def test_a_form_without_it_is_the_form_that_it_was() -> None:
    """Operators have signed digests of forms."""
    before, demanding = AppraisalPolicy.load(TEXT), form('key_wrap = "hybrid"')
    assert "key_wrap" not in before.model_dump(mode="json", exclude_none=True)["hermetic"]
    assert before.digest() != demanding.digest()


@pytest.mark.parametrize("line", ['key_wrap = "any"', 'key_wrap = "classical"', "key_wrap = true", "key_wrap = []"])
def test_it_says_hybrid_or_nothing(line: str) -> None:
    with pytest.raises(ConfigurationError, match=r"hermetic\.key_wrap"):
        form(line)


def test_a_guest_that_sends_nothing_does_not_escape_it() -> None:
    lenient = TEXT.replace("required = true", "required = false")
    for name in ("manifest_digest", "trusted_publishers", "waivers", "zeroing"):
        lines = [f'{name} = "any"' if line.startswith(f"{name} =") else line for line in lenient.splitlines()]
        lenient = "\n".join(lines) + "\n"
    AppraisalPolicy.load(lenient)
    with pytest.raises(ConfigurationError, match="would escape key_wrap"):
        form('key_wrap = "hybrid"', lenient)


def test_models_need_a_hybrid_key_and_serving_keys_are_not_asked() -> None:
    assert "hermetic.key_wrap" not in {failure.name for failure in judged(HYBRID).failed}
    assert "hermetic.key_wrap" in {failure.name for failure in judged(None).failed}
    assert "hermetic.key_wrap" not in {failure.name for failure in judged(None, "serving-key").failed}
