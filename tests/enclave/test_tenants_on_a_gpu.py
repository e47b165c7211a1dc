"""Whose batch comes next on a GPU: what is wiped in between, and what a front end gains that lies about it.

The control: what one batch leaves in the arena is still there when the next one of its tenant enters.
"""

import threading
from collections.abc import Iterator

import pytest

from hermetic.enclave import front_end_channels
from hermetic.enclave.batch_frames import STATUS_OK
from tests.enclave.device_double import DeviceDouble
from tests.enclave.worker_on_double import TIMEOUT_S, FrontEnd, Served, described, made

LEFT = 0xA2  # what the first batch's answer is made of
HOUR_MS = 3_600_000


class Scene:
    """Answers of free shape lie in the arena. `found`: whether the first one's was there as each batch entered."""

    def __init__(self, *, synchronous: bool) -> None:
        self.worker = made(DeviceDouble(), synchronous=synchronous, free=True)
        self.served = Served(self.worker, described(answers=-1))
        self.found: list[bool] = []
        self.worker.runtime.before = lambda: self.found.append(LEFT in self.worker.left())

    def ask(self, front_end: FrontEnd, tag: int, tenant: int) -> None:
        """Have one batch answered, by the same steps that `serve` takes."""
        front_end.send(tag, tenant=tenant)
        channels = self.served.channels
        (descriptor,) = [at for at, one in channels._front_ends.items() if one.number == front_end.number]
        channels._serve_one(descriptor)
        channels._answer_all()
        assert front_end.answer()[0].status == STATUS_OK


@pytest.fixture(params=["synchronous", "on the batch's stream"])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(front_end_channels, "IDLE_MS", HOUR_MS)
    scene = Scene(synchronous=request.param == "synchronous")
    yield scene
    scene.served.close()
    scene.worker.runner.close()
    scene.worker.memory.unload()
    assert scene.worker.left() == b""
    assert scene.worker.device.violations == []


def test_between_batches_of_one_tenant_nothing_is_wiped_that_the_runtime_keeps(scene: Scene) -> None:
    front_end = scene.served.front_end(1)
    scene.ask(front_end, 0xA1, tenant=1)
    scene.ask(front_end, 0xB1, tenant=1)
    assert scene.found == [False, True]


@pytest.mark.parametrize("tenants", [(1, 2), (0, 0), (1, 0), (0, 1)])
def test_another_tenants_batch_or_nobodys_finds_nothing(scene: Scene, tenants: tuple[int, int]) -> None:
    front_end = scene.served.front_end(1)
    scene.ask(front_end, 0xA1, tenants[0])
    scene.ask(front_end, 0xB1, tenants[1])
    assert scene.found == [False, False]


def test_a_front_end_that_says_anothers_number_finds_nothing_of_that_ones(scene: Scene) -> None:
    honest, liar = scene.served.front_end(1), scene.served.front_end(2)
    scene.ask(honest, 0xA1, tenant=7)
    scene.ask(liar, 0xB1, tenant=7)
    assert scene.found == [False, False]


def test_a_front_end_that_takes_the_place_of_another_starts_its_numbers_anew(scene: Scene) -> None:
    scene.ask(scene.served.front_end(1), 0xA1, tenant=7)
    scene.ask(scene.served.front_end(1), 0xB1, tenant=7)
    assert scene.found == [False, False]


def test_what_wiping_took_is_told_with_each_batch(scene: Scene) -> None:
    front_end = scene.served.front_end(1)
    ticks = iter(range(0, 10**9, 1000))
    scene.worker.runner._clock = lambda: next(ticks)
    front_end.send(0xA1, tenant=1)
    scene.served.channels.finish()
    done, _ = front_end.answer()
    # One tick each: entering the runtime, which may have to wipe for others, and forgetting the batch.
    assert done.wipe_ns == 2000
    assert done.wipe_ns <= done.infer_ns + done.output_ns


def test_when_nobody_asks_any_more_what_the_runtime_keeps_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_end_channels, "IDLE_MS", 1)
    scene = Scene(synchronous=True)
    front_end = scene.served.front_end(1)
    wiped = threading.Event()
    wipe = scene.worker.runner.wipe_kept

    def wipe_and_tell() -> None:
        wipe()
        wiped.set()

    monkeypatch.setattr(scene.worker.runner, "wipe_kept", wipe_and_tell)
    serving = threading.Thread(target=scene.served.channels.serve, args=(lambda: False,))
    serving.start()
    front_end.send(0xA1, tenant=1)
    front_end.answer()
    assert wiped.wait(TIMEOUT_S)
    scene.served.supervisor.send(b"stop")
    serving.join(TIMEOUT_S)
    assert scene.worker.runner.is_clean
    assert LEFT not in scene.worker.left()
    scene.served.close()
    assert scene.worker.device.violations == []
