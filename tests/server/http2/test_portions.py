"""A few at a time: each once a round, and no round begins before the last has ended."""

from itertools import chain

from hermetic.server.http2.portions import Portions


def test_each_once_a_round() -> None:
    portions = Portions[int](3)
    assert portions.take() == []
    portions.begin(range(8))
    seen: list[list[int]] = []
    while portions.more:
        seen.append(portions.take())
    assert [len(portion) for portion in seen] == [3, 3, 2]
    assert sorted(chain(*seen)) == list(range(8))


def test_a_round_is_not_cut_short() -> None:
    portions = Portions[int](2)
    portions.begin([1, 2, 3])
    portions.take()
    portions.begin([4, 5])
    assert portions.take() == [1]
    portions.begin([4, 5])
    assert sorted(portions.take()) == [4, 5]
