"""How tensors travel to a GPU that is a double: directly, staged or joined; and what a front end gains meanwhile."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hermetic.enclave import device_runner
from hermetic.enclave.batch_frames import STATUS_FAILED, STATUS_OK, Batch, Done, Tensor, decode_done
from hermetic.enclave.gpus import Transfers
from hermetic.enclave.host_memory import HostBlock
from hermetic.enclave.model_description import ModelDescription
from hermetic.enclave.runtimes.interface_on_device import Launched
from hermetic.errors import DeviceError
from tests.enclave.device_double import DeviceDouble
from tests.enclave.sealed_models import spec
from tests.enclave.worker_on_double import ROWS, Served, Worker, described, made

WIDTHS = (100, 7, 40)  # bytes of a row of each tensor; the second is BOOL
TRUE_OF_NO_RUNTIME = 0xE0  # a byte of BOOL that is neither 0 nor 1
ALL_BYTES = ROWS * sum(WIDTHS)


def three() -> ModelDescription:
    kinds = ("UINT8", "BOOL", "UINT8")
    return described().model_copy(
        update={
            "inputs": tuple(spec(f"x{at}", *pair) for at, pair in enumerate(zip(kinds, WIDTHS, strict=True))),
            "outputs": tuple(spec(f"y{at}", "UINT8", width) for at, width in enumerate(WIDTHS)),
        }
    )


@dataclass
class Scene:
    """A worker whose model has three inputs and three outputs, each output its input and one more."""

    worker: Worker

    @property
    def device(self) -> DeviceDouble:
        return self.worker.device

    def write(self, tag: int, rows: int = ROWS, buffer: int = 0) -> Batch:
        contents = [bytes([value]) * rows * width for value, width in zip((tag, 1, tag + 2), WIDTHS, strict=True)]
        for at, content in enumerate(contents):
            self.view(at, buffer)[: len(content)] = content
        shapes = [Tensor(len(content), (rows, width)) for content, width in zip(contents, WIDTHS, strict=True)]
        return Batch(buffer, 0, tuple(shapes), 1)

    def view(self, at: int, buffer: int = 0) -> memoryview:
        buffers = self.worker.buffers
        return buffers.region(buffer, buffers.layout.inputs[at])[0]

    def answers(self, rows: int = ROWS, buffer: int = 0) -> list[bytes]:
        buffers = self.worker.buffers
        regions = zip(buffers.layout.outputs, WIDTHS, strict=True)
        return [bytes(buffers.region(buffer, region)[0][: rows * width]) for region, width in regions]

    def ask(self, tag: int, rows: int = ROWS) -> Done:
        return decode_done(self.worker.runner.run(self.write(tag, rows), self.worker.buffers))

    def right(self, tag: int, rows: int = ROWS) -> bool:
        values = zip((tag + 1, 2, tag + 3), WIDTHS, strict=True)
        return self.answers(rows) == [bytes([value]) * rows * width for value, width in values]

    def count(self, name: str) -> int:
        return self.device.names().count(name)

    def end(self) -> None:
        self.worker.runner.close()
        self.worker.memory.unload()
        assert self.worker.left() == b""
        assert self.device.violations == []


def scene_of(device: DeviceDouble, transfers: Transfers = "separate", *, synchronous: bool = False) -> Scene:
    return Scene(made(device, synchronous=synchronous, description=three(), transfers=transfers))


@pytest.fixture(params=["synchronous", "on the batch's stream"])
def direct(request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = scene_of(DeviceDouble(), synchronous=request.param == "synchronous")
    scene.worker.runner.attach(scene.worker.buffers)
    yield scene
    scene.end()
    assert scene.device.shared == {}, "unlocked at unload, whoever has forgotten it"


@pytest.fixture(params=["synchronous", "on the batch's stream"])
def joined(request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = scene_of(DeviceDouble(), "joined", synchronous=request.param == "synchronous")
    scene.worker.runner.attach(scene.worker.buffers)
    yield scene
    scene.end()


def test_numbers_go_straight_from_and_to_what_is_shared(direct: Scene) -> None:
    done = direct.ask(0xA1)
    assert (done.status, done.unlocked_bytes) == (STATUS_OK, 0)
    assert direct.right(0xA1)
    assert direct.count("allocate_host") == 1, "for BOOL alone"
    assert (direct.count("copy_in"), direct.count("copy_out")) == (3, 3)


def test_a_bool_is_put_right_where_the_front_end_cannot_spoil_it_again(direct: Scene) -> None:
    batch = direct.write(0xA1)
    direct.view(1)[:] = bytes([TRUE_OF_NO_RUNTIME]) * len(direct.view(1))
    pending = direct.worker.runner.start(batch, direct.worker.buffers, b"a")
    assert set(direct.view(1)) == {TRUE_OF_NO_RUNTIME}, "a worker puts nothing right in what is not its own"
    direct.view(1)[:] = bytes([0xE1]) * len(direct.view(1))  # before the device has copied anything
    assert decode_done(direct.worker.runner.finish(pending)).status == STATUS_OK
    assert direct.right(0xA1)


def test_a_front_end_that_writes_while_the_device_copies_changes_its_own_rows_and_nothing_else(direct: Scene) -> None:
    pending = direct.worker.runner.start(direct.write(0xA1), direct.worker.buffers, b"a")
    direct.view(0)[:] = bytes([0xC1]) * len(direct.view(0))
    done = decode_done(direct.worker.runner.finish(pending))
    assert (done.status, done.outputs) == (STATUS_OK, tuple(Tensor(ROWS * width, (ROWS, width)) for width in WIDTHS))
    assert direct.answers()[1:] == [bytes([2]) * ROWS * WIDTHS[1], bytes([0xA4]) * ROWS * WIDTHS[2]]


def test_a_model_that_answers_more_than_there_is_room_for_writes_nothing(direct: Scene) -> None:
    """As a library might that was broken by its model: the place after it is another batch's."""
    runtime = direct.worker.runtime
    launch = runtime.launch

    def boast(*arguments: object) -> Launched:
        launched = launch(*arguments)  # type: ignore[arg-type]
        return launched._replace(answers=tuple(answer._replace(nbytes=1 << 20) for answer in launched.answers))

    runtime.launch = boast  # type: ignore[method-assign, assignment]
    done = direct.ask(0xA1)
    assert (done.status, "wanted at most 400 bytes, got 1048576" in done.text) == (STATUS_FAILED, True)
    assert not direct.count("copy_out")
    del runtime.launch


