"""The demo's models: a network trained here on real data, in two formats, and one that somebody else made.

The data is the Wisconsin diagnostic breast-cancer set that scikit-learn ships (569 rows of 30 features); the third
party's model is the file-type detector that the package `magika` ships. What a model answers without Hermetic is
kept beside it, so that the demo can compare.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

SEED: Final = 7
TRAINING_ROWS: Final = 456  # of 569; the rest is held out
EPOCHS: Final = 200
LEARNING_RATE: Final = 1e-2
MAX_BATCH_SIZE: Final = 64


class Classifier(torch.nn.Module):
    """30 features -> probabilities of [malignant, benign]; standardises its input with the training rows' moments."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """`mean` and `deviation`: 30 numbers each."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(30, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [rows, 2] for [rows, 30]."""
        return torch.softmax(self.layers((features - self.mean) / self.deviation), -1)


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained network, and what it answers, in this process, on the rows that it has not seen."""

    network: Classifier
    features: NDArray[np.float32]  # [113, 30]
    labels: NDArray[np.int64]  # [113]
    probabilities: NDArray[np.float32]  # [113, 2]

    @property
    def accuracy(self) -> float:
        """On the held-out rows."""
        return float((self.probabilities.argmax(-1) == self.labels).mean())


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network is not worth sharing: threads would spend their time, and others' cores, on each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train() -> Trained:
    """Train the classifier: a second of work, the same weights each time on one kind of machine."""
    torch.manual_seed(SEED)
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(features))
    x = torch.from_numpy(features.astype(np.float32)[order])
    y = torch.from_numpy(labels[order])
    seen = x[:TRAINING_ROWS]
    network = Classifier(seen.mean(0), seen.std(0))
    optimiser = torch.optim.Adam(network.layers.parameters(), LEARNING_RATE)
    with _one_thread():
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            loss = torch.nn.functional.nll_loss(torch.log(network(seen) + 1e-9), y[:TRAINING_ROWS])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    network.eval()
    held_out = x[TRAINING_ROWS:]
    with torch.no_grad():
        probabilities = network(held_out).numpy()
    return Trained(network, held_out.numpy(), y[TRAINING_ROWS:].numpy(), probabilities)


def export_onnx(network: Classifier, folder: Path) -> Path:
    """Write `model.onnx` with a free batch dimension; returns the folder."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            network,
            (torch.zeros(2, 30),),
            str(folder / "model.onnx"),
            input_names=["features"],
            output_names=["probabilities"],
            dynamic_axes={"features": {0: "batch"}, "probabilities": {0: "batch"}},
            dynamo=False,
        )
    return folder


def export_torch(network: Classifier, folder: Path) -> Path:
    """Write `model.pt2` (torch.export) with a free batch dimension; returns the folder."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.export.Dim("rows", min=1, max=MAX_BATCH_SIZE)
        program = torch.export.export(network, (torch.zeros(2, 30),), dynamic_shapes={"features": {0: rows}})
        torch.export.save(program, str(folder / "model.pt2"))
    return folder


def copy_magika(folder: Path) -> Path:
    """Copy the ONNX file out of the installed package; returns the folder."""
    folder.mkdir(parents=True)
    models = resources.files("magika") / "models"
    source = next(entry for entry in models.iterdir() if (entry / "model.onnx").is_file())
    with resources.as_file(source / "model.onnx") as path:
        shutil.copyfile(path, folder / "model.onnx")
    return folder
