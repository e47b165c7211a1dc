"""A clock that cannot be talked into another time."""

from datetime import UTC, datetime, timedelta

import pytest

from hermetic.attestation.clock import SetBack, SteadyClock

BEGUN = datetime(2026, 11, 23, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


class Machine:
    """`passes` moves both clocks, as time does; `wall` can be set."""

    def __init__(self) -> None:
        self.wall = BEGUN
        self.boottime = 1000.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.boottime)

    def passes(self, time: timedelta) -> None:
        self.wall += time
        self.boottime += time.total_seconds()


@pytest.mark.parametrize(("moved", "latest"), [(-DAY, MINUTE), (DAY, DAY + MINUTE), (timedelta(), MINUTE)])
def test_a_wall_clock_that_is_moved_moves_no_deadline(moved: timedelta, latest: timedelta) -> None:
    machine = Machine()
    machine.wall += moved
    machine.passes(MINUTE)
    assert machine.clock() == BEGUN + MINUTE
    assert machine.clock.latest() == BEGUN + latest


def test_forward_and_back_leaves_nothing_behind() -> None:
    machine = Machine()
    machine.wall += DAY
    assert machine.clock.latest() == BEGUN + DAY
    machine.wall -= DAY
    assert machine.clock.latest() == machine.clock() == BEGUN


@pytest.mark.parametrize(("moved", "behind"), [(-DAY, DAY), (DAY, timedelta()), (timedelta(), timedelta())])
def test_whoever_reads_the_wall_clock_is_told_how_far_it_was_set_back(moved: timedelta, behind: timedelta) -> None:
    machine = Machine()

    def wall() -> float:
        return machine.wall.timestamp()

    set_back = SetBack(wall, lambda: machine.boottime)
    machine.wall += moved
    machine.passes(MINUTE)
    assert set_back.seconds() == behind.total_seconds()
    machine.wall -= moved
    assert set_back.seconds() == 0


def test_a_machine_that_was_paused_unknown_to_its_own_clocks_is_believed_once_told() -> None:
    machine = Machine()
    machine.wall += 7 * DAY  # the time service has told it
    assert machine.clock.latest() == BEGUN + 7 * DAY


def test_the_machines_own_clocks_agree() -> None:
    clock = SteadyClock()
    assert abs(clock() - datetime.now(UTC)) < MINUTE
    assert clock() <= clock.latest()
