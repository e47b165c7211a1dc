"""Workers that take too long, among doubles: who is told, what is restarted, and from when on nothing is."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from hermetic.enclave.pulse import Observation
from hermetic.errors import NotReadyError, WorkerStoppedError
from hermetic.server.config import ModelSettings
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import SealedFile
from hermetic.server.messages import LinkLost, ModelReady, ModelStop, WorkerStopped
from hermetic.server.repository import Slot
from tests.server.keeping import FrontEndDouble, Keeping, Told, WorkerDouble
from tests.server.test_repository import sealed

BUSY = Observation(1, 0.0)
SETTINGS = ModelSettings(batch_timeout_s=0.5, stops_allowed=1)


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeping]:
    monkeypatch.setattr("hermetic.server.generation.RESTART_DELAYS_S", (0.0,))
    keeping = Keeping()
    yield keeping
    keeping.loop.close()


def file_of(**configuration: Any) -> SealedFile:
    return sealed(settings=SETTINGS, **configuration)


def load(keeping: Keeping, file: SealedFile) -> tuple[Slot, Told]:
    slot, told = keeping.repository.put(file), Told()
    keeping.keeper.load(slot, file, file.manifest.configuration, told)
    keeping.settle()
    return slot, told


def make_stuck(keeping: Keeping, worker: WorkerDouble) -> None:
    """It says that it is in a batch, and says so until it is ended."""
    worker.seen = BUSY
    keeping.turn_until(lambda: bool(worker.ended))


def readies(front_end: FrontEndDouble) -> int:
    return len(front_end.told(ModelReady))


def test_front_ends_hear_why_before_the_worker_is_ended_and_another_one_comes(keeping: Keeping) -> None:
    front_ends = [keeping.front_end(pid) for pid in (1, 2)]
    slot, _ = load(keeping, file_of(instances=2))
    stuck, other = keeping.loader.workers
    make_stuck(keeping, stuck)
    for front_end in front_ends:
        (told,) = front_end.told(WorkerStopped)
        assert "batch_timeout_s: wanted at most 0.5 s for a batch" in told.reason
    keeping.turn_until(lambda: readies(front_ends[0]) == 3)
    assert (slot.state, other.ended, len(keeping.loader.workers)) == ("READY", "", 3)
    assert keeping.recorded("worker.stopped")[0]["limit"] == "batch_timeout_s"
    assert "ended by the watchdog" in keeping.recorded("worker.lost")[0]["reason"]
    assert [(one.limit, one.count) for one in keeping.keeper.stops.stopped()] == [("batch_timeout_s", 1)]


def test_a_worker_that_beats_or_rests_is_left_alone(keeping: Keeping) -> None:
    load(keeping, file_of(instances=2))
    beating, idle = keeping.loader.workers
    for beats in range(1, 15):
        beating.seen = Observation(2 * beats + 1, 0.1 * beats)
        keeping.loop.turn()
    assert (beating.ended, idle.ended) == ("", "")


def test_no_word_of_a_front_end_has_a_worker_stopped(keeping: Keeping) -> None:
    """What it says of a link costs that link, within the bounds of the ledger; it is no stop, and no quarantine."""
    front_end = keeping.front_end(1)
    slot, _ = load(keeping, file_of())
    for count in range(1, 3):
        keeping.turn_until(lambda count=count: readies(front_end) == count)  # type: ignore[misc]
        link = front_end.told(ModelReady)[-1].link
        lie = LinkLost(name="iris", version=1, generation=1, instance=0, link=link, reason="no answer in 60 s, I swear")
        keeping.keeper.link_lost(cast(FrontEnd, front_end), lie)
    assert keeping.recorded("worker.stopped") == []
    assert keeping.loader.workers[0].ended == ""
    assert slot.state == "READY"


def test_what_a_front_end_says_of_the_links_of_a_stopped_worker_blames_nobody(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    load(keeping, file_of())
    ready = front_end.told(ModelReady)[0]
    make_stuck(keeping, keeping.loader.workers[0])
    lost = LinkLost(name="iris", version=1, generation=1, instance=0, link=ready.link, reason="stopped")
    keeping.keeper.link_lost(cast(FrontEnd, front_end), lost)
    assert keeping.recorded("link.lost") == []


def test_too_many_stops_and_the_version_is_out_with_all_its_workers(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    slot, _ = load(keeping, file_of(instances=2))
    make_stuck(keeping, keeping.loader.workers[0])
    keeping.turn_until(lambda: len(keeping.loader.workers) == 3 and readies(front_end) == 3)
    make_stuck(keeping, keeping.loader.workers[1])
    keeping.turn_until(lambda: slot.state != "READY")
    assert [frame.generation for frame in front_end.told(ModelStop)] == [1]
    keeping.keeper.stopped_at(1, "iris", 1, 1)
    keeping.settle()
    assert [worker.ended for worker in keeping.loader.workers] == ["crashed", "crashed", "unloaded"]
    assert slot.entry.state == "UNAVAILABLE"
    assert slot.entry.reason.startswith("quarantined: its workers were ended more than 1 times; the last: batch_")
    assert keeping.recorded("model.unloaded")[0]["wiped"] is False
    assert len(keeping.recorded("model.quarantined")) == 1
    assert keeping.keeper.stops.holds(slot.file)


def put_out(keeping: Keeping, file: SealedFile) -> Slot:
    slot, _ = load(keeping, file)
    for count in (1, 2):
        make_stuck(keeping, keeping.loader.workers[-1])
        if count == 1:
            keeping.turn_until(lambda: len(keeping.loader.workers) == 2)
            keeping.settle()
    keeping.turn_until(lambda: slot.state == "UNAVAILABLE")
    return slot


def test_what_is_out_is_loaded_again_only_by_who_may_or_as_another_file(keeping: Keeping) -> None:
    file = file_of()
    slot = put_out(keeping, file)
    _, told = load(keeping, file)
    assert isinstance(told.outcomes[0], NotReadyError)
    assert "version 1 is quarantined" in str(told.outcomes[0])
    assert slot.entry.reason.startswith("quarantined"), "the reason stays"
    _, told = load(keeping, file_of(instances=2))
    assert told.outcomes == [None], "another file of the same version"
    keeping.keeper.unload(slot, "unloaded", Told())
    keeping.settle()
    keeping.keeper.stops.lift(file)
    _, told = load(keeping, file)
    assert told.outcomes == [None]


def test_loads_that_take_too_long_count_as_well(keeping: Keeping) -> None:
    late = WorkerStoppedError("worker 7: wanted Opened within 120 s, got nothing")
    passing: list[Slot] = []
    keeping.keeper.unloading.on_passing = passing.append
    keeping.loader.errors += [late, late]
    slot, told = load(keeping, file_of())
    assert isinstance(told.outcomes[0], WorkerStoppedError)
    assert passing == [slot], "it is tried again"
    slot, told = load(keeping, slot.file or file_of())
    assert isinstance(told.outcomes[0], NotReadyError)
    assert "quarantined: its workers were ended more than 1 times; the last: worker 7" in slot.entry.reason
    assert passing == [slot], "and not once more"
    assert [(one.limit, one.count) for one in keeping.keeper.stops.stopped()] == [("load_timeout_s", 2)]


def test_loads_that_take_too_much_cpu_are_counted_by_that_limit(keeping: Keeping) -> None:
    busy = WorkerStoppedError("load_cpu_s: wanted at most 7 CPU seconds for the load, got 8", limit="load_cpu_s")
    keeping.loader.errors += [busy, busy]
    for _ in range(2):
        load(keeping, file_of())
    assert [(one.limit, one.count) for one in keeping.keeper.stops.stopped()] == [("load_cpu_s", 2)]
    assert {record["limit"] for record in keeping.recorded("worker.stopped")} == {"load_cpu_s"}


def test_a_restart_that_takes_too_long_takes_the_others_out_too(keeping: Keeping) -> None:
    front_end = keeping.front_end(1)
    slot, _ = load(keeping, file_of(instances=2))
    keeping.loader.errors += [WorkerStoppedError("late"), WorkerStoppedError("late")]
    keeping.loader.workers[0].crash()
    keeping.turn_until(lambda: bool(front_end.told(ModelStop)))
    keeping.keeper.stopped_at(1, "iris", 1, 1)
    keeping.settle()
    assert slot.entry.reason.startswith("quarantined")
    assert len(keeping.recorded("worker.stopped")) == 2


def test_a_crash_is_no_stop(keeping: Keeping) -> None:
    slot, _ = load(keeping, file_of())
    for count in range(1, 5):
        keeping.loader.workers[-1].crash()
        keeping.turn_until(lambda count=count: len(keeping.loader.workers) == count + 1)  # type: ignore[misc]
        keeping.settle()
    assert slot.state == "READY"
    assert keeping.keeper.stops.stopped() == ()
