"""A worker that an ordinary user started: locked by user namespaces, and it sees that freed memory is overwritten."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermetic.enclave import worker_process
from hermetic.enclave.answering import answer
from hermetic.enclave.isolation.properties import WORKER_PROPERTIES
from hermetic.enclave.supervisor import Worker
from hermetic.enclave.zero_on_free import interpreter
from tests.enclave.sealed_models import linear, open_in, sealed, settings, spec, started, tensor

USER = 1001
# Imported as root, whose Python may lie where others read nothing; dumpable as a user's process is when it starts.
AS_USER = f"""
import os, sys
from hermetic.enclave import runtimes, worker
from hermetic.enclave.isolation import identity, process
runtimes.import_runtimes("onnx-cpu")
if identity.is_root():
    identity.become({USER}, {USER})
    process.make_dumpable()
os._exit(worker.main(sys.argv[1:]))
"""


ENDS: dict[str, Any] = {"inputs": [spec("x", "FP32", 96)], "outputs": [spec("y", "FP32", 96)], "max_batch_size": 8}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(worker_process, "program", lambda _: [*interpreter(), "-c", AS_USER])
    with started(settings(draft=True)) as process:
        yield process


def test_it_sees_that_its_freed_memory_is_overwritten_and_answers(worker: Worker) -> None:
    """It cannot read itself through /proc: that is root's where a process is not dumpable, as it is from the start."""
    assert Path(f"/proc/{worker.pid}/mem").stat().st_uid == 0
    report = worker.report
    assert report.zeroing == "enforced", report.zeroing_by
    # The room is an ordinary user's, and all of it is there.
    assert set(report.properties) == set(WORKER_PROPERTIES)
    assert {"user-namespace", "empty-root"} <= set(report.layers)
    assert "own-uid" not in report.layers
    graph, weight = linear()
    bias = np.frombuffer(graph.graph.initializer[1].raw_data, np.float32)
    row = np.linspace(-1, 1, 96, dtype=np.float32).reshape(1, 96)
    with sealed({"model.onnx": graph.SerializeToString()}, **ENDS) as model:
        open_in(worker, model)
        (got,) = answer(worker, (tensor("x", "FP32", row),))
    np.testing.assert_allclose(np.frombuffer(got.raw, np.float32).reshape(1, 96), row @ weight + bias, rtol=1e-4)
    assert worker.unload()
