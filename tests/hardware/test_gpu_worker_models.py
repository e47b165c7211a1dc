"""Models in whole locked workers on this machine's GPU: ONNX with each provider, and native code that is compiled here.

The worker has the product's environment and room, so FP32 is FP32, and what a library opens late ends the load with an
error that names it. Native code is compiled for this card, sealed by a publisher marked `native_code`, and loaded
between the two filters (docs/adr/0223). Where a library, or a compiler, is missing, that is why it did not run.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermetic.enclave.answering import answer
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.isolation.confinement import OF_THREADS, threads_of
from hermetic.enclave.supervisor import Worker
from hermetic.errors import ConfigurationError, DeviceError, IsolationError
from hermetic.server.gpu_facts import known_gpus
from tests.enclave.sealed_models import linear, open_in, publishers, sealed, settings, spec, tensor

pytestmark = pytest.mark.hardware

BUDGET = 4 << 30  # of the GPU's memory
START_TIMEOUT_S = 120.0  # CUDA's libraries are gigabytes
EXACT = 1e-3  # FP32; products of 96 numbers around 1
COLUMNS = 96
ONNX: dict[str, dict[str, Any]] = {
    "cuda": {},
    "cuda, graphs": {"graphs": True},
    "tensorrt": {"tensorrt": True},
    "tensorrt, graphs": {"tensorrt": True, "graphs": True},
}


def gpu_here(package: str) -> Gpu:
    """Return the first GPU; skips without one, and without the library."""
    gpus = known_gpus()
    if not gpus:
        pytest.skip("not run: no GPU")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"not run: no {package}")
    return gpus[0]


@contextmanager
def started(profile: str, orders: GpuOrders, **more: Any) -> Iterator[Worker]:
    """A locked worker; without a bound on its memory where this host has no control group to give."""
    told = {"gpu": orders, "draft": True, **more}
    try:
        worker = Worker.start(settings(profile, **told), timeout_s=START_TIMEOUT_S)
    except IsolationError as error:
        if "bounded-memory" not in str(error):
            raise
        worker = Worker.start(settings(profile, **told, waived=("bounded-memory",)), timeout_s=START_TIMEOUT_S)
    try:
        yield worker
    finally:
        worker.kill()


def check(worker: Worker, weights: Any, columns: int) -> None:
    """Ask some batches of y = f(x)."""
    for rows in (4, 1, 4, 3, 4):
        x = np.random.default_rng(rows).standard_normal((rows, columns), np.float32)
        (got,) = answer(worker, (tensor("x", "FP32", x),))
        answers = np.frombuffer(got.raw, np.float32).reshape(rows, -1)
        np.testing.assert_allclose(answers, weights(x), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", sorted(ONNX))
def test_an_onnx_model_is_served(name: str) -> None:
    orders = GpuOrders(gpu=gpu_here("onnxruntime"), memory_limit_bytes=BUDGET, **ONNX[name])
    import onnxruntime

    graph = linear(size=COLUMNS)[0].SerializeToString()
    on_cpu = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    ends = [spec("x", "FP32", COLUMNS)], [spec("y", "FP32", COLUMNS)]
    with sealed({"model.onnx": graph}, *ends, max_batch_size=4) as model, started("onnx-cuda", orders) as worker:
        try:
            open_in(worker, model)
        except (ConfigurationError, DeviceError) as error:
            if "Tensorrt" not in str(error):
                raise
            pytest.skip(f"not run: {error}")
        check(worker, lambda x: on_cpu.run(None, {"x": x})[0], COLUMNS)
        assert worker.unload()


def test_native_code_that_was_compiled_for_this_card_is_served_behind_two_filters(tmp_path: Path) -> None:
    orders = GpuOrders(gpu=gpu_here("torch"), memory_limit_bytes=BUDGET)
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"not run: torch {torch.__version__} does not see a GPU")
    from tests.hardware.native_program import COLUMNS as OWN
    from tests.hardware.native_program import compiled, wanted

    try:
        files = compiled(tmp_path, "cuda")
    except Exception as error:  # noqa: BLE001 - it takes a compiler, Triton and CUDA's headers
        pytest.skip(f"not run: AOTInductor compiles nothing here: {type(error).__name__}: {str(error)[:500]}")
    ends = [spec("x", "FP32", OWN)], [spec("y", "FP32", OWN)]
    marked = publishers(native_code=True)
    with (
        sealed(files, *ends, format="aot-inductor", max_batch_size=4) as model,
        started("torch-native-cuda", orders, publishers=marked) as worker,
    ):
        before = {thread.filters for thread in threads_of(worker.pid)}
        open_in(worker, model)
        threads = threads_of(worker.pid)
        assert [thread for thread in threads if thread.lacks(OF_THREADS)] == []
        assert min(thread.filters for thread in threads) > max(before), "the second filter, on every thread"
        check(worker, wanted, OWN)
        assert worker.unload()
