"""Answers that nobody will read are overwritten, and not all in one turn."""

import time

import pytest

from hermetic.server.http2.discards import AT_ONCE_BYTES, MOST_BYTES, WIPED_BYTES, Discards
from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import INITIAL_WINDOW, TIMEOUT_S, reset

MIB = 1 << 20
UNREAD = 12


def secrets(count: int, size: int) -> list[bytes]:
    return [bytes([1 + at % 255]) * size for at in range(count)]


def overwritten(data: bytes) -> bool:
    return data.count(0) == len(data)


def test_small_ones_are_overwritten_at_once() -> None:
    discards = Discards()
    (small,) = secrets(1, AT_ONCE_BYTES)
    discards.add(small)
    assert overwritten(small)
    assert not discards.wipe_some()


def test_large_ones_wait_and_go_so_many_bytes_at_a_time() -> None:
    discards = Discards()
    large = secrets(2 * UNREAD, MIB)
    for one in large:
        discards.add(one)
    gone, more = [0], True
    assert not any(map(overwritten, large))
    while more:
        more = discards.wipe_some()
        gone.append(sum(map(overwritten, large)))
    each = WIPED_BYTES // MIB
    assert gone == list(range(0, 2 * UNREAD + 1, each))


def test_the_last_one_is_the_first_to_go() -> None:
    discards = Discards()
    large = secrets(3, WIPED_BYTES)
    for one in large:
        discards.add(one)
    discards.wipe_some()
    assert list(map(overwritten, large)) == [False, False, True]


def test_one_that_is_larger_than_a_turns_share_goes_too() -> None:
    discards = Discards()
    (large,) = secrets(1, 3 * WIPED_BYTES)
    discards.add(large)
    assert not discards.wipe_some()
    assert overwritten(large)


def test_what_waits_is_bounded() -> None:
    discards = Discards()
    (large,) = secrets(1, MOST_BYTES - MIB)
    one, beyond = secrets(2, MIB)
    discards.add(large)
    discards.add(one)
    discards.add(beyond)
    assert list(map(overwritten, (one, beyond))) == [False, True]
    discards.wipe_some()
    discards.wipe_some()
    again = secrets(1, MIB)[0]
    discards.add(again)  # there is room again
    assert not overwritten(again)


def test_the_end_overwrites_everything() -> None:
    discards = Discards()
    large = secrets(UNREAD, MIB)
    for one in large:
        discards.add(one)
    discards.close()
    assert all(map(overwritten, large))


@pytest.fixture
def per_turn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each turn has overwritten, of turns with any."""
    noted: list[int] = []
    real = Discards.wipe_some

    def wipe_some(self: Discards) -> bool:
        before = self._size
        more = real(self)
        if before > self._size:
            noted.append(before - self._size)
        return more

    monkeypatch.setattr(Discards, "wipe_some", wipe_some)
    return noted


def wait_for(application: Application) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not all(map(overwritten, application.secrets)):
        assert time.monotonic() < end


@pytest.mark.parametrize("how", ["hangs up", "resets"])
def test_who_reads_nothing_and_goes_costs_each_turn_little(how: str, per_turn: list[int]) -> None:
    with Serving() as serving, serving.peer() as other:
        peer = serving.peer((INITIAL_WINDOW, 0))
        streams = [peer.call("/test/Secret", str(MIB).encode()) for _ in range(UNREAD)]
        serving.application.wait("/test/Secret received", UNREAD)
        other.echo()
        assert not any(map(overwritten, serving.application.secrets))
        if how == "hangs up":
            peer.close()
        else:
            peer.send(*map(reset, streams))
            peer.settle()
            peer.close()
        wait_for(serving.application)
        other.echo()
    assert len(serving.application.secrets) == UNREAD
    assert sum(per_turn) == UNREAD * MIB
    assert max(per_turn) <= WIPED_BYTES


def test_a_server_that_stops_overwrites_what_waits() -> None:
    large = secrets(UNREAD, MIB)
    with Serving() as serving:

        def leave_and_stop() -> None:
            for one in large:
                serving.server.discards.add(one)
            serving.server.stop(0.0)  # nobody is there: this is the last turn

        serving.server.post(leave_and_stop)
        serving.join()
    assert all(map(overwritten, large))
