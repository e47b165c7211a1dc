"""Small real networks, made in a moment; their weights look like nothing else, so that they can be searched for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hermetic.demo.forgetting import canaries_of
from hermetic.demo.stage import Sealable

WIDTH = 64  # inputs, and outputs
ROWS = 8  # of a batch

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Network:
    """A plain model in a folder of its own, and what it answers."""

    file: Path
    sealable: Sealable
    canaries: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return self.sealable.name

    def answer(self, rows: Rows) -> Rows:
        """What onnxruntime answers without us."""
        (answer,) = onnxruntime.InferenceSession(self.file, providers=["CPUExecutionProvider"]).run(None, {"x": rows})
        return np.asarray(answer, np.float32)

    def rows(self, count: int = 3) -> Rows:
        return np.random.default_rng(7).standard_normal((count, WIDTH), np.float32)


def dense(folder: Path, name: str, *, seed: int, version: int = 1, publisher: str = "demo") -> Network:
    """Y = tanh(x @ weight + bias)."""
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((WIDTH, WIDTH), np.float32), random.standard_normal(WIDTH, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["y"]),
    ]
    return _write(folder, _sealable(folder, name, version, publisher), nodes, {"weight": weight, "bias": bias})


def slow(folder: Path, name: str, *, seed: int, turns: int) -> Network:
    """The same layer `turns` times over: one row alone in a batch, so that requests queue."""
    weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), np.float32)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "weight"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["turns", "", "x"], ["looped"], body=body),
        helper.make_node("Identity", ["looped"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {"weight": weight, "turns": np.asarray(turns, np.int64)}
    return _write(folder, _sealable(folder, name, 1, "demo"), nodes, constants, batch=1)


def _sealable(folder: Path, name: str, version: int, publisher: str) -> Sealable:
    return Sealable(folder / f"{name}-{version}", name, version, publisher)


def _write(
    folder: Path,
    sealable: Sealable,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    batch: int = ROWS,
) -> Network:
    graph = helper.make_graph(
        nodes,
        sealable.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    sealable.source.mkdir(parents=True)
    file = sealable.source / "model.onnx"
    file.write_bytes(model.SerializeToString())
    (sealable.source / "model.toml").write_text(f"max_batch_size = {batch}\n")
    return Network(file, sealable, tuple(canaries_of(file)))
