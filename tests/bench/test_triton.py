"""A real Triton starts, answers what the model must answer, and leaves nothing. Skipped where it is not installed."""

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client

from hermetic.bench import models
from hermetic.bench.triton import SHARED_MEMORY, TRITON_VERSION, Triton, find

CONFIGURATION = """
platform: "onnxruntime_onnx"
max_batch_size: 64
dynamic_batching {}
input [{ name: "x" data_type: TYPE_FP32 dims: [512] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [10] }]
"""


@pytest.mark.skipif(find() is None, reason="Triton is not installed: python -m hermetic.bench.triton")
def test_triton_serves_an_onnx_model(tmp_path: Path) -> None:
    model = models.mlp()
    model.write(tmp_path / "mlp" / "1")
    (tmp_path / "mlp" / "config.pbtxt").write_text(CONFIGURATION)
    rows = models.mlp_rows(2)
    with Triton(tmp_path) as triton, client.InferenceServerClient(triton.grpc) as caller:
        assert caller.get_server_metadata().version == TRITON_VERSION
        tensor = client.InferInput("x", [2, 512], "FP32")
        tensor.set_data_from_numpy(rows)
        answer = caller.infer("mlp", [tensor]).as_numpy("y")
        log = triton.log
    np.testing.assert_allclose(answer, model.answer(rows), atol=1e-4)
    assert not log.exists()
    assert not list(SHARED_MEMORY.glob(f"hermetic-triton-{triton.grpc.split(':')[1]}-*"))
