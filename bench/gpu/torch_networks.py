"""The networks as modules of torch, and as the files that publishers would seal: ONNX and torch.export."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hermetic.bench.gpu.networks import OPSET, WORDS, Library, Network

__all__ = ["Exporting", "make"]


class Pixels(torch.nn.Module):
    """Numbers around 0 from the bytes of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return FP32 of the same shape."""
        return (x.to(torch.float32) - 127.5) / 64


def make(name: str) -> torch.nn.Module:
    """Return the network with weights that are the same at every call."""
    torch.manual_seed(1)
    if name == "mlp":
        return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 16))
    return _resnet50() if name == "resnet50" else _bert_base()


class Exporting:
    """One network, to be written and asked."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._module = make(network.name).eval()

    def answers(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return [rows, answers]."""
        with torch.inference_mode():
            answers: NDArray[np.float32] = self._module(torch.from_numpy(rows)).numpy()
        return answers

    def export(self, library: Library, file: Path) -> None:
        """Write the network with a free batch dimension; what exporters raise comes out."""
        sample = torch.from_numpy(self._network.inputs(2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own deprecations
            if library == "torch":
                rows = torch.export.Dim("rows", min=1, max=self._network.rows)
                program = torch.export.export(Named(self._module), (sample,), dynamic_shapes={"x": {0: rows}})
                torch.export.save(program, str(file))
                return
            torch.onnx.export(
                self._module,
                (sample,),
                str(file),
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "rows"}, "y": {0: "rows"}},
                opset_version=OPSET,
                dynamo=False,
            )


class Named(torch.nn.Module):
    """The network with an input called x, whatever its layers call theirs."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, answers]."""
        answer: torch.Tensor = self.network(x)
        return answer


def _bert_base() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)

    class Bert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, 768)
            self.layers = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
            for weight in self.layers.parameters():  # the layers are copies, which an exporter would write once
                if weight.dim() > 1:
                    torch.nn.init.xavier_uniform_(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.layers(self.words(x))[:, 0]
            return answer

    return Bert()


def _resnet50() -> torch.nn.Module:
    nn = torch.nn

    def convolution(inside: int, out: int, size: int, stride: int = 1) -> torch.nn.Module:
        same = nn.Conv2d(inside, out, size, stride, size // 2, bias=False)
        return nn.Sequential(same, nn.BatchNorm2d(out))

    class Block(nn.Module):
        def __init__(self, inside: int, middle: int, stride: int) -> None:
            super().__init__()
            out = 4 * middle
            self.way = nn.Sequential(
                convolution(inside, middle, 1),
                nn.ReLU(),
                convolution(middle, middle, 3, stride),
                nn.ReLU(),
                convolution(middle, out, 1),
            )
            plain = inside == out and stride == 1
            self.beside = nn.Identity() if plain else convolution(inside, out, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.way(x) + self.beside(x))

    layers = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Block(inside, middle, stride if number == 0 else 1))
            inside = 4 * middle
    return nn.Sequential(Pixels(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))
