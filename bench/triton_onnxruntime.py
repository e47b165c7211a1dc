"""How does Triton serve ONNX here? By this backend of its Python backend: it runs in Triton's process, never in ours.

It stands in for Triton's own onnxruntime backend, which is on no package index. What the batcher combined is one run,
where the shapes allow it. triton.py copies this file into the server's folder of backends as `model.py`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # Triton puts it on the path

Row = list[np.ndarray[Any, Any]]


class TritonPythonModel:
    """One instance of a model. The parameter `intra_op_thread_count` of its configuration is the number of threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx` of the version; Triton's interface."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", "0")
        options.intra_op_num_threads = int(threads)
        options.inter_op_num_threads = 1
        file = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        self._batched = config.get("max_batch_size", 0) > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request; Triton's interface."""
        rows = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs] for request in requests
        ]
        alike = all([x.shape[1:] for x in row] == [x.shape[1:] for x in rows[0]] for row in rows)
        if not self._batched or not alike or len(rows) == 1:
            return [self._response(self._run(row)) for row in rows]
        whole = self._run([np.concatenate(column) for column in zip(*rows, strict=True)])
        ends = np.cumsum([row[0].shape[0] for row in rows])[:-1]
        return [self._response(list(parts)) for parts in zip(*(np.split(out, ends) for out in whole), strict=True)]

    def _run(self, row: Row) -> Row:
        outputs: Row = self._session.run(self._outputs, dict(zip(self._inputs, row, strict=True)))
        return outputs

    def _response(self, arrays: Row) -> Any:  # noqa: ANN401 - Triton's module has no types
        pairs = zip(self._outputs, arrays, strict=True)
        return triton.InferenceResponse([triton.Tensor(name, np.ascontiguousarray(array)) for name, array in pairs])
