"""What a worker may take, and from when on it took too much: by what the supervisor sees itself."""

from collections.abc import Iterator, Sequence

import pytest

from hermetic.enclave.pulse import Observation
from hermetic.server.config import ModelSettings
from hermetic.server.event_loop import EventLoop
from hermetic.server.watchdog import (
    LOOK_S,
    LOOKS_COUNTED,
    SHARE_WINDOW_S,
    Bounds,
    Overrun,
    Watch,
    Watchdog,
    bounds_of,
    load_cpu_s,
)

BOUNDS = Bounds(batch_s=10, batch_cpu_s=15, idle_cpu_s=5, threads=2)
IDLE, BUSY = 0, 1


def looks(watch: Watch, seen: Sequence[tuple[int, float]], *, every: float = LOOK_S) -> tuple[int, Overrun] | None:
    """Look again and again; returns when something was wrong, and what. `seen`: pulse, and CPU seconds since before."""
    cpu = 0.0
    for at, (beats, used) in enumerate(seen):
        cpu += used
        overrun = watch.look(Observation(beats, cpu), 1000 + at * every)
        if overrun is not None:
            return at, overrun
    return None


def test_a_turn_that_takes_too_long_by_the_clock() -> None:
    found = looks(Watch(BOUNDS), [(BUSY, 0.0)] * 100)
    assert found is not None
    at, overrun = found
    assert at == 10 / LOOK_S + 1
    assert str(overrun) == "batch_timeout_s: wanted at most 10 s for a batch, got 10.2"


def test_a_turn_that_takes_too_much_cpu_is_ended_sooner() -> None:
    found = looks(Watch(BOUNDS), [(BUSY, 2 * LOOK_S)] * 100)
    assert found is not None
    assert found[0] < 10 / LOOK_S
    assert found[1].limit == "batch_cpu_s"


def test_turns_that_follow_each_other_are_no_long_turn() -> None:
    assert looks(Watch(BOUNDS), [(2 * at + 1, LOOK_S) for at in range(10_000)]) is None


def test_an_idle_worker_may_idle_for_ever_but_not_compute() -> None:
    assert looks(Watch(BOUNDS), [(IDLE, 0.0001)] * 10_000) is None
    found = looks(Watch(BOUNDS), [(IDLE, LOOK_S)] * 100)
    assert found is not None
    assert found[1].limit == "idle_cpu_s"


def test_more_cores_than_there_are_threads_for_even_where_the_pulse_beats() -> None:
    """A worker that is taken over beats as it likes; what the kernel counts it cannot beat."""
    count = int(SHARE_WINDOW_S / LOOK_S) + 2
    assert looks(Watch(BOUNDS), [(2 * at + 1, 3.0 * LOOK_S) for at in range(3 * count)]) is None
    found = looks(Watch(BOUNDS), [(2 * at + 1, 3.5 * LOOK_S) for at in range(count)])
    assert found is not None
    assert found[1].limit == "threads"


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """A supervisor that was stopped, or a machine that was paused, must not find everybody guilty."""
    watch = Watch(BOUNDS)
    watch.look(Observation(BUSY, 0.0), 0.0)
    assert watch.look(Observation(BUSY, 0.0), 3600.0) is None
    found = looks(Watch(BOUNDS), [(BUSY, 0.0)] * 100, every=3600)
    assert found is not None
    assert found[0] == 10 / (LOOKS_COUNTED * LOOK_S) + 1


def test_auto_is_what_the_threads_can_use() -> None:
    assert bounds_of(ModelSettings(), 4) == Bounds(60, 240, 10, 4)
    assert bounds_of(ModelSettings(batch_cpu_s=7), 4).batch_cpu_s == 7
    assert load_cpu_s(ModelSettings(), 4) == 480
    assert load_cpu_s(ModelSettings(load_cpu_s=7), 4) == 7


@pytest.mark.parametrize("key", ["load_cpu_s", "batch_timeout_s", "batch_cpu_s", "idle_cpu_s"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_there_is_no_way_to_be_without_a_watchdog(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        ModelSettings.model_validate({key: value})


class Subject:
    """A worker that shows what it is told to."""

    def __init__(self) -> None:
        self.beats = 0
        self.gone = False

    def observe(self) -> Observation:
        if self.gone:
            raise ProcessLookupError
        return Observation(self.beats, 0.0)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_each_worker_is_judged_alone_and_told_once(loop: EventLoop) -> None:
    watchdog = Watchdog(loop)
    told: list[tuple[str, Overrun]] = []
    subjects = {name: Subject() for name in ("stuck", "beating", "gone", "forgotten")}
    bounds = Bounds(batch_s=3 * LOOK_S, batch_cpu_s=1, idle_cpu_s=1, threads=1)
    for name, subject in subjects.items():
        subject.beats = 1
        watchdog.watch(subject, bounds, lambda overrun, name=name: told.append((name, overrun)))  # type: ignore[misc]
    subjects["gone"].gone = True
    watchdog.forget(subjects["forgotten"])
    for _ in range(12):
        loop.turn()
        subjects["beating"].beats += 2
    assert [name for name, _ in told] == ["stuck"]
