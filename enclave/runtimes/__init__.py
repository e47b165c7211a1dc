"""What runs models: one module per format behind one small interface, and the table that picks it.

    interface.py      `Runtime`, `Input`, `Output`, `ModelToLoad`
    onnx.py           ONNX Runtime       onnx_graph.py: weights lifted out of a graph, and what a graph may not contain
    torchscript.py    torch.jit          torch_export.py: torch.export       safetensors.py + architectures.py
    torch_module.py   running any torch module on shared memory
    strings.py        BYTES tensors

What a model's files may hold is judged before a runtime sees them, and by `hermetic seal` too:

    onnx_wire.py  onnx_checks.py        ONNX: bytes on the wire, then the graph
    archive.py    torch_archives.py     ZIP archives, then what torch writes into them
    safetensors_header.py               refusals.py: the names of all refusals

A runtime is imported by `import_runtimes` before the lock-down; afterwards there is no file to import from.
"""

import importlib
from collections.abc import Callable
from typing import Final

from hermetic.enclave.runtimes.interface import ModelToLoad, Runtime

__all__ = ["MODULE_OF_FORMAT", "PROFILE_OF_FORMAT", "import_runtimes", "load"]

_HERE: Final = "hermetic.enclave.runtimes"
MODULE_OF_FORMAT: Final = {
    "onnx": f"{_HERE}.onnx",
    "torchscript": f"{_HERE}.torchscript",
    "torch-export": f"{_HERE}.torch_export",
    "safetensors": f"{_HERE}.safetensors",
}
"""Which module loads a manifest's `format`."""

PROFILE_OF_FORMAT: Final = {
    "onnx": "onnx-cpu",
    "torchscript": "torch-cpu",
    "torch-export": "torch-cpu",
    "safetensors": "torch-cpu",
}
"""Which lock-down profile a format's runtime needs."""


def import_runtimes(profile: str) -> None:
    """Import and warm up every runtime of `profile`, with one thread left afterwards."""
    for format_name, of_format in PROFILE_OF_FORMAT.items():
        if of_format == profile:
            importlib.import_module(MODULE_OF_FORMAT[format_name]).warm_up()


def load(model: ModelToLoad) -> Runtime:
    """Return the model, loaded by its format's runtime; `ModelFormatError` where its content is refused."""
    loader: Callable[[ModelToLoad], Runtime] = importlib.import_module(MODULE_OF_FORMAT[model.format]).load
    return loader(model)
