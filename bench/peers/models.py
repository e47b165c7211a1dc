"""Which models are the servers compared on, and what are they asked? Made once, kept in the cache, never committed.

Every server reads the same `model.onnx`: input "x", output "y", first axis the batch. The questions' right answers come
from torch (for the MLP from numpy), not from ONNX Runtime, so that no runtime vouches for itself.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hermetic.bench import models as small
from hermetic.bench.bare_loop import read_questions, write_questions
from hermetic.bench.traffic import Question, question
from hermetic.errors import ConfigurationError

MAKING: Final = 3  # raised whenever what is made below changes: the cache's name holds it
SEED: Final = 21
MLP: Final = small.MLP_NAME
RESNET: Final = "resnet18"
BERT: Final = "bert"
MIXED: Final = "bert-mixed"
IMAGES: Final = 8
TEXTS: Final = 32
TOKENS: Final = 128
SHORTEST: Final = 16
LONGEST: Final = 256
OPSET: Final = 17
QUESTIONS: Final = "questions.npz"
NAMES: Final = (MLP, RESNET, BERT, MIXED)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PeerModel:
    """One model as every server gets it: a file, the type of its one input and output, and a set of questions."""

    name: str
    file: Path  # model.onnx
    datatype: str  # of "x", in the v2 protocol's words
    dims: tuple[int, ...]  # of one row of "x"; -1 where requests differ
    width: int  # of one row of "y", FP32
    max_batch_size: int
    worker_rows: int  # of a batch that are best for one of several workers of one thread
    rows: tuple[Array, ...]  # inputs, each [1, *dims]
    answers: tuple[Array, ...]  # [1, width] each

    @property
    def questions(self) -> list[Question]:
        """The requests, each with an id of its own, and what must be answered."""
        return [
            question(self.name, row, answer[0].tolist(), identifier=str(number))
            for number, (row, answer) in enumerate(zip(self.rows, self.answers, strict=True))
        ]

    @property
    def question_file(self) -> Path:
        """Where inputs and answers lie for a process that runs the model itself (bare_loop.py)."""
        return self.file.with_name(QUESTIONS)


def cache_folder() -> Path:
    """Return where models are kept between runs."""
    return Path.home() / ".cache" / "hermetic" / "models"


def peer_model(name: str, folder: Path | None = None) -> PeerModel:
    """Return a model of `NAMES`, made in `folder` first unless it is there; `ConfigurationError` for other names."""
    if name not in _RECIPES:
        raise ConfigurationError(f"model: wanted one of {', '.join(NAMES)}, got {name!r}")
    recipe = _RECIPES[name]
    made = (folder or cache_folder()) / f"{name}-{MAKING}"
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=made.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            write_questions(fresh / QUESTIONS, *recipe.make(fresh))
            fresh.rename(made)
    rows, answers = map(tuple, read_questions(made / QUESTIONS))
    file, width = made / "model.onnx", answers[0].shape[1]
    return PeerModel(name, file, recipe.datatype, recipe.dims, width, recipe.batch, recipe.worker_rows, rows, answers)


@dataclass(frozen=True, slots=True)
class _Recipe:
    datatype: str
    dims: tuple[int, ...]
    batch: int
    worker_rows: int
    make: Callable[[Path], tuple[Sequence[Array], Sequence[Array]]]


def _mlp(folder: Path) -> tuple[Sequence[Array], Sequence[Array]]:
    network = small.mlp()
    network.write(folder)
    rows = small.mlp_rows()
    return np.split(rows, len(rows)), np.split(network.answer(rows), len(rows))


def _resnet(folder: Path) -> tuple[Sequence[Array], Sequence[Array]]:
    random = np.random.default_rng(SEED)
    rows = [random.standard_normal((1, 3, 224, 224), dtype=np.float32) for _ in range(IMAGES)]
    return rows, _export("ResNet18", folder, rows, {0: "batch"})


def _bert(lengths: Sequence[int], axes: dict[int, str]) -> Callable[[Path], tuple[Sequence[Array], Sequence[Array]]]:
    def make(folder: Path) -> tuple[Sequence[Array], Sequence[Array]]:
        random = np.random.default_rng(SEED + 1)
        rows = [random.integers(0, 8192, (1, length), dtype=np.int64) for length in lengths]
        return rows, _export("Encoder", folder, rows, axes)

    return make


def _export(network: str, folder: Path, rows: Sequence[Array], axes: dict[int, str]) -> list[Array]:
    """Write the network of this name as `model.onnx`; return its answers to `rows`."""
    import torch

    from hermetic.bench.peers import networks

    torch.set_num_threads(1)  # several wait for each other on a busy machine
    torch.manual_seed(SEED)
    module = getattr(networks, network)().eval()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            module,
            (torch.from_numpy(np.concatenate([rows[0], rows[0]])),),
            str(folder / "model.onnx"),
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": axes, "y": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
        return [module(torch.from_numpy(row)).numpy() for row in rows]


_LENGTHS: Final = [
    round(length) for length in np.random.default_rng(SEED + 2).permutation(np.linspace(SHORTEST, LONGEST, TEXTS))
]

_RECIPES: Final = {
    MLP: _Recipe("FP32", (small.MLP_WIDTHS[0],), small.MAX_BATCH_SIZE, small.MAX_BATCH_SIZE, _mlp),
    RESNET: _Recipe("FP32", (3, 224, 224), 32, 8, _resnet),
    BERT: _Recipe("INT64", (TOKENS,), 32, 4, _bert([TOKENS] * TEXTS, {0: "batch"})),
    MIXED: _Recipe("INT64", (-1,), 32, 4, _bert(_LENGTHS, {0: "batch", 1: "tokens"})),
}