def test_joined_there_is_one_transfer_each_way_and_one_wipe(joined: Scene) -> None:
    joined.ask(0xA1)
    joined.device.events.clear()
    done = joined.ask(0xB1)
    assert (done.status, done.unlocked_bytes) == (STATUS_OK, 0)
    assert joined.right(0xB1)
    assert (joined.count("copy_in"), joined.count("copy_out"), joined.count("lock_host")) == (1, 1, 0)
    on_streams = [event for event in joined.device.events if event.name == "fill"]
    if not joined.worker.runtime.synchronous:
        assert len(on_streams) == 2


def test_joined_batches_of_all_sizes_are_answered_and_leave_nothing(joined: Scene) -> None:
    for rows in (1, 4, 2, 3):
        assert joined.ask(0xA1, rows).status == STATUS_OK
        assert joined.right(0xA1, rows)
        assert not any(joined.device.host_bytes())


def test_joined_a_bool_is_put_right_too(joined: Scene) -> None:
    batch = joined.write(0xA1)
    joined.view(1)[:] = bytes([TRUE_OF_NO_RUNTIME]) * len(joined.view(1))
    assert decode_done(joined.worker.runner.run(batch, joined.worker.buffers)).status == STATUS_OK
    assert joined.right(0xA1)


@pytest.mark.parametrize("transfers", ["joined", "separate"])
def test_where_nothing_can_be_page_locked_batches_are_answered_and_that_is_told(transfers: Transfers) -> None:
    scene = scene_of(DeviceDouble(locks=False), transfers)
    scene.worker.runner.attach(scene.worker.buffers)
    done = scene.ask(0xA1)
    assert done.status == STATUS_OK
    assert done.unlocked_bytes >= 2 * ALL_BYTES
    assert scene.right(0xA1)
    assert not any(scene.device.host_bytes())
    scene.end()


def test_what_is_too_large_to_be_locked_is_staged_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_runner, "LOCKED_LIMIT", 0)
    scene = scene_of(DeviceDouble())
    scene.worker.runner.attach(scene.worker.buffers)
    done = scene.ask(0xA1)
    assert (done.status, done.unlocked_bytes) == (STATUS_OK, 2 * ALL_BYTES - ROWS * WIDTHS[1])  # a BOOL is meant to be
    assert scene.right(0xA1)
    scene.end()


class Watching(DeviceDouble):
    """Notes at each unlocking whether the memory was mapped then."""

    def __init__(self) -> None:
        super().__init__()
        self.unlocked: dict[int, bool] = {}

    def unlock_host(self, address: int) -> None:
        self.unlocked[address] = is_mapped(address)
        super().unlock_host(address)


def is_mapped(address: int) -> bool:
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


