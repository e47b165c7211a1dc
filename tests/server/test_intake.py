"""When calls are asked for their message: room, turns, bounds, patience. Pure: time is an argument."""

import pytest

from hermetic.errors import DeadlineError, OverloadedError
from hermetic.server.config import Limits
from hermetic.server.identity import Identity
from hermetic.server.intake import Intake
from hermetic.server.limits import Accounts, Usage

LIMITS = Limits(
    message_bytes=100,
    bytes_in_flight_per_client=200,
    bytes_in_flight=300,
    calls_waiting_per_client=3,
    calls_waiting=5,
    message_wait_s=10,
    message_timeout_s=30,
    message_timeout_scarce_s=5,
)


class Side:
    """An intake with three identities; notes which calls were asked, and how calls were ended."""

    def __init__(self) -> None:
        self.accounts = Accounts(LIMITS)
        self.intake = Intake(self.accounts, LIMITS)
        self.red, self.blue, self.green = (self.accounts.usage(Identity("ca", name)) for name in ("r", "b", "g"))
        self.asked: list[str] = []
        self.failed: dict[str, BaseException] = {}

    def call(self, name: str, usage: Usage, now: float = 0.0) -> "Asked":
        """A call that announces a message of 100 bytes."""
        call = Asked(self, name, usage)
        self.intake.expect(call, now)
        if self.intake.reserve(call, usage, 100, now):
            call.ask(100)
        return call


class Asked:
    """One call."""

    def __init__(self, side: Side, name: str, usage: Usage) -> None:
        self.side, self.name, self.usage = side, name, usage
        self.held = 0

    def ask(self, reserved: int) -> None:
        self.held = reserved
        self.side.asked.append(self.name)

    def fail(self, error: BaseException) -> None:
        self.side.failed[self.name] = error
        self.side.intake.forget(self, self.usage)
        self.give(self.held)

    def arrive(self, size: int, now: float = 0.0) -> None:
        self.side.intake.arrived(self)
        self.give(self.held - size, now)

    def give(self, size: int, now: float = 0.0) -> None:
        self.side.accounts.give_back(self.usage, size)
        self.held -= size
        self.side.intake.serve(now)


@pytest.fixture
def side() -> Side:
    return Side()


def test_room_is_for_messages_until_they_are_there(side: Side) -> None:
    first = side.call("1", side.red)
    side.call("2", side.red)
    side.call("3", side.red)
    assert side.asked == ["1", "2"]  # its share: two messages
    assert side.accounts.bytes_in_flight == 200
    first.arrive(0)
    assert side.asked == ["1", "2", "3"]
    assert side.intake.waiting == 0


def test_a_full_share_stops_nobody_else(side: Side) -> None:
    for at in range(4):
        side.call(f"red {at}", side.red)
    side.call("blue", side.blue)
    assert side.asked == ["red 0", "red 1", "blue"]
    assert side.accounts.bytes_in_flight == 300


def test_identities_take_turns(side: Side) -> None:
    held = [side.call("a", side.red), side.call("b", side.red), side.call("c", side.green)]
    for name, usage in (("r1", side.red), ("r2", side.red), ("b1", side.blue), ("g1", side.green), ("b2", side.blue)):
        side.call(name, usage)
    assert side.asked == ["a", "b", "c"]
    for call in held:
        call.arrive(0)
    assert side.asked == ["a", "b", "c", "r1", "b1", "g1"]


def test_the_order_within_an_identity_is_that_of_arrival(side: Side) -> None:
    first, _ = side.call("1", side.red), side.call("2", side.red)
    for name in ("3", "4", "5"):
        side.call(name, side.red)
    first.arrive(100)
    assert side.asked == ["1", "2"]  # it holds what it was: no room yet
    first.give(100)
    assert side.asked == ["1", "2", "3"]


def test_waiting_is_bounded_for_one_and_for_all(side: Side) -> None:
    for at in range(5):
        side.call(str(at), side.red)
    side.call("6", side.red)
    assert "of this client that wait for room: wanted at most 3, got 4" in str(side.failed["6"])
    for at in range(3):
        side.call(f"blue {at}", side.blue)
    side.call("green", side.green)
    assert "of all clients that wait for room: wanted at most 5, got 6" in str(side.failed["green"])
    assert set(side.failed) == {"6", "green"}
    assert all(isinstance(error, OverloadedError) for error in side.failed.values())


def test_a_smaller_message_takes_less_room(side: Side) -> None:
    side.call("1", side.red)
    small = Asked(side, "small", side.red)
    side.intake.expect(small, 0.0)
    assert side.intake.reserve(small, side.red, 99, 0.0)
    assert side.accounts.bytes_in_flight == 199


def test_who_waits_too_long_is_refused_and_the_next_is_not(side: Side) -> None:
    for at in range(4):
        side.call(str(at), side.red, now=float(at))
    side.intake.expire(4.9)
    assert not side.failed
    side.call("x", side.red, now=11.0)
    side.intake.expire(12.0)
    assert "room for a message: expected 100 bytes within 10 s" in str(side.failed["2"])
    assert isinstance(side.failed["2"], OverloadedError)
    assert set(side.failed) == {"0", "1", "2"}  # two of them arrived too slowly: that made room
    assert side.asked == ["0", "1", "3", "x"]


def test_a_message_has_less_time_while_others_wait(side: Side) -> None:
    side.call("slow", side.red)
    side.intake.expire(29.9)
    assert not side.failed
    side.intake.expire(30.0)
    assert isinstance(side.failed["slow"], DeadlineError)
    assert side.accounts.bytes_in_flight == 0
    for at in range(3):
        side.call(f"{at}", side.red, now=40.0)
    side.intake.expire(44.9)
    assert set(side.failed) == {"slow"}
    side.intake.expire(45.0)
    assert set(side.failed) == {"slow", "0", "1"}
    assert side.asked[-1] == "2"


def test_a_waiting_call_that_goes_away_leaves_nothing_behind(side: Side) -> None:
    first = side.call("1", side.red)
    side.call("2", side.red)
    third, _ = side.call("3", side.red), side.call("4", side.red)
    side.intake.forget(third, side.red)
    assert side.intake.waiting == 1
    first.arrive(0)
    assert side.asked == ["1", "2", "4"]
    assert side.intake.waiting == 0
    assert not side.red.waiting


def test_a_call_that_ends_when_it_is_asked_makes_room_again(side: Side) -> None:
    first, _ = side.call("1", side.red), side.call("2", side.red)
    calls = [side.call(str(at), side.red) for at in range(3, 6)]
    for call in calls:

        def ask(reserved: int, call: Asked = call) -> None:
            call.held = reserved
            side.asked.append(call.name)
            call.fail(OverloadedError("gone"))

        call.ask = ask  # type: ignore[method-assign]
    first.arrive(0)
    assert side.asked == ["1", "2", "3", "4", "5"]
    assert side.accounts.bytes_in_flight == 100
