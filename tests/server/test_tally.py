"""Counts of several front ends: sums, bounds, and the protocol's statistics made of them."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermetic.errors import BorderError
from hermetic.server.documents import decoded
from hermetic.server.event_loop import EventLoop
from hermetic.server.shared_messages import TallyPart
from hermetic.server.statistics import SIZES_COUNTED, ModelStatistics, statistics_message
from hermetic.server.tally import BATCH_SIZES_LIMIT, ModelTally, Tally, total
from hermetic.server.tally_desk import Counting, TallyDesk
from hermetic.server.totals import Totals


def tally_of(statistics: ModelStatistics, version: int = 1, pending: int = 0) -> ModelTally:
    named = {"name": "m", "version": version, "generation": 1, "pending": pending}
    return ModelTally.model_validate({**named, **statistics.numbers()})


def counted(rows: int, times: tuple[int, int, int], moment: int) -> ModelStatistics:
    statistics = ModelStatistics()
    statistics.executed(rows, 2, times, moment)
    statistics.succeeded(500, 50)
    statistics.failed(100, "REJECTED")
    return statistics


def test_statistics_as_the_protocol_has_them() -> None:
    message = statistics_message(tally_of(counted(4, (10, 20, 30), 5), version=3))
    assert (message.name, message.version) == ("m", "3")
    assert (message.inference_count, message.execution_count, message.last_inference) == (4, 1, 5)
    assert (message.inference_stats.compute_infer.count, message.inference_stats.compute_infer.ns) == (2, 40)
    assert (message.batch_stats[0].batch_size, message.batch_stats[0].compute_infer.ns) == (4, 20)


def test_the_sum_is_what_one_front_end_would_have_counted() -> None:
    alone = ModelStatistics()
    parts = []
    for rows, moment in ((4, 7), (2, 9), (4, 8)):
        parts.append(Tally(models=(tally_of(counted(rows, (10, 20, 30), moment), pending=1),), live=1))
        alone.executed(rows, 2, (10, 20, 30), moment)
        alone.succeeded(500, 50)
        alone.failed(100, "REJECTED")
    alone.last_inference_ms = 9
    everyone = total(parts)
    assert statistics_message(everyone.models[0]) == alone.message("m", 1)
    assert (everyone.live, everyone.models[0].pending) == (3, 3)
    assert everyone.models[0].failures == {"REJECTED": 3}


def test_news_replace_what_they_name_and_leave_the_rest() -> None:
    counts = (("a", 1), ("b", 2), ("a", 9))
    one, two, later = (ModelTally(name=name, version=1, generation=1, inferences=count) for name, count in counts)
    before = Tally(models=(one, two), live=5, requests=(("m", 0, 1),))
    assert before.followed_by(Tally(models=(later,), live=3)) == Tally(models=(later, two), live=3)


def test_generations_are_not_mixed() -> None:
    one, two = (ModelTally(name="m", version=1, generation=number, inferences=number) for number in (1, 2))
    assert total([Tally(models=(one,)), Tally(models=(two,))]).models == (one, two)


def test_what_is_held_ends_with_its_front_end() -> None:
    tally = Tally(
        models=(ModelTally(name="m", version=1, generation=1, inferences=4, pending=2),),
        requests=(("a", 0, 3),),
        undelivered=1,
        live=5,
        bytes_in_flight=6,
        records_waiting=7,
        draining=1,
    )
    left = tally.ended()
    assert (left.models[0].inferences, left.models[0].pending) == (4, 0)
    assert (left.requests, left.undelivered) == ((("a", 0, 3),), 1)
    assert (left.live, left.bytes_in_flight, left.records_waiting, left.draining) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        '{"live":-1}',
        '{"live":9223372036854775808}',
        '{"live":"1"}',
        '{"live":1.5}',
        '{"colour":1}',
        '{"models":[{"name":"","version":1,"generation":1}]}',
        '{"models":[{"name":"m","version":0,"generation":1}]}',
        '{"models":[{"name":"m","version":1,"generation":1,"failures":{"MINE":1}}]}',
        '{"models":[{"name":"m","version":1,"generation":1,"success":[1]}]}',
        '{"models":[{"name":"m","version":1,"generation":1,"batches":[[1,2,3]]}]}',
        '{"requests":[["m",0]]}',
        '{"requests":' + str([["m", 0, 1]] * 600).replace("'", '"') + "}",
        "[]",
        "{",
    ],
)
def test_a_hostile_tally_is_refused(text: str) -> None:
    with pytest.raises(BorderError, match="Tally document"):
        decoded(text.encode(), Tally)


def test_counts_that_no_sum_can_hold_stay_at_the_largest() -> None:
    """A front end says what it likes, and the supervisor adds: a sum must never be an error there."""
    most = (1 << 63) - 1
    batches = tuple((rows, most, 1, 1, 1) for rows in range(BATCH_SIZES_LIMIT))
    others = tuple((BATCH_SIZES_LIMIT + rows, 1, 1, 1, 1) for rows in range(9))
    one = ModelTally(
        name="m", version=1, generation=1, success=(most, most), inferences=most, failures={"OTHER": most},
        batches=batches, pending=most,
    )  # fmt: skip
    model = one.model_copy(update={"batches": (batches[0], *others)})
    requests = (("a", 0, most),)
    tallies = [Tally(models=(each,), live=most, bytes_in_flight=most, requests=requests) for each in (one, model)]
    everyone = total(tallies)
    assert (everyone.live, everyone.requests, everyone.models[0].success) == (most, requests, (most, most))
    assert len(everyone.models[0].batches) == BATCH_SIZES_LIMIT
    assert total([everyone, *tallies]).live == most


class Models:
    """Models that have counted batches of every size that callers can make."""

    def __init__(self, models: int, sizes: int) -> None:
        self.models = [self._model(number, sizes) for number in range(models)]

    def _model(self, number: int, sizes: int) -> Any:
        statistics = ModelStatistics()
        for rows in range(1, sizes + 1):
            statistics.executed(rows, 1, (2**40, 2**40, 2**40), 1)
        key = ("m", number + 1, 1)
        return SimpleNamespace(key=key, statistics=statistics, dispatcher=SimpleNamespace(pending=0))

    def served(self) -> list[Any]:
        return self.models


def test_what_callers_make_a_front_end_count_is_never_too_much_to_tell() -> None:
    """Else the supervisor would end it for its tally: a caller chooses how many rows a request has."""
    models = Models(100, 5000)
    parts: list[TallyPart] = []
    totals = Totals(cast(Any, models), lambda frame: parts.append(TallyPart.decode(frame)))
    totals.tell(7)
    loop = EventLoop()
    desk = TallyDesk(loop, {}, lambda: frozenset(model.key for model in models.models))
    loop.close()  # nobody else is asked
    front_end = cast(Counting, SimpleNamespace(pid=1))
    for part in parts:
        desk.take(front_end, part)
    assert [part.ask for part in parts if part.last][-1] == 7
    told = desk.total().models
    assert len(told) == 100
    assert {model.executions for model in told} == {5000}
    assert {len(model.batches) for model in told} == {SIZES_COUNTED}
