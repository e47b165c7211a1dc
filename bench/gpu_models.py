"""What the GPU computes while it is measured: an MLP, and networks of the shape of ResNet-50 and BERT-base, in torch.

Weights are random: speed does not ask for better ones. torch alone is needed, and given as an argument.
"""

from collections.abc import Callable
from contextlib import nullcontext
from ctypes import c_char
from types import ModuleType
from typing import Any, Final, TypeAlias

import numpy as np

__all__ = ["MODELS", "TorchModel", "make"]

MODELS: Final = ("mlp", "resnet50", "bert-base")
_TOKENS: Final = 128
_WORDS: Final = 30_522
_Torchs: TypeAlias = Any
"""Something of torch's, which is not imported here."""


class TorchModel:
    """A module on the GPU (gpu_loop.py, `Model`). `where`: "cpu" where there is none, and then nothing is put off."""

    def __init__(self, torch: ModuleType, name: str, where: str = "cuda") -> None:
        self._torch = torch
        self._where = where
        self.name = name
        module, self._shape, self._answers, self._integers = make(torch, name)
        self._module = module.to(where).eval()
        self.row_in = int(np.prod(self._shape)) * (8 if self._integers else 4)
        self.row_out = 4 * self._answers

    def inputs(self, rows: int, random: np.random.Generator) -> bytes:
        """Return words of a vocabulary, or numbers around 0."""
        shape = (rows, *self._shape)
        if self._integers:
            return random.integers(0, _WORDS, shape).astype("<i8").tobytes()
        return random.standard_normal(shape).astype("<f4").tobytes()

    def launch(self, x: int, y: int, rows: int, stream: int) -> None:
        """Put one batch on a stream."""
        torch = self._torch
        on = torch.cuda.stream(torch.cuda.ExternalStream(stream)) if self._where == "cuda" else nullcontext()
        with torch.inference_mode(), on:
            given = self._at(x, rows * self.row_in).view(self._kind()).reshape(rows, *self._shape)
            answer = self._at(y, rows * self.row_out).view(torch.float32).reshape(rows, self._answers)
            answer.copy_(self._module(given))

    def bare(self, content: bytes, rows: int) -> Callable[[], bytes]:
        """Return a plain loop's body: a pinned tensor in, a tensor out."""
        torch = self._torch
        host = torch.frombuffer(bytearray(content), dtype=self._kind()).reshape(rows, *self._shape)
        host = host.pin_memory() if self._where == "cuda" else host

        def run() -> bytes:
            with torch.inference_mode():
                answer = self._module(host.to(self._where, non_blocking=True)).cpu()
            return bytes(answer.numpy().data)

        return run

    def _kind(self) -> _Torchs:
        return self._torch.int64 if self._integers else self._torch.float32

    def _at(self, address: int, nbytes: int) -> _Torchs:
        """Return bytes over memory that is not torch's."""
        if self._where == "cpu":
            return self._torch.frombuffer((c_char * nbytes).from_address(address), dtype=self._torch.uint8)
        return self._torch.as_tensor(_CudaArray(address, nbytes), device=self._where)


class _CudaArray:
    """Source: numba, CUDA Array Interface 3."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def make(torch: ModuleType, name: str) -> tuple[_Torchs, tuple[int, ...], int, bool]:
    """Return a module, the shape of one row, how many numbers it answers, and whether it takes words."""
    torch.manual_seed(1)
    if name == "mlp":
        layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 16))
        return layers, (64,), 16, False
    if name == "resnet50":
        return _resnet50(torch), (3, 224, 224), 1000, False
    return _bert_base(torch), (_TOKENS,), 768, True


def _bert_base(torch: ModuleType) -> _Torchs:
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)

    class Bert(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(_WORDS, 768)
            self.layers = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

        def forward(self, words: _Torchs) -> _Torchs:
            return self.layers(self.words(words))[:, 0]

    return Bert()


def _resnet50(torch: ModuleType) -> _Torchs:
    nn = torch.nn

    def convolution(inside: int, out: int, size: int, stride: int = 1) -> _Torchs:
        same = nn.Conv2d(inside, out, size, stride, size // 2, bias=False)
        return nn.Sequential(same, nn.BatchNorm2d(out))

    class Block(nn.Module):  # type: ignore[misc, name-defined]
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

        def forward(self, x: _Torchs) -> _Torchs:
            return torch.relu(self.way(x) + self.beside(x))

    layers = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Block(inside, middle, stride if number == 0 else 1))
            inside = 4 * middle
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))
