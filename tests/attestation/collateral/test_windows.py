"""The form of windows is strict, and an item's state follows from it."""

from datetime import UTC, datetime, timedelta

import pytest

from hermetic.attestation.collateral import Bundle, Windows
from hermetic.errors import ConfigurationError
from tests.attestation.collateral.by_hand import whole

FORMAT = 'format = "hermetic-collateral-windows/1"\n'
INFO = next(i for i in Bundle.load_without_asking_who_signed(whole()).items if i.kind == "tcb-info")
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected format"),
        ('format = "hermetic-collateral-windows/2"', "format"),
        (FORMAT + "grace_days = 91", "grace_days"),
        (FORMAT + "grace_days = -1", "grace_days"),
        (FORMAT + 'grace_days = "3"', "grace_days"),
        (FORMAT + "warn_before_days = 367", "warn_before_days"),
        (FORMAT + "grace = 3", "grace"),
        (FORMAT + "[kinds.crl]\ngrace_days = 1", "kinds.crl"),
        (FORMAT + "[kinds.ocsp]\ngrace = 1", "kinds.ocsp.grace"),
        (FORMAT + "[kinds", "TOML"),
        (b"\xff", "TOML"),
        (b" " * 65_537, "at most"),
    ],
)
def test_a_form_that_is_another_is_refused(text: str | bytes, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        Windows.load(text)


@pytest.mark.parametrize(
    ("time", "state"),
    [
        (INFO.start - SECOND, "not-yet-valid"),
        (INFO.start, "valid"),
        (INFO.end - 5 * DAY - SECOND, "valid"),
        (INFO.end - 5 * DAY, "expiring"),
        (INFO.end, "expiring"),
        (INFO.end + SECOND, "grace"),
        (INFO.end + 2 * DAY, "grace"),
        (INFO.end + 2 * DAY + SECOND, "expired"),
    ],
)
def test_states_at_their_borders(time: datetime, state: str) -> None:
    windows = Windows.load(FORMAT + "warn_before_days = 9\ngrace_days = 2\n[kinds.tcb-info]\nwarn_before_days = 5")
    assert windows.state(INFO, time) == state


def test_what_is_asked_for_replaces_the_warning() -> None:
    time = INFO.end - 3 * DAY
    assert Windows(warn_before_days=1).state(INFO, time) == "valid"
    assert Windows(warn_before_days=1).state(INFO, time, within=4 * DAY) == "expiring"
    assert Windows().state(INFO, datetime(2030, 1, 1, tzinfo=UTC)) == "expired"
