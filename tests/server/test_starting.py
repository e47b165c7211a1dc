"""Workers start a few at a time, each on its cores; who asked for one is told once, whatever comes of it."""

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from hermetic.errors import HermeticError, KnownAnswerError, WorkerLostError
from hermetic.server.generation import Generation, SealedFile, to_nobody
from hermetic.server.loading import Loaded, Loader
from hermetic.server.starting import Start, Starting
from tests.server.keeping import Keeping
from tests.server.test_repository import sealed


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    keeping = Keeping()
    yield keeping
    keeping.loop.close()


@pytest.fixture
def starting(keeping: Keeping) -> Starting:
    return Starting(cast(Loader, keeping.loader), keeping.cpu, keeping.loop, 2)


def generation() -> Generation:
    file = sealed(1)
    return Generation(1, file, file.manifest.configuration, to_nobody)


def start(whose: Generation, told: list[object]) -> Start:
    dropped: Callable[[], None] = lambda: told.append("dropped")  # noqa: E731 - as the others
    return Start(whose, whose.instances[0], told.append, told.append, dropped)


def test_no_more_start_at_a_time_than_may(keeping: Keeping, starting: Starting) -> None:
    keeping.loader.may_load.clear()
    told: list[object] = []
    for _ in range(5):
        starting.add(start(generation(), told))
    keeping.turn_until(lambda: keeping.loader.at_once == 2)
    keeping.loader.may_load.set()
    keeping.settle()
    assert keeping.loader.most_at_once == 2
    assert [type(outcome) for outcome in told] == [Loaded] * 5


def test_a_refusal_frees_its_place_and_room(keeping: Keeping, starting: Starting) -> None:
    keeping.loader.errors.append(KnownAnswerError("wrong"))
    told: list[object] = []
    whose = generation()
    starting.add(start(whose, told))
    keeping.settle()
    assert [type(outcome) for outcome in told] == [KnownAnswerError]
    assert whose.instances[0].place is None


def test_a_fault_of_ours_is_a_lost_worker(
    keeping: Keeping, starting: Starting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(_file: SealedFile, _place: object) -> Loaded:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(keeping.loader, "load", fault)
    told: list[HermeticError] = []
    starting.add(start(generation(), cast(list[object], told)))
    keeping.settle()
    assert [(type(error), str(error)) for error in told] == [(WorkerLostError, "ZeroDivisionError: ours")]


def test_what_nobody_wants_any_more_never_begins(keeping: Keeping, starting: Starting) -> None:
    failed = generation()
    failed.phase = "failed"
    told: list[object] = []
    starting.add(start(failed, told))
    assert told == ["dropped"]
    assert keeping.loader.workers == []


def test_at_the_end_what_waits_is_dropped_and_what_starts_is_told(keeping: Keeping, starting: Starting) -> None:
    keeping.loader.may_load.clear()
    told: list[object] = []
    for _ in range(3):
        starting.add(start(generation(), told))
    starting.end()
    keeping.loader.may_load.set()
    keeping.settle()
    assert sorted(type(outcome).__name__ for outcome in told) == ["Loaded", "Loaded", "str"]
