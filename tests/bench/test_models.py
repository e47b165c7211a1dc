"""The models are the same everywhere, and onnxruntime gives what numpy says."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hermetic.bench.models import LARGE_LAYER_BYTES, MAX_BATCH_SIZE, mlp, mlp_rows, write_large


@pytest.mark.parametrize("rows", [1, MAX_BATCH_SIZE])
def test_onnxruntime_agrees_with_numpy(tmp_path: Path, rows: int) -> None:
    path = mlp().write(tmp_path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = mlp_rows(rows)
    np.testing.assert_allclose(session.run(None, {"x": given})[0], mlp().answer(given), rtol=1e-4, atol=1e-5)


def test_the_same_model_is_written_twice(tmp_path: Path) -> None:
    first, second = (mlp().write(tmp_path / name).read_bytes() for name in ("a", "b"))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert len(np.unique(mlp_rows(), axis=0)) == len(mlp_rows())


def test_the_large_models_weights_are_external(tmp_path: Path) -> None:
    large = write_large(tmp_path, 2 * LARGE_LAYER_BYTES)
    graph, data = large.files
    assert data.stat().st_size == large.weights_bytes == 2 * LARGE_LAYER_BYTES
    assert graph.stat().st_size < 4096
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": large.row})[0], large.answer, rtol=1e-3, atol=1e-4)
