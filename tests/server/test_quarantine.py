"""A model version whose workers are ended again and again is out, until somebody decides otherwise."""

from hermetic.server.quarantine import FORGET_S, Quarantine


def test_one_stop_more_than_is_allowed_and_it_is_out() -> None:
    quarantine = Quarantine()
    assert [quarantine.stopped("m", at, allowed=2, takes_s=60) for at in (0.0, 10.0, 20.0)] == [False, False, True]
    assert quarantine.holds("m")
    assert not quarantine.holds("other")


def test_no_stop_is_allowed_where_none_is() -> None:
    assert Quarantine().stopped("m", 0.0, allowed=0, takes_s=60)


def test_old_stops_do_not_count_and_slow_ones_are_not_old() -> None:
    quarantine = Quarantine()
    assert not any(quarantine.stopped("m", at * 2 * FORGET_S, allowed=2, takes_s=60) for at in range(20))
    slow = FORGET_S
    assert [quarantine.stopped("slow", at * slow, allowed=2, takes_s=slow) for at in range(3)] == [False, False, True]


def test_time_does_not_bring_it_back_but_a_decision_does() -> None:
    quarantine = Quarantine()
    quarantine.stopped("m", 0.0, allowed=0, takes_s=1)
    quarantine.stopped("other", 1e9, allowed=5, takes_s=1)
    assert quarantine.holds("m")
    quarantine.lift("m")
    assert not quarantine.holds("m")
    assert not quarantine.stopped("m", 1e9, allowed=1, takes_s=1), "what was before is forgotten"
