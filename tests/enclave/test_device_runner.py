"""Batches on a GPU that is a double: two at a time, each answered with its own, and nothing of any is left."""

import mmap
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hermetic.enclave.batch_frames import (
    STATUS_FAILED,
    STATUS_FULL,
    STATUS_OK,
    STATUS_REFUSED,
    Batch,
    Tensor,
    decode_done,
)
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes.interface_on_device import DeviceRuntime
from hermetic.errors import DeviceError
from tests.enclave.device_double import DeviceDouble, TorchCudaDouble
from tests.enclave.worker_on_double import COLUMNS, ROWS, TIMEOUT_S, Served, Worker, described, made
from tests.hardware.onnx_by_hand import relu_of_product

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

A, B = b"alpha", b"beta"


@pytest.fixture(params=["synchronous", "on the batch's stream"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    worker = made(DeviceDouble(), synchronous=request.param == "synchronous")
    yield worker
    assert worker.device.violations == []


@pytest.fixture
def streaming() -> Iterator[Worker]:
    worker = made(DeviceDouble(), synchronous=False)
    yield worker
    assert worker.device.violations == []


def at(worker: Worker, name: str, stream: int | None = None) -> list[int]:
    """Where in the record calls of this name are."""
    return [
        place
        for place, event in enumerate(worker.device.events)
        if event.name == name and (stream is None or event.stream == stream)
    ]


def test_a_batch_is_answered_and_nothing_of_it_is_left(worker: Worker) -> None:
    assert worker.ask(0xA1).status == STATUS_OK
    assert not worker.device.host_bytes().strip(b"\0")
    worker.runner.close()
    worker.memory.unload()
    assert worker.left() == b""


@pytest.mark.parametrize("synchronous", [True, False])
def test_an_output_whose_shape_nobody_knows_comes_from_the_arena_and_goes_back_there(synchronous: bool) -> None:
    worker = made(DeviceDouble(), synchronous=synchronous, free=True)
    for tag in (0xA1, 0xB1):
        assert worker.answered(worker.runner.finish(worker.start(0, tag)), tag)
    assert 0xA2 not in worker.left()  # the next batch, of an unknown tenant, has found it wiped
    worker.runner.close()
    worker.memory.unload()
    assert worker.left() == b""
    assert worker.device.violations == []


def test_of_one_tenant_two_are_computed_at_a_time(streaming: Worker) -> None:
    first, second = streaming.start(0, 0xA1, A), streaming.start(1, 0xA5, A)
    assert len(at(streaming, "compute")) == 2
    streams = [streaming.device.events[place].stream for place in at(streaming, "compute")]
    assert len(set(streams)) == 2
    assert not at(streaming, "wait", streams[0]), "nobody has waited for the first one yet"
    assert streaming.answered(streaming.runner.finish(first), 0xA1)
    assert streaming.answered(streaming.runner.finish(second), 0xA5)


def test_where_the_runtime_has_its_own_stream_the_next_inputs_travel_before_it_computes() -> None:
    worker = made(DeviceDouble(), synchronous=True)
    first, second = worker.start(0, 0xA1), worker.start(1, 0xB1)
    assert len(at(worker, "copy_in")) == 2
    assert not at(worker, "compute")
    assert worker.answered(worker.runner.finish(first), 0xA1)
    assert worker.answered(worker.runner.finish(second), 0xB1)
    assert worker.device.violations == []


@pytest.mark.parametrize("tenants", [(A, B), (None, None), (A, None), (None, A)])
def test_of_different_tenants_the_second_enters_when_the_first_is_wiped(
    streaming: Worker, tenants: tuple[bytes | None, bytes | None]
) -> None:
    first, second = streaming.start(0, 0xA1, tenants[0]), streaming.start(1, 0xB1, tenants[1])
    assert len(at(streaming, "copy_in")) == 2, "its inputs travel already"
    assert len(at(streaming, "compute")) == 1
    assert streaming.answered(streaming.runner.finish(first), 0xA1)
    computed, filled = at(streaming, "compute"), at(streaming, "fill")
    assert filled[0] < computed[1], "wiped, and only then let in; before it is asked for"
    assert not {0xA1, 0xA2} & set(streaming.left())
    assert streaming.answered(streaming.runner.finish(second), 0xB1)


def test_a_third_is_not_taken(worker: Worker) -> None:
    worker.start(0, 0xA1)
    worker.start(1, 0xB1)
    assert not worker.runner.has_room
    with pytest.raises(DeviceError, match="at most 2"):
        worker.start(0, 0xC1)


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_no_room_at_any_allocation_is_an_answer_and_the_next_batch_runs(synchronous: bool, free: bool) -> None:
    device = DeviceDouble()
    worker = made(device, synchronous=synchronous, free=free)
    before = device.allocations
    worker.ask(0xA1)
    needed = device.allocations - before
    assert needed >= 2
    for number in range(before, before + needed):
        device = DeviceDouble(full_at=number)
        worker = made(device, synchronous=synchronous, free=free)
        statuses = [worker.ask(tag).status for tag in (0xA1, 0xB1)]
        assert statuses[-1] == STATUS_OK
        assert statuses[0] in (STATUS_FULL, STATUS_OK)  # the arena makes room for itself and tries again
        assert not device.host_bytes().strip(b"\0")
        worker.runner.close()
        worker.memory.unload()
        assert worker.left() == b""
        assert device.violations == []


def test_beyond_the_models_budget_is_an_answer_too() -> None:
    device = DeviceDouble()
    worker = made(device, synchronous=True, free=True)
    worker.runtime.arena._limit = 512
    done = worker.ask(0xA1)
    assert (done.status, "wanted at most 512 bytes for this model" in done.text) == (STATUS_FULL, True)
    worker.runtime.arena._limit = 64 << 10
    assert worker.ask(0xA1).status == STATUS_OK


@pytest.mark.parametrize("synchronous", [True, False])
def test_whatever_fails_it_is_answered_or_ends_the_worker_and_staging_is_wiped(synchronous: bool) -> None:
    begun = DeviceDouble()
    first = len(made(begun, synchronous=synchronous).device.events)
    told = 0
    for fail_at in range(first, first + 25):
        device = DeviceDouble(fail_at=fail_at)
        worker = made(device, synchronous=synchronous)
        try:
            told += worker.ask(0xA1).status != STATUS_OK
        except DeviceError:
            told += 1
        assert not device.host_bytes().strip(b"\0"), fail_at
        assert device.violations == [], fail_at
    assert told >= 8


def test_a_runtime_that_raises_fails_its_batch_alone(worker: Worker) -> None:
    def fail() -> None:
        raise RuntimeError(f"{0xA1:#x} was in your batch")

    worker.runtime.before = fail
    done = worker.ask(0xA1)
    assert (done.status, done.text) == (STATUS_FAILED, "the runtime could not run this batch (RuntimeError)")
    assert 0xA1 not in worker.left()
    worker.runtime.before = lambda: None
    assert worker.ask(0xA1).status == STATUS_OK


def test_a_shape_that_is_not_the_models_is_refused_and_nothing_reaches_the_device(worker: Worker) -> None:
    pending = worker.runner.start(Batch(0, 0, (Tensor(300, (3, 50, 2)),)), worker.buffers)
    assert decode_done(worker.runner.finish(pending)).status == STATUS_REFUSED
    assert not at(worker, "copy_in")
    assert worker.ask(0xA1).status == STATUS_OK


def test_each_stream_is_prepared_before_a_batch_comes(worker: Worker) -> None:
    assert len(set(worker.runtime.prepared)) == 2


def test_a_front_end_has_its_batches_answered_in_order(worker: Worker) -> None:
    served = Served(worker, described())
    front_end = served.front_end(1, buffers=3)  # one more than are under way at a time
    tags = (0xA1, 0xB1, 0xC1)
    for buffer, tag in enumerate(tags):
        front_end.send(tag, buffer)
    serving = threading.Thread(target=served.channels.serve, args=(lambda: False,))
    serving.start()
    for buffer, tag in enumerate(tags):
        done, content = front_end.answer()
        assert (done.buffer, done.status) == (buffer, STATUS_OK)
        assert content == bytes([tag + 1]) * ROWS * COLUMNS
    served.supervisor.send(b"stop")
    serving.join(TIMEOUT_S)
    assert not serving.is_alive()
    assert not served.wrist.observe(os.getpid()).in_turn
    served.close()


WEIGHTS = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)


def onnx_on_double(device: DeviceDouble, memory: DeviceMemory) -> DeviceRuntime:
    import onnxruntime as ort

    from hermetic.enclave.runtime_caches import Arena
    from hermetic.enclave.runtimes.onnx_cuda import OnnxOnDevice
    from hermetic.enclave.runtimes.onnx_session import OpenGraph

    session = ort.InferenceSession(relu_of_product(WEIGHTS), providers=["CPUExecutionProvider"])
    return OnnxOnDevice(OpenGraph(session, (), frozenset()), Arena(memory, 1 << 20), where="cpu")


def torch_on_double(device: DeviceDouble, memory: DeviceMemory) -> DeviceRuntime:
    import torch

    from hermetic.enclave.runtimes.torch_cuda import TorchOnDevice

    weights = torch.from_numpy(WEIGHTS)
    return TorchOnDevice(lambda x: torch.relu(x @ weights), TorchCache(TorchCudaDouble(device)), "cpu")


@pytest.mark.parametrize("load", [onnx_on_double, torch_on_double])
def test_the_libraries_compute_where_the_device_has_a_batch(
    load: Callable[[DeviceDouble, DeviceMemory], DeviceRuntime],
) -> None:
    device = DeviceDouble()
    memory = DeviceMemory(device)
    description = described("FP32", 8, 4)
    runner = DeviceRunner(load(device, memory), description, memory)
    places = layout(description, 2, 4096)
    buffers = SharedBuffers(mmap.mmap(-1, places.size), places)
    for rows in (1, 4, 1):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        buffers.region(0, places.inputs[0])[0][: x.nbytes] = x.tobytes()
        done = decode_done(runner.run(Batch(0, 0, (Tensor(x.nbytes, (rows, 8)),)), buffers))
        assert (done.status, done.outputs) == (STATUS_OK, (Tensor(16 * rows, (rows, 4)),)), done.text
        y = np.frombuffer(bytes(buffers.region(0, places.outputs[0])[0][: 16 * rows]), np.float32).reshape(rows, 4)
        np.testing.assert_allclose(y, np.maximum(x @ WEIGHTS, 0), rtol=1e-5, atol=1e-6)
    runner.close()
    memory.unload()
    assert not device.device_bytes().strip(b"\0")
    assert device.violations == []
