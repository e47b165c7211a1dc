"""The page of attacks on governance is what the tests show."""

from tests.attestation.governance.attacks import ATTACKS, PAGE, functions_in, page


def test_the_page_is_what_the_tests_show() -> None:
    assert PAGE.read_text() == page()


def test_every_attack_is_shown_by_a_test_that_exists() -> None:
    for one in ATTACKS:
        assert one.test in functions_in(one.file), one
