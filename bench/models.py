"""Which models are measured? A small MLP (the server is the time), a wide one (the model is), one with many weights.

Built with onnx.helper from seeded numpy weights: the same file everywhere, no framework needed. What they must answer
is computed here with numpy, so that no runtime vouches for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.external_data_helper
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SEED: Final = 20
OPSET: Final = 17
IR_VERSION: Final = 8
MLP_NAME: Final = "mlp"
MLP_WIDTHS: Final = (512, 512, 512, 10)
MAX_BATCH_SIZE: Final = 64
QUESTIONS: Final = 64  # distinct inputs, so that an answer to somebody else's question is noticed

WIDE_NAME: Final = "wide"
WIDE_WIDTHS: Final = (1024, 4096, 1024)  # 32 MiB of weights to be read for a row: some milliseconds
WIDE_QUESTIONS: Final = 8

LARGE_NAME: Final = "large"
LARGE_WIDTH: Final = 2048
LARGE_LAYER_BYTES: Final = LARGE_WIDTH * LARGE_WIDTH * 4  # 16 MiB
LARGE_BYTES: Final = 256 << 20
LARGE_DATA_FILE: Final = "model.onnx.data"

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Mlp:
    """Layers with ReLU between them; input "x", output "y", both FP32."""

    weights: tuple[Array, ...]  # [in, out] of each layer
    biases: tuple[Array, ...]  # [out] of each layer

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers in a row: of the input, after each layer."""
        return (self.weights[0].shape[0], *(bias.shape[0] for bias in self.biases))

    def answer(self, rows: Array) -> Array:
        """Return [n, last width] for [n, first width], in double precision inside."""
        x = rows.astype(np.float64)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if layer < last:
                x = np.maximum(x, 0)
        return x.astype(np.float32)

    def write(self, folder: Path) -> Path:
        """Write `model.onnx`, its batch axis free, into `folder` (made if missing); returns the file."""
        nodes, initializers, x = [], [], "x"
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            initializers += [numpy_helper.from_array(weight, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
            out = "y" if layer == last else f"sum{layer}"
            nodes.append(helper.make_node("Gemm", [x, f"w{layer}", f"b{layer}"], [out]))
            if layer < last:
                x = f"relu{layer}"
                nodes.append(helper.make_node("Relu", [out], [x]))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        onnx.save(_model(MLP_NAME, nodes, initializers, self.widths[0], self.widths[-1]), path)
        return path


def mlp() -> Mlp:
    """Return the small model, 512 -> 512 -> 512 -> 10: the same weights at every call."""
    return _network(MLP_WIDTHS, SEED)


def wide() -> Mlp:
    """Return the wide model, 1024 -> 4096 -> 1024: the same weights at every call."""
    return _network(WIDE_WIDTHS, SEED + 4)


def _network(all_widths: Sequence[int], seed: int) -> Mlp:
    random = np.random.default_rng(seed)
    widths = list(pairwise(all_widths))
    weights = tuple(_normal(random, (a, b)) * np.float32((2 / a) ** 0.5) for a, b in widths)
    return Mlp(weights, tuple(_normal(random, (b,)) * np.float32(0.1) for _, b in widths))


def mlp_rows(count: int = QUESTIONS) -> Array:
    """Return `count` inputs of the small model, [count, 512]."""
    return _normal(np.random.default_rng(SEED + 1), (count, MLP_WIDTHS[0]))


def wide_rows(count: int = WIDE_QUESTIONS) -> Array:
    """Return `count` inputs of the wide model, [count, 1024]."""
    return _normal(np.random.default_rng(SEED + 5), (count, WIDE_WIDTHS[0]))


@dataclass(frozen=True, slots=True)
class Large:
    """A model whose weights lie beside its graph: input "x", output "y", both FP32 [batch, 2048]."""

    files: tuple[Path, ...]  # the graph, then its external data
    row: Array  # [1, 2048], an input
    answer: Array  # [1, 2048], what it must give for it
    weights_bytes: int


def write_large(folder: Path, size: int = LARGE_BYTES) -> Large:
    """Write an ONNX model with `size` bytes of weights (whole layers of 16 MiB) as external data into `folder`.

    Layers of 2048 x 2048 are multiplied in turn: what is measured is reading them, and a wrong byte shows in the end.
    """
    layers = max(1, size // LARGE_LAYER_BYTES)
    random = np.random.default_rng(SEED + 2)
    folder.mkdir(parents=True, exist_ok=True)
    nodes, initializers, x = [], [], "x"
    row = _normal(np.random.default_rng(SEED + 3), (1, LARGE_WIDTH))
    answer = row.astype(np.float64)
    with (folder / LARGE_DATA_FILE).open("wb") as data:
        for layer in range(layers):
            weight = _normal(random, (LARGE_WIDTH, LARGE_WIDTH)) * np.float32(LARGE_WIDTH**-0.5)
            initializers.append(_external(f"w{layer}", weight, data.tell()))
            data.write(weight.tobytes())
            answer = answer @ weight
            out = "y" if layer == layers - 1 else f"x{layer}"
            nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [out]))
            x = out
    path = folder / "model.onnx"
    onnx.save(_model(LARGE_NAME, nodes, initializers, LARGE_WIDTH, LARGE_WIDTH), path)
    files = (path, folder / LARGE_DATA_FILE)
    return Large(files, row, answer.astype(np.float32), layers * LARGE_LAYER_BYTES)


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_normal(shape, dtype=np.float32)


def _external(name: str, weight: Array, offset: int) -> TensorProto:
    """Return an initializer that says where its bytes lie, and holds none."""
    tensor = numpy_helper.from_array(weight, name)
    onnx.external_data_helper.set_external_data(tensor, LARGE_DATA_FILE, offset=offset, length=weight.nbytes)
    tensor.ClearField("raw_data")
    return tensor


def _model(name: str, nodes: list[Any], initializers: list[Any], width_in: int, width_out: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width_out])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="hermetic")
    model.ir_version = IR_VERSION
    return model
