"""Threads, spinning and pinning for machines of every size: decided from the cores, overridable one by one."""

from collections.abc import Sequence
from typing import Any

import pytest

from hermetic.errors import ConfigurationError
from hermetic.server.config import CpuSettings, ModelSettings
from hermetic.server.cpu_plan import AUTO_THREADS_LIMIT, Cores, CpuPlan, Place, front_end_spin_us

AUTO = ModelSettings()


def machine(count: int, quota: float | None = None) -> Cores:
    return Cores(tuple(range(count)), quota)


def plan(
    cores: Cores, workers: Sequence[ModelSettings], *, front_ends: int = 1, settings: CpuSettings | None = None
) -> CpuPlan:
    made = CpuPlan(cores, settings or CpuSettings(), front_ends)
    made.begin(workers)
    return made


def places(made: CpuPlan, workers: Sequence[ModelSettings]) -> list[Place]:
    return [made.take(worker) for worker in workers]


def test_on_two_cores_one_thread_no_spinning_no_pinning() -> None:
    for workers in (1, 2, 5):
        made = plan(machine(2), [AUTO] * workers)
        assert places(made, [AUTO] * workers) == [Place(1)] * workers
        assert made.front_end(0) == Place()


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "spinning", "pinned"),
    [
        (1, 1, 1, False, False),
        (4, 1, 3, False, False),
        (4, 3, 1, False, False),
        (6, 1, 3, True, True),
        (16, 1, 13, True, True),
        (16, 2, 6, True, True),
        (64, 1, AUTO_THREADS_LIMIT, True, True),
        (64, 2, AUTO_THREADS_LIMIT, True, True),
        (8, 100, 1, False, False),
    ],
)
def test_workers_share_what_front_ends_leave(
    cores: int, workers: int, threads: int, spinning: bool, pinned: bool
) -> None:
    first = places(plan(machine(cores), [AUTO] * workers), [AUTO] * workers)[0]
    assert (first.threads, first.spinning, bool(first.cores)) == (threads, spinning, pinned)


def test_where_each_can_have_its_own_no_core_is_given_twice() -> None:
    two = ModelSettings(threads=2)
    made = plan(machine(12), [two] * 3, front_ends=2)
    given = [made.front_end(0), made.front_end(1), *places(made, [two] * 3)]
    assert [len(place.cores) for place in given] == [2] * 5
    assert len({core for place in given for core in place.cores}) == 10
    assert all(place.spinning for place in given[2:])


def test_threads_that_a_model_says_are_taken_and_the_others_share_the_rest() -> None:
    four = ModelSettings(threads=4)
    made = plan(machine(8), [four, AUTO])
    assert [place.threads for place in places(made, [four, AUTO])] == [4, 3]
    made = plan(machine(16), [four, AUTO])
    assert [place.threads for place in places(made, [four, AUTO])] == [4, 9]


@pytest.mark.parametrize("quota", [2.0, 2.7, 0.5])
def test_a_quota_counts_as_so_many_cores_and_nothing_is_pinned(quota: float) -> None:
    (place,) = places(plan(machine(64, quota), [AUTO]), [AUTO])
    assert place == Place(1)


def test_a_quota_above_the_cores_is_none() -> None:
    assert machine(4, 8.0).count == 4
    assert machine(4, 8.0).whole


def test_a_worker_that_comes_later_than_the_cores_reach_is_not_pinned_and_does_not_spin() -> None:
    two = ModelSettings(threads=2)
    made = plan(machine(7), [two, two])
    first, second = places(made, [two, two])
    assert first.cores
    late = made.take(two)
    assert (late.threads, late.spinning, late.cores) == (2, False, ())
    made.give_back(second)
    assert made.take(two).cores == second.cores


def test_a_place_that_was_never_pinned_gives_nothing_back() -> None:
    made = plan(machine(2), [AUTO])
    made.give_back(Place(1, cores=(0,)))
    assert made.take(AUTO) == Place(1)


def test_more_workers_later_get_fewer_threads() -> None:
    made = plan(machine(16), [AUTO])
    assert made.take(AUTO).threads == 13
    made.expect([AUTO] * 5)
    assert made.take(AUTO).threads == 2


def test_everything_can_be_said_by_the_operator() -> None:
    settings = CpuSettings(pinning="off", spinning="on", front_end_cores=(0, 3))
    workers = [ModelSettings(threads=2, cores=(4, 5)), ModelSettings(spinning=False)]
    made = plan(machine(64), workers, settings=settings)
    assert made.front_end(0).cores == (0, 3)
    first, second = places(made, workers)
    assert first == Place(2, spinning=True, cores=(4, 5), batches_in_flight=2)
    assert (second.spinning, second.cores) == (False, ())


@pytest.mark.parametrize(("cores", "workers", "batches"), [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 4, 1), (8, 1, 2)])
def test_a_batch_waits_at_a_worker_only_where_it_would_not_take_turns_with_the_front_end(
    cores: int, workers: int, batches: int
) -> None:
    one = ModelSettings(threads=1)
    assert plan(machine(cores), [one] * workers).take(one).batches_in_flight == batches
    assert plan(machine(cores), [one] * workers).take(ModelSettings(batches_in_flight=3)).batches_in_flight == 3


def test_named_cores_are_nobody_elses() -> None:
    workers = [ModelSettings(threads=2, cores=(1, 2)), ModelSettings(threads=2)]
    made = plan(machine(12), workers, settings=CpuSettings(front_end_cores=(0,)))
    first, second = places(made, workers)
    assert second.cores
    assert not set(second.cores) & {0, 1, 2}
    made.give_back(first)
    assert not set(made.take(workers[1]).cores) & {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "worker", "words"),
    [
        ({"pinning": "on"}, {}, 'cpu.pinning: "on" wanted 4 cores'),
        ({"front_end_cores": (7,)}, {}, r"got \[7\]"),
        ({}, {"cores": (0, 9)}, r"got \[9\]"),
    ],
)
def test_what_cannot_hold_is_refused(settings: dict[str, Any], worker: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        plan(machine(2), [ModelSettings(**worker)], settings=CpuSettings(**settings))


def test_the_decisions_can_be_shown() -> None:
    shown = plan(machine(2, 1.5), [AUTO]).describe()
    assert shown == {
        "cores": 2,
        "quota": 1.5,
        "front-ends": 1,
        "threads-per-worker": 1,
        "batches-in-flight": 1,
        "spinning": False,
        "front-end-spin-us": 0,
        "pinned": False,
        "front-end-cores": [[]],
    }


@pytest.mark.parametrize(
    ("cores", "front_ends", "wanted"),
    [(machine(1), 1, 0), (machine(2), 1, 400), (machine(2), 2, 0), (machine(2, 1.5), 1, 0)],
)
def test_a_front_end_waits_actively_where_a_core_is_left(cores: Cores, front_ends: int, wanted: int) -> None:
    assert front_end_spin_us(cores, CpuSettings(), front_ends) == wanted
    assert front_end_spin_us(cores, CpuSettings(front_end_spin_us=0), front_ends) == 0
