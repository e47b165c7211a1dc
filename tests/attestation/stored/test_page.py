"""The generated pages say what the code says; good evidence passes, and each manipulation of it is refused."""

import pytest

from tests.attestation.stored.cases import NAMES
from tests.attestation.stored.manipulations import KINDS, every
from tests.attestation.stored.page import EVIDENCE, REFUSALS, evidence_page, refusals_page, without_times


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_manipulated_is_good_evidence_without_that(kind: str) -> None:
    for good in KINDS[kind].good:
        assert good.verdict().failed == ()


def test_every_manipulation_is_done_to_something() -> None:
    assert {name for name, _, _ in every()} == set(NAMES)


def test_the_pages_say_what_the_code_says() -> None:
    assert without_times(EVIDENCE.read_text()) == without_times(evidence_page(lambda _: "0.0"))
    assert without_times(REFUSALS.read_text()) == without_times(refusals_page())
