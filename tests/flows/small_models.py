"""Small real models whose answers alone and in a batch are compared bit by bit.

Classifiers trained by scikit-learn and by torch on the breast-cancer data that scikit-learn ships; a transformer and a
convolutional network with random weights. Each comes with a function that runs it without Hermetic, with one thread.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from torch import nn

from hermetic.demo.models import train
from tests.enclave.sealed_models import onnx_model

Rows = NDArray[np.float32]
SEED = 5
TOKENS = 12
WIDTH = 24
HEADS = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as bytes; inputs "x" and outputs "y" are FP32, the first dimension is the batch."""

    name: str
    form: str  # of the manifest: "onnx" or "torch-export"
    content: bytes
    rows: Rows  # [n, ...]
    answer_shape: tuple[int, ...]  # of one row
    run: Callable[[Rows], Rows]
    """What the bare runtime answers to a batch."""


def scikit_learn() -> Subject:
    """A multi-layer perceptron, as Gemm, Relu and Sigmoid."""
    features, labels = load_breast_cancer(return_X_y=True)
    features = ((features - features.mean(0)) / features.std(0)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has learnt enough before it has converged
        trained = MLPClassifier((64, 32), max_iter=20, random_state=SEED).fit(features, labels)
    weights = {f"w{at}": weight.astype(np.float32) for at, weight in enumerate(trained.coefs_)}
    weights |= {f"b{at}": bias.astype(np.float32) for at, bias in enumerate(trained.intercepts_)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["s0"]), helper.make_node("Relu", ["s0"], ["h0"]),
        helper.make_node("Gemm", ["h0", "w1", "b1"], ["s1"]), helper.make_node("Relu", ["s1"], ["h1"]),
        helper.make_node("Gemm", ["h1", "w2", "b2"], ["s2"]), helper.make_node("Sigmoid", ["s2"], ["y"]),
    ]  # fmt: skip
    shape = {"x": (TensorProto.FLOAT, ["n", features.shape[1]])}
    content = onnx_model(nodes, shape, {"y": (TensorProto.FLOAT, ["n", 1])}, weights).SerializeToString()
    return Subject("scikit-learn", "onnx", content, features[:16], (1,), _onnx(content))


def torch_classifier() -> Subject:
    """The demo's network, as torch.export writes it."""
    trained = train()
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        rows = torch.export.Dim("rows", min=1, max=64)
        program = torch.export.export(trained.network, (torch.zeros(2, 30),), dynamic_shapes={"features": {0: rows}})
        torch.export.save(program, content)

    def run(rows: Rows) -> Rows:
        with torch.inference_mode():
            answer: Rows = trained.network(torch.from_numpy(rows)).numpy()
        return answer

    return Subject("torch", "torch-export", content.getvalue(), trained.features[:16], (2,), run)


class _Attention(nn.Module):
    """One layer: attention with heads, then two dense layers, each around a sum and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dense = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.projections(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(WIDTH / HEADS), -1)
        x = self.first(x + self.out((weights @ values).transpose(1, 2).flatten(2)))
        y: torch.Tensor = self.second(x + self.dense(x))
        return y


def transformer() -> Subject:
    """Two layers of attention over twelve tokens, and four scores for each token."""
    torch.manual_seed(SEED)
    network = nn.Sequential(_Attention(), _Attention(), nn.Linear(WIDTH, 4))
    rows = np.random.default_rng(SEED).standard_normal((16, TOKENS, WIDTH), np.float32)
    return _exported("transformer", network, rows, (TOKENS, 4))


def convolutions() -> Subject:
    """Two convolutions with a pooling layer between them, and a dense layer."""
    torch.manual_seed(SEED)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    rows = np.random.default_rng(SEED).standard_normal((16, 1, 16, 16), np.float32)
    return _exported("convolutions", network, rows, (10,))


def _exported(name: str, network: nn.Module, rows: Rows, answer_shape: tuple[int, ...]) -> Subject:
    content: Any = io.BytesIO()  # the annotations know of paths only
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.from_numpy(rows[:2]),), content, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17, dynamo=False,
        )  # fmt: skip
    return Subject(name, "onnx", content.getvalue(), rows, answer_shape, _onnx(content.getvalue()))


def _onnx(content: bytes) -> Callable[[Rows], Rows]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda rows: np.asarray(session.run(None, {"x": rows})[0], np.float32)
