"""What is computed: an MLP, and networks of the shape of ResNet-50 and BERT-base, as files that a publisher would seal.

Weights are random: speed does not ask for better ones. Images come as bytes, as a decoder has them; the network makes
numbers of them. Known answers are torch's on the CPU.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.child import Child, job_from_stdin, say
from hermetic.bench.gpu.budget import Budget, ended_after
from hermetic.enclave.model_description import ModelDescription, TensorSpec

if TYPE_CHECKING:
    from hermetic.bench.gpu.torch_networks import Exporting

__all__ = ["LIBRARIES", "NETWORKS", "TOLERANCE", "BenchPrecision", "Library", "Made", "Network", "make_files"]

Library = Literal["torch", "onnxruntime"]
LIBRARIES: Final[tuple[Library, ...]] = ("torch", "onnxruntime")
FILE_OF: Final = {"torch": "model.pt2", "onnxruntime": "model.onnx"}
FORMAT_OF: Final = {"torch": "torch-export", "onnxruntime": "onnx"}

BenchPrecision = Literal["fp32", "tf32"]
"""What both sides multiply in: half the bits would be another network for a plain loop."""
TOLERANCE: Final[Mapping[BenchPrecision, float]] = {"fp32": 5e-4, "tf32": 1e-2}
"""Of an answer, relative and absolute: sums are in another order at each batch size. On a CPU these networks are within
3e-6 of what they are in FP64; weights in TF32 alone move BERT's by 2e-3, so that FP32 that is none is noticed.
"""
SEED: Final = 20_261_123
KNOWN_ROWS: Final = 2
OPSET: Final = 17
WORDS: Final = 30_522
TOKENS: Final = 128
_NUMPY: Final = {"FP32": np.float32, "UINT8": np.uint8, "INT64": np.int64}


@dataclass(frozen=True, slots=True)
class Network:
    """One network: each row of its input "x" has the shape `dims`, each row of its output "y" `answers` FP32.

    `rows`: the largest batch. `gpu_bytes`: what weights and batches of it need on a GPU, at most.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    answers: int
    rows: int
    gpu_bytes: int = 1 << 30

    def inputs(self, rows: int, seed: int = SEED) -> NDArray[Any]:
        """Return [rows, *dims]: words, pixels or numbers around 0; the same for the same seed."""
        random = np.random.default_rng(seed)
        shape = (rows, *self.dims)
        if self.datatype == "FP32":
            return random.standard_normal(shape, np.float32)
        return random.integers(0, WORDS if self.datatype == "INT64" else 256, shape, _NUMPY[self.datatype])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the input."""
        return int(np.prod(self.dims)) * np.dtype(_NUMPY[self.datatype]).itemsize

    def description(self, library: Library) -> ModelDescription:
        """Return what a front end would know of it."""
        return ModelDescription(
            name=self.name,
            version=1,
            format=FORMAT_OF[library],
            publisher="bench",
            manifest_digest="0" * 64,
            inputs=(TensorSpec(name="x", datatype=self.datatype, shape=self.dims),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(self.answers,)),),
            max_batch_size=self.rows,
            shared=False,
        )


NETWORKS: Final = {
    network.name: network
    for network in (
        Network("mlp", "FP32", (64,), 16, 512),
        Network("resnet50", "UINT8", (3, 224, 224), 1000, 128, 6 << 30),
        Network("bert-base", "INT64", (TOKENS,), 768, 128, 6 << 30),
    )
}


@dataclass(frozen=True, slots=True)
class Made:
    """A network as a file: in a folder of its own, beside `model.toml` and its known answers; and how it is run."""

    network: Network
    library: Library
    folder: Path
    precision: BenchPrecision = "fp32"

    @property
    def tolerance(self) -> float:
        """How far answers of two sides may be apart."""
        return TOLERANCE[self.precision]

    @property
    def file(self) -> Path:
        """The model itself."""
        return self.folder / FILE_OF[self.library]

    @property
    def golden(self) -> Path:
        """Known answers as `hermetic seal --golden` takes them."""
        return self.folder.with_suffix(".json")


def made(network: Network, library: Library, folder: Path) -> Made:
    """Return where such a file lies below `folder`."""
    return Made(network, library, folder / f"{network.name}-{library}")


def make_files(
    name: str, libraries: Sequence[Library], folder: Path, budget: Budget | None = None
) -> tuple[list[Made], dict[Library, str]]:
    """Have a process of its own write the network's files; returns them, and for which libraries it could not and why.

    Files that are there are taken as they are. `MeasurementError` where that process fails, or goes on long after
    `budget`.
    """
    missing = [library for library in libraries if not made(NETWORKS[name], library, folder).golden.exists()]
    errors: dict[Library, str] = {}
    if missing:
        job = {"name": name, "libraries": missing, "folder": str(folder)}
        with Child("gpu.networks", job) as child, ended_after(child.pid, budget) if budget else nullcontext():
            errors = child.hear()["errors"]
    return [made(NETWORKS[name], library, folder) for library in libraries if library not in errors], errors


def main() -> None:
    """Write what the job on stdin names."""
    from hermetic.bench.gpu.torch_networks import Exporting

    job = job_from_stdin()
    network, errors = NETWORKS[job["name"]], {}
    exporting = Exporting(network)
    for library in job["libraries"]:
        try:
            _write(exporting, made(network, library, Path(job["folder"])))
        except Exception as error:  # noqa: BLE001 - exporters fail in many ways; whoever asked is told
            errors[library] = f"{type(error).__name__}: {error}"[:1000]
    say({"errors": errors})


def _write(exporting: "Exporting", to: Made) -> None:
    to.folder.mkdir(parents=True, exist_ok=True)
    exporting.export(to.library, to.file)
    (to.folder / "model.toml").write_text(_description(to.network))
    rows = to.network.inputs(KNOWN_ROWS)
    to.golden.write_text(json.dumps({"cases": [_case(to.network, rows, exporting.answers(rows))]}))


def _description(network: Network) -> str:
    return f"""max_batch_size = {network.rows}
[[inputs]]
name = "x"
datatype = "{network.datatype}"
shape = {list(network.dims)}
[[outputs]]
name = "y"
datatype = "FP32"
shape = [{network.answers}]
"""


def _case(network: Network, rows: NDArray[Any], answers: NDArray[Any]) -> dict[str, Any]:
    def tensor(name: str, datatype: str, array: NDArray[Any]) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}

    output = {**tensor("y", "FP32", answers), "rtol": TOLERANCE["fp32"], "atol": TOLERANCE["fp32"]}
    return {"inputs": [tensor("x", network.datatype, rows)], "outputs": [output]}


if __name__ == "__main__":
    main()