@pytest.mark.parametrize("synchronous", [True, False])
def test_memory_of_a_front_end_that_leaves_is_let_go_when_its_batches_are_done(synchronous: bool) -> None:
    device = Watching()
    served = Served(made(device, synchronous=synchronous), described())
    front_end, other = served.front_end(1), served.front_end(2)
    ((descriptor, leaving),) = [each for each in served.channels._front_ends.items() if each[1].number == 1]
    address, _ = leaving.buffers.extent
    for buffer, tag in enumerate((0xA1, 0xA5)):
        front_end.send(tag, buffer, tenant=1)
        served.channels._serve_one(descriptor)
    front_end.channel.close()
    served.channels._serve_one(descriptor)
    assert descriptor not in served.channels._front_ends
    assert device.unlocked == {}, "two batches are still under way there"
    served.channels._answer_all()
    assert device.unlocked == {address: True}
    names = device.names()
    unlocked = names.index("unlock_host")
    assert max(at for at, name in enumerate(names) if name in ("copy_in", "copy_out")) < unlocked
    assert device.violations == []
    other.send(0xB1, tenant=1)
    served.channels.finish()
    assert other.answer()[0].status == STATUS_OK
    assert (device.shared, list(device.unlocked.values())) == ({}, [True, True])
    served.close()


def test_memory_that_cannot_be_unlocked_stays_mapped_and_the_worker_ends() -> None:
    device = DeviceDouble()
    served = Served(made(device, synchronous=True), described())
    served.front_end(1)
    (attached,) = served.channels._front_ends.values()
    device._fail_at = device._calls + 1  # the wait succeeds, the unlocking does not
    with pytest.raises(DeviceError, match="unlock_host fails"):
        served.channels.finish()
    assert len(attached.buffers.extent) == 2
    assert attached.buffers.region(0, attached.buffers.layout.inputs[0])[0].nbytes
    with pytest.raises(DeviceError, match="unlock_host fails"):
        served.worker.memory.check()
    served.channels._front_ends.clear()
    served.close()


class FullHost(DeviceDouble):
    """A machine whose main memory is full: nothing can be locked, and nothing else be had."""

    full = True

    def allocate_host(self, nbytes: int, *, locked: bool = True) -> HostBlock:
        if self.full:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return super().allocate_host(nbytes, locked=locked)


@pytest.mark.parametrize("transfers", ["joined", "separate"])
def test_no_main_memory_for_staging_is_an_answer_too(transfers: Transfers) -> None:
    device = FullHost(locks=False)
    scene = scene_of(device, transfers)
    scene.worker.runner.attach(scene.worker.buffers)
    assert scene.ask(0xA1).status == STATUS_FAILED
    device.full = False
    assert scene.ask(0xB1).status == STATUS_OK
    assert scene.right(0xB1)
    scene.end()


@pytest.mark.parametrize("transfers", ["joined", "separate"])
@pytest.mark.parametrize("synchronous", [True, False])
def test_no_room_at_any_allocation_is_an_answer_whichever_way(transfers: Transfers, synchronous: bool) -> None:
    device = DeviceDouble()
    scene = scene_of(device, transfers, synchronous=synchronous)
    before = device.allocations
    scene.ask(0xA1)
    needed = device.allocations - before
    assert needed >= 2
    for number in range(before, before + needed):
        scene = scene_of(DeviceDouble(full_at=number), transfers, synchronous=synchronous)
        scene.ask(0xA1)
        assert scene.ask(0xB1).status == STATUS_OK
        assert scene.right(0xB1)
        scene.end()


@pytest.mark.parametrize("transfers", ["joined", "separate"])
@pytest.mark.parametrize("synchronous", [True, False])
def test_whatever_fails_nothing_is_unmapped_or_left_that_the_device_may_still_use(
    transfers: Transfers, synchronous: bool
) -> None:
    begun = DeviceDouble()
    first = len(scene_of(begun, transfers, synchronous=synchronous).device.events)
    answered = told = 0
    for fail_at in range(first, first + 45):
        device = DeviceDouble(fail_at=fail_at)
        scene = scene_of(device, transfers, synchronous=synchronous)
        try:
            scene.worker.runner.attach(scene.worker.buffers)
            answered += scene.ask(0xA1).status == STATUS_OK
            scene.worker.runner.detach(scene.worker.buffers)
            scene.worker.runner.close()
            scene.worker.memory.unload()
        except DeviceError:
            told += 1
        assert not any(device.host_bytes()), fail_at
        assert device.violations == [], fail_at
        assert device.broken or (scene.worker.left() == b"" and not device.shared), fail_at
    assert answered >= 8
    assert told >= 8
