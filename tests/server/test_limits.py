"""Bytes in flight and cancelled calls: taken, refused, given back."""

import pytest

from hermetic.errors import OverloadedError
from hermetic.server.config import Limits
from hermetic.server.identity import Identity
from hermetic.server.limits import DEAF_S, GOES_ON, REFUSALS_TOLD, Accounts, Cancels, Deafness, Usage


def test_bytes_of_one_client_and_of_all() -> None:
    accounts = Accounts(Limits(message_bytes=60, bytes_in_flight=100, bytes_in_flight_per_client=60))
    one, other = accounts.usage(Identity("ca", "one")), accounts.usage(Identity("ca", "other"))
    accounts.take(one, 60)
    with pytest.raises(OverloadedError, match="of this client: wanted at most 60, got 61"):
        accounts.take(one, 1)
    accounts.take(other, 40)
    with pytest.raises(OverloadedError, match="of all clients: wanted at most 100, got 101"):
        accounts.take(other, 1)
    accounts.give_back(one, 60)
    accounts.take(other, 20)
    assert accounts.bytes_in_flight == 60
    assert accounts.usage(Identity("ca", "one")) is one


def test_room_is_reserved_or_nothing_is_counted() -> None:
    accounts = Accounts(Limits(message_bytes=50, bytes_in_flight=100, bytes_in_flight_per_client=60))
    one, other = accounts.usage(Identity("ca", "one")), accounts.usage(Identity("ca", "other"))
    assert accounts.reserve(one, 50)
    assert not accounts.reserve(one, 50)  # its own share
    assert accounts.reserve(other, 50)
    assert not accounts.reserve(other, 1)  # all
    assert (one.bytes_in_flight, other.bytes_in_flight, accounts.bytes_in_flight) == (50, 50, 100)


def test_cancels_of_one_window() -> None:
    usage, cancels = Usage(), Cancels(Limits(cancels_per_client=3, cancels_window_s=10))
    for _ in range(3):
        cancels.count(usage, 1.0)
    cancels.check(usage, 1.0)
    cancels.count(usage, 1.0)
    with pytest.raises(OverloadedError, match="cancelled calls: wanted at most 3 in 10 s, got 4"):
        cancels.check(usage, 2.0)
    cancels.check(usage, 11.0)
    cancels.count(usage, 11.0)
    assert usage.cancels == 1


@pytest.mark.parametrize("wrong", [{"message_bytes": 600 << 20}, {"bytes_in_flight": 100 << 20}])
def test_limits_that_contradict_each_other(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="message_bytes <= bytes_in_flight_per_client <= bytes_in_flight"):
        Limits(**wrong)


def test_deafness_lasts_as_long_as_the_flood() -> None:
    deafness = Deafness()
    for _ in range(REFUSALS_TOLD - 1):
        deafness.refused(1.0)
    assert deafness.until < 1.0
    deafness.refused(1.0)
    assert deafness.until == 1.0 + DEAF_S
    for _ in range(GOES_ON):
        deafness.drop(1.5)
    assert deafness.until == 1.5 + DEAF_S
    deafness.drop(1.9)
    assert deafness.until == 1.5 + DEAF_S
    assert (deafness.take_dropped(), deafness.take_dropped()) == (GOES_ON + 1, 0)
