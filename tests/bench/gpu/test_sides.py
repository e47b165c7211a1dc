"""The loop that measures a side: lanes in turn, nothing left unfinished, and no answers but the library's own."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hermetic.bench.gpu.sides import Pace, Turn, check_equal, median_of, take_turn, warm_up
from hermetic.errors import MeasurementError


class Recorded:
    """A side that notes its calls. Every wipe takes 1 ms, or says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.most = 0

    def start(self, lane: int) -> None:
        self.calls.append(("start", lane))
        names = [name for name, _ in self.calls]
        self.most = max(self.most, names.count("start") - names.count("finish"))

    def finish(self, lane: int) -> float:
        self.calls.append(("finish", lane))
        return 1e-3

    def answer(self, lane: int) -> NDArray[np.float32]:
        return np.zeros((1, 1), np.float32)

    def close(self) -> None:
        self.calls.clear()


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_lanes_take_turns_and_are_finished_in_the_order_of_their_beginning(lanes: int) -> None:
    side = Recorded()
    turn = take_turn(side, 8, lanes, Pace(0.0, 7))
    order = {name: [lane for call, lane in side.calls if call == name] for name in ("start", "finish")}
    assert order["start"] == order["finish"] == [number % lanes for number in range(7 + lanes)]
    assert side.most == lanes
    assert turn.rate > 0
    assert turn.wipe_ms == pytest.approx(1.0)


def test_what_only_the_first_batches_pay_for_is_not_measured() -> None:
    side = Recorded()
    warm_up(side, 2)
    assert [call for call, _ in side.calls].count("finish") == 6


def test_other_answers_are_no_measurement() -> None:
    right = np.ones((2, 3), np.float32)
    check_equal("m", right, right * 1.0001)
    for wrong in (right * 2, right[:1], right * np.nan):
        with pytest.raises(MeasurementError, match="m: wanted the library's own answers"):
            check_equal("m", right, wrong)


def test_the_median_is_of_each_number_and_unknown_use_stays_unknown() -> None:
    turns = [Turn(rate, 1 / rate, 5.0, use=use) for rate, use in ((1.0, None), (3.0, 40.0), (2.0, 60.0))]
    assert median_of(turns) == Turn(2.0, 0.5, 5.0, use=50.0)
    assert median_of(turns[:1]).use is None
    assert Turn.of(turns[0].document()) == turns[0]
