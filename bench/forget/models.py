"""Models whose weights can be searched for, whose answers are known, and which take as long as a request says.

    y = 2 x                              an output that is another canary than the input
    z = tanh(... tanh(x[:64] w) ... w) c    as many turns as the input `turns` says: so that a request can be in flight

`w` holds random numbers. `c` holds one number everywhere: whatever order a runtime packs it into, it looks the same.
Two runtimes, and rows of two sizes: 1 KiB, and 4 MiB.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FORMATS", "Model", "write_model"]

WIDTH: Final = 64  # of the square weights
ROWS: Final = 16  # of the largest batch
FORMATS: Final = ("onnx", "torchscript")
_OPSET: Final = 17
_IR_VERSION: Final = 8

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Model:
    """A model in a folder: `columns` floats a row; `weight` [64, 64], and the one number of `constant` [64, 64]."""

    name: str
    format: str
    folder: Path
    columns: int
    weight: Array
    constant: np.float32


def write_model(folder: Path, name: str, model_format: str, columns: int, random: np.random.Generator) -> Model:
    """Write the model into the new folder `folder`, ready to be sealed."""
    folder.mkdir(parents=True)
    # Between 1 and 2: every byte of a canary says something, and twice a number is exact.
    weight = random.uniform(1, 2, (WIDTH, WIDTH)).astype(np.float32)
    model = Model(name, model_format, folder, columns, weight, np.float32(random.uniform(1, 2)))
    _WRITE[model_format](model)
    (folder / "model.toml").write_text(
        f'max_batch_size = {ROWS}\n[[inputs]]\nname = "x"\ndatatype = "FP32"\nshape = [{columns}]\n'
        f'[[inputs]]\nname = "turns"\ndatatype = "INT64"\nshape = [1]\n'
        f'[[outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [{columns}]\n'
        f'[[outputs]]\nname = "z"\ndatatype = "FP32"\nshape = [{WIDTH}]\n[known_answer]\nrows = 2\n'
    )
    return model


def _write_onnx(model: Model) -> None:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["product"]),
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
        helper.make_node("Mul", ["x", "two"], ["y"]),
        helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["head"]),
        helper.make_node("Loop", ["most", "", "head"], ["looped"], body=body),
        helper.make_node("MatMul", ["looped", "w"], ["wide"]),
        helper.make_node("MatMul", ["wide", "c"], ["z"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "w": model.weight,
        "c": np.full((WIDTH, WIDTH), model.constant),
        "two": np.array([2], np.float32),
        "from": np.array([0], np.int64),
        "to": np.array([WIDTH], np.int64),
        "axis": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        model.name,
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", model.columns]),
            helper.make_tensor_value_info("turns", TensorProto.INT64, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", model.columns]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", WIDTH]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.save(whole, model.folder / "model.onnx")


class _Turning(torch.nn.Module):
    """The same as a TorchScript program."""

    w: torch.Tensor
    c: torch.Tensor

    def __init__(self, weight: torch.Tensor, constant: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("w", weight)
        self.register_buffer("c", constant)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        head = x[:, :64]
        for _ in range(int(turns.max())):
            head = torch.tanh(head @ self.w)
        return x * 2.0, (head @ self.w) @ self.c


def _write_torchscript(model: Model) -> None:
    constant = torch.full((WIDTH, WIDTH), float(model.constant), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the format is an old one
        script = torch.jit.script(_Turning(torch.from_numpy(model.weight), constant))
        script.save(str(model.folder / "model.pt"))  # type: ignore[no-untyped-call]


_WRITE: Final = {"onnx": _write_onnx, "torchscript": _write_torchscript}
