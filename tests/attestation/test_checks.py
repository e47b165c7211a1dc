import pytest

from hermetic.attestation.checks import Checks, shown
from hermetic.errors import AppraisalError, FailedCheck


def test_every_failure_is_raised_with_wanted_and_got() -> None:
    checks = Checks()
    checks.equal("a", 1, 1)
    checks.equal("b", b"\1", b"\2")
    checks.demand("c", False, "one\nline", {"y", "x"})
    checks.hold("d")
    assert checks.passed == ("a", "d")
    with pytest.raises(AppraisalError, match=r"b: wanted 01, got 02; c: wanted one line, got \[x, y\]") as raised:
        checks.raise_failures(AppraisalError)
    assert raised.value.failures == (FailedCheck("b", "01", "02"), FailedCheck("c", "one line", "[x, y]"))


def test_nothing_is_raised_when_all_holds() -> None:
    checks = Checks()
    checks.equal("a", None, None)
    checks.raise_failures(AppraisalError)


def test_texts_are_one_line() -> None:
    assert shown(b"") == "nothing"
    assert shown(("a", b"\1")) == "[a, 01]"
