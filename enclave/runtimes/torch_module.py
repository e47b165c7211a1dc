"""Any torch module run on shared memory: inputs are views of it, outputs are copied into it and zeroed."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Final

import torch

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.runtimes.interface import Input, ModelToLoad, Output
from hermetic.errors import ModelFormatError

__all__ = [
    "DTYPE_OF",
    "TorchRuntime",
    "as_file",
    "check_numbers",
    "first_line",
    "in_order",
    "prepare_torch",
    "tensor_over",
]

ERROR_TEXT_LIMIT: Final = 256  # characters of torch's own text

DTYPE_OF: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}
"""v2 datatype -> torch's. BYTES has none."""


class TorchRuntime:
    """One module, called with its inputs in the manifest's order. It returns a tensor, several, or a dict by name."""

    def __init__(self, module: Callable[..., Any], model: ModelToLoad, *, holds_views: bool) -> None:
        self.holds_views = holds_views
        check_numbers(model)
        self._module: Callable[..., Any] | None = module

    def run(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[Tensor]:
        """Run one batch."""
        if self._module is None:
            raise ModelFormatError("torch: wanted a loaded model, got one that is closed")
        tensors = [tensor_over(given.view, DTYPE_OF[given.spec.datatype], given.shape) for given in inputs]
        with torch.inference_mode():
            answers = in_order(self._module(*tensors), [output.spec.name for output in outputs])
            return [_store(answer, output) for answer, output in zip(answers, outputs, strict=True)]

    def close(self) -> None:
        """Drop the module."""
        self._module = None


def check_numbers(model: ModelToLoad) -> None:
    """Refuse a model with strings, which torch does not have."""
    strings = [spec.name for spec in (*model.inputs, *model.outputs) if spec.datatype == BYTES]
    if strings:
        raise ModelFormatError(f"torch: wanted tensors of numbers, got BYTES for {strings}")


def prepare_torch(threads: int) -> None:
    """Say how many threads torch may use. Starts them: not before the lock-down."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)
    # What a model warns of goes nowhere in a locked worker.
    warnings.simplefilter("ignore")


def tensor_over(view: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Return a tensor that is a view of writable memory, which holds exactly its elements."""
    if not view.nbytes:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(view, dtype=dtype).reshape(tuple(shape))


def as_file(model: ModelToLoad) -> bytes:
    """Return the model itself as bytes, which the caller wipes: torch reads archives from the heap only."""
    return bytes(next(iter(model.files.values())))


def first_line(error: Exception) -> str:
    """Return what kind of error torch raised, and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:ERROR_TEXT_LIMIT]}"


def in_order(answer: object, names: Sequence[str]) -> list[object]:
    """Return what a module answered, a tensor, several, or a dict by name, in the order of `names`."""
    if isinstance(answer, Mapping):
        if not set(names) <= answer.keys():
            raise ModelFormatError(f"outputs: wanted the manifest's {list(names)}, got {sorted(map(str, answer))}")
        return [answer[name] for name in names]
    answers = list(answer) if isinstance(answer, tuple | list) else [answer]
    if len(answers) != len(names):
        raise ModelFormatError(f"outputs: wanted {len(names)}, got {len(answers)}")
    return answers


def _store(answer: object, output: Output) -> Tensor:
    wanted = DTYPE_OF[output.spec.datatype]
    if not isinstance(answer, torch.Tensor) or answer.dtype != wanted:
        got = answer.dtype if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ModelFormatError(f"output {output.spec.name!r}: wanted a tensor of {wanted}, got {got}")
    shape = tuple(answer.shape)
    size = prod(shape) * wanted.itemsize
    if size > len(output.view) or output.shape not in (None, shape):
        wanted_shape = "any shape" if output.shape is None else list(output.shape)
        raise ModelFormatError(
            f"output {output.spec.name!r}: wanted {wanted_shape} in {len(output.view)} bytes, got {list(shape)}"
        )
    if size:
        tensor_over(output.view[:size], wanted, shape).copy_(answer)
    return Tensor(size, shape)
