"""A worker on a GPU locks itself down around its driver's threads, and serves: on a driver that behaves like CUDA's.

The processes, namespaces, filters and the kernel are real; the driver is tests/enclave/standin_cuda.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hermetic.enclave.answering import answer
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.isolation import cgroup
from hermetic.enclave.isolation.confinement import OF_THREADS, check_threads, threads_of
from hermetic.enclave.isolation.layers import SECCOMP
from hermetic.enclave.supervisor import Worker, WorkerSettings
from hermetic.errors import IsolationError
from tests.enclave.sealed_models import linear, open_in, sealed, settings, spec, started, tensor
from tests.enclave.standin_cuda import worker as standin

pytestmark = pytest.mark.skipif(not standin.has_compiler(), reason="needs a C compiler")

GPU = GpuOrders(gpu=Gpu(number=0, uuid="GPU-aa", minor=0), memory_limit_bytes=32 << 20)
DRIVERS = {"cuda-EvtHandlr", "cuda-obeying"}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    for above in (folder.parent, folder.parent.parent):
        above.chmod(0o755)  # the worker is another user
    return standin.build(folder)


def no_control_group() -> str:
    """Why this host delegates none to us, as to an ordinary user; "" where it does."""
    try:
        cgroup.delegation()
    except OSError as error:
        return f"this host delegates no control group: {error}"
    return ""


def on_gpu() -> WorkerSettings:
    """What bounds the memory of a process with a driver is a control group alone: waived where there is none."""
    return settings("onnx-cuda", gpu=GPU, draft=True, waived=("bounded-memory",) if no_control_group() else ())


@pytest.fixture(scope="module")
def worker(driver: Path) -> Iterator[Worker]:
    with standin.on(driver), started(on_gpu()) as process:
        yield process


@pytest.fixture(scope="module")
def answers(worker: Worker) -> dict[int, int]:
    """What each attempt came to, by its number; negative: in the worker's first thread."""
    numbers = [number for index in range(1, len(standin.ATTEMPTS) + 1) for number in (index, -index)]
    files = {"model.onnx": linear()[0].SerializeToString()}
    with sealed(files, [spec("attempts", "FP32", 1)], [spec("y", "FP32", 1)], max_batch_size=64) as model:
        open_in(worker, model)
    (answered,) = answer(worker, (tensor("attempts", "FP32", np.array(numbers, np.float32)[:, None]),))
    return dict(zip(numbers, map(int, np.frombuffer(answered.raw, np.float32)), strict=True))


def test_every_thread_is_confined_as_the_kernel_says(worker: Worker) -> None:
    threads = threads_of(worker.pid)
    assert {thread.name for thread in threads} >= DRIVERS
    assert [thread for thread in threads if thread.lacks(OF_THREADS)] == []
    assert {thread.filters for thread in threads} == {max(thread.filters for thread in threads)}
    (uids,) = {thread.uids for thread in threads}
    assert len(set(uids)) == 1
    assert set(OF_THREADS) <= set(worker.report.layers)


def test_its_files_rest_on_root_and_landlock_and_its_memory_on_a_control_group(worker: Worker) -> None:
    assert worker.report.properties["no-files"] == ("empty-root", "landlock-files")
    if why := no_control_group():
        pytest.skip(why)
    assert worker.report.properties["bounded-memory"] == ("cgroup-memory",)


@pytest.mark.parametrize("where", ["a thread of the driver", "the first thread"])
@pytest.mark.parametrize("number", range(1, len(standin.ATTEMPTS) + 1), ids=[" ".join(x[:2]) for x in standin.ATTEMPTS])
def test_threads_do_what_the_driver_needs_and_nothing_else(answers: dict[int, int], where: str, number: int) -> None:
    kind, _, allowed = standin.ATTEMPTS[number - 1]
    got = answers[number if "driver" in where else -number]
    refusals = {errno.ENOENT, errno.EACCES} if kind in "rwl" else {errno.EPERM}
    assert got in ({0} if allowed else refusals)


def test_a_thread_outside_the_filter_is_seen_from_outside(driver: Path) -> None:
    """What TSYNC is for: without it the driver's threads would go on as they are."""
    with (
        standin.on(driver, alone=True),
        pytest.raises(IsolationError, match=r"got .*\(cuda-EvtHandlr\) without seccomp"),
    ):
        Worker.start(on_gpu())


def test_a_thread_under_a_filter_of_its_own_refuses_the_load(driver: Path) -> None:
    with (
        standin.on(driver, outside=True),
        pytest.raises(IsolationError, match=r"^seccomp: wanted every thread under the filter, got thread \d+ outside$"),
    ):
        Worker.start(on_gpu())


def test_threads_that_are_as_told_pass() -> None:
    check_threads(os.getpid(), ())
    with pytest.raises(IsolationError, match="without seccomp"):
        check_threads(os.getpid(), (SECCOMP,))
