"""Bytes in flight and cancelled calls: taken, refused, given back."""

import pytest

from hermetic.errors import OverloadedError
from hermetic.server.config import Limits
from hermetic.server.identity import Identity
from hermetic.server.limits import CANCELS_LIMIT, CANCELS_WINDOW_S, Accounts, Usage, check_cancels, count_cancel


def test_bytes_of_one_client_and_of_all() -> None:
    accounts = Accounts(Limits(bytes_in_flight=100, bytes_in_flight_per_client=60))
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


def test_cancels_of_one_window() -> None:
    usage = Usage()
    for _ in range(CANCELS_LIMIT):
        count_cancel(usage, 1.0)
    check_cancels(usage, 1.0)
    count_cancel(usage, 1.0)
    with pytest.raises(OverloadedError, match="cancelled calls"):
        check_cancels(usage, 2.0)
    check_cancels(usage, 1.0 + CANCELS_WINDOW_S)
    count_cancel(usage, 1.0 + CANCELS_WINDOW_S)
    assert usage.cancels == 1
