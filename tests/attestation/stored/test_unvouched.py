"""A TPM's quote without a certificate: not evaluated under the built-in form, refused under every other."""

import base64
import json
from datetime import UTC, datetime

import pytest

from hermetic.attestation import stored
from hermetic.attestation.checks import Checks
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.policy.propose import propose
from hermetic.attestation.stored import Verdict
from tests.attestation.stored.rows import read, trust

QUOTE, KEY, OTHER_KEY, CA = (
    read(f"tpm/{name}")
    for name in ("tpm_evidence.json", "tpm_evidence.akpub.pem", "keylime_akpub.pem", "gcp_ek_ak_ca_root.crt")
)
TIME = datetime(2026, 11, 22, tzinfo=UTC)


def verdict(evidence: bytes = QUOTE, *beside: bytes) -> Verdict:
    return stored.verdict(stored.recognise(evidence, beside), trust(), TIME)


def own_form() -> AppraisalPolicy:
    """A form that takes keys entered by hand, and this very quote when somebody vouches for it."""
    claims = stored.judge(Checks(), stored.recognise(QUOTE, [KEY]), trust(), TIME)
    assert claims is not None
    return AppraisalPolicy.load(propose([claims], "own", ["*"], TIME).encode())


def test_its_chain_is_not_evaluated_and_the_verdict_says_that_nobody_vouches() -> None:
    found = verdict()
    assert found.accepted
    results = {check.name: check.result for check in found.checks}
    assert results["tpm.ak.certificate"] == "not evaluated"
    assert results["tpm.quote.signature"] == results["tpm.quote.pcr_digest"] == "pass"
    assert found.claims is not None
    assert found.claims.tpm is not None
    assert found.claims.tpm.enrolled == "nobody"
    assert "tpm.ak.certificate" not in found.claims.tpm.checks


def test_a_form_that_somebody_wrote_refuses_it_even_where_it_takes_keys_entered_by_hand() -> None:
    form = own_form()
    assert form.tpm is not None
    assert form.tpm.provisioned_ak
    with_key, without = (stored.recognise(QUOTE, beside) for beside in ([KEY], []))
    assert stored.verdict(with_key, trust(), TIME, form).accepted
    refused = stored.verdict(without, trust(), TIME, form)
    assert (refused.genuine, refused.failed) == (False, ("tpm.ak.certificate",))
    assert stored.judge(Checks(), without, trust(), TIME) is None  # what `hermetic policy` goes by


def test_a_key_or_a_root_that_was_named_must_be_the_one() -> None:
    assert verdict(QUOTE, OTHER_KEY).failed == ("tpm.ak.certificate",)
    found = stored.verdict(stored.recognise(QUOTE), stored.given([CA]), TIME)
    assert found.failed == ("tpm.ak.certificate",)


@pytest.mark.parametrize("half", ["ak_certificate", "ak_public_area"])
def test_half_of_what_vouches_is_no_reason_to_look_away(half: str) -> None:
    members = json.loads(QUOTE)
    members["hermetic"] = {half: [] if half == "ak_certificate" else "AAAA"}
    assert not verdict(json.dumps(members).encode()).accepted


def test_everything_else_is_still_judged() -> None:
    members = json.loads(QUOTE)
    message = bytearray(base64.b64decode(members["tpm_quote"]["message"]))
    message[-1] ^= 1
    members["tpm_quote"]["message"] = base64.b64encode(message).decode()
    assert set(verdict(json.dumps(members).encode()).failed) == {"tpm.quote.signature", "tpm.quote.pcr_digest"}
    members["tpm_quote"] = {}
    assert verdict(json.dumps(members).encode()).failed == ("tpm.structure",)
