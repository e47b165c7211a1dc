"""What runs models: one module per format behind one small interface, and the table that picks it.

    interface.py      `Runtime`, `Input`, `Output`, `ModelToLoad`      interface_on_device.py: the same on a GPU
    onnx_session.py   a graph as a session      onnx_cuda.py, torch_cuda.py: on a GPU
    onnx.py           ONNX Runtime       onnx_graph.py: weights lifted out of a graph, and what a graph may not contain
    torchscript.py    torch.jit          torch_export.py: torch.export       safetensors.py + architectures.py
    aot_inductor.py   native code that torch has compiled
    torch_module.py   running any torch module on shared memory      torch_graphs.py, torch_precision.py: on a GPU
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

from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpus import GpuOrders
from hermetic.enclave.isolation.profiles import PROFILE_OF_FORMAT, PROFILE_ON_GPU
from hermetic.enclave.runtimes.interface import ModelToLoad, Runtime
from hermetic.enclave.runtimes.interface_on_device import DeviceRuntime
from hermetic.errors import DeviceError, HermeticError

__all__ = ["MODULE_OF_FORMAT", "import_runtimes", "load", "load_on_gpu", "open_gpu", "runs"]

_HERE: Final = "hermetic.enclave.runtimes"
MODULE_OF_FORMAT: Final = {
    "onnx": f"{_HERE}.onnx",
    "torchscript": f"{_HERE}.torchscript",
    "torch-export": f"{_HERE}.torch_export",
    "aot-inductor": f"{_HERE}.aot_inductor",
    "safetensors": f"{_HERE}.safetensors",
}
"""Which module loads a manifest's `format`."""

MODULE_ON_GPU: Final = {
    "onnx": f"{_HERE}.onnx_cuda",
    "torchscript": f"{_HERE}.torch_cuda",
    "torch-export": f"{_HERE}.torch_cuda",
    "aot-inductor": f"{_HERE}.torch_cuda",
}
"""Which module loads a format on a GPU; others compute on the CPU only."""


def import_runtimes(profile: str) -> None:
    """Import and warm up every runtime of `profile`, with one thread left afterwards."""
    for format_name, of_format in (*PROFILE_OF_FORMAT.items(), *PROFILE_ON_GPU.items()):
        if of_format == profile:
            importlib.import_module(MODULE_OF_FORMAT[format_name]).warm_up()
            if profile == PROFILE_ON_GPU.get(format_name):
                importlib.import_module(MODULE_ON_GPU[format_name])


def open_gpu(profile: str) -> None:
    """Have the libraries of `profile` open the GPU, and run something on it: what they load and start, they do now.

    Between the first stage of the lock-down and seccomp. Nothing for a profile on the CPU. `DeviceError`.
    """
    for module in {MODULE_ON_GPU[name] for name, of_format in PROFILE_ON_GPU.items() if of_format == profile}:
        try:
            importlib.import_module(module).open_gpu()
        except HermeticError:
            raise
        except Exception as error:  # noqa: BLE001 - libraries raise what they like; there is no model yet
            text = str(error).partition("\n")[0]
            raise DeviceError(f"GPU: wanted its libraries to open it, got {type(error).__name__}: {text}") from None


def runs(profile: str, format_name: str) -> bool:
    """Whether a worker of `profile` loads models of a format."""
    return profile in (PROFILE_OF_FORMAT.get(format_name), PROFILE_ON_GPU.get(format_name))


def load_on_gpu(model: ModelToLoad, memory: DeviceMemory, orders: GpuOrders) -> DeviceRuntime:
    """Return the model on a GPU, loaded by its format's runtime; raises as that does."""
    loader: Callable[[ModelToLoad, DeviceMemory, GpuOrders], DeviceRuntime] = importlib.import_module(
        MODULE_ON_GPU[model.format]
    ).load
    return loader(model, memory, orders)


def load(model: ModelToLoad) -> Runtime:
    """Return the model, loaded by its format's runtime; `ModelFormatError` where its content is refused."""
    loader: Callable[[ModelToLoad], Runtime] = importlib.import_module(MODULE_OF_FORMAT[model.format]).load
    return loader(model)
