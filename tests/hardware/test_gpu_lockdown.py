"""A worker on this machine's GPU locks itself down around CUDA's own threads; skipped where there is no GPU.

The same runs on a stand-in in tests/enclave/test_worker_on_gpu.py. What is missing from the lists of files and requests
ends the start with an error: what a first run on a card is for.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.enclave.gpus import GpuOrders
from hermetic.enclave.isolation.confinement import OF_THREADS, threads_of
from hermetic.enclave.supervisor import Worker
from hermetic.errors import IsolationError
from hermetic.server.gpu_facts import known_gpus
from tests.enclave.sealed_models import settings

pytestmark = pytest.mark.hardware

PACKAGE_OF = {"onnx-cuda": "onnxruntime", "torch-cuda": "torch"}
MEMORY_BYTES = 4 << 30  # of the GPU's memory
START_TIMEOUT_S = 120.0  # CUDA's libraries are gigabytes


@pytest.fixture(scope="module", params=sorted(PACKAGE_OF))
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    profile: Any = request.param
    gpus = known_gpus()
    if not gpus:
        pytest.skip("not run: no GPU")
    if importlib.util.find_spec(PACKAGE_OF[profile]) is None:
        pytest.skip(f"not run: no {PACKAGE_OF[profile]}")
    orders = GpuOrders(gpu=gpus[0], memory_limit_bytes=MEMORY_BYTES)
    try:
        started = Worker.start(settings(profile, gpu=orders), timeout_s=START_TIMEOUT_S)
    except IsolationError as error:
        if "bounded-memory" not in str(error):
            raise
        # No control group here: everything else is still to be shown.
        waiving = settings(profile, gpu=orders, waived=("bounded-memory",))
        started = Worker.start(waiving, timeout_s=START_TIMEOUT_S)
    yield started
    started.kill()


def test_every_thread_of_cuda_is_confined(worker: Worker) -> None:
    threads = threads_of(worker.pid)
    assert len(threads) > 1, "CUDA has threads of its own"
    assert [thread for thread in threads if thread.lacks(OF_THREADS)] == []
    assert len({thread.uids for thread in threads}) == 1


def test_it_has_opened_its_own_node_and_no_other_gpus(worker: Worker) -> None:
    opened = {str(file.readlink()) for file in Path(f"/proc/{worker.pid}/fd").iterdir()}
    nodes = {path for path in opened if re.fullmatch("/dev/nvidia[0-9]+", path)}
    assert nodes
    assert nodes <= set(known_gpus()[0].nodes)
