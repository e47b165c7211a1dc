"""torch modules at a precision: weights are stored so, products computed so, answers given as the manifest says.

FP32 is FP32: left to itself torch has cuDNN compute convolutions in TF32. TF32 is a precision of its own, by name:
weights stay as they are, and cuBLAS and cuDNN may take it for their products.

FP16 and BF16: what has two dimensions or more (matrices, kernels of convolutions, tables) is stored in the lower
precision; vectors (biases, scales of norms) stay. While the module runs, torch's own lists say per operator what it is
computed in (autocast): products in the lower precision, sums and softmax in FP32.

That answers are near enough to those in FP32 is not taken on trust, whatever the precision: the known answers, which
were computed in FP32, are compared at load (known_answer.py, `Accuracy`).

Source: torch 2.13, torch.amp; torch.backends, `allow_tf32`. Not here: ONNX graphs, which bring their types along.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from hermetic.enclave.gpus import Precision

__all__ = ["Lowering", "multiply_in"]

_DTYPES: Final[Mapping[Precision, torch.dtype]] = {"fp16": torch.float16, "bf16": torch.bfloat16}
_STORED_LOWER: Final = 2  # dimensions: from here on a weight is stored in the lower precision


def multiply_in(precision: Precision) -> None:
    """Have FP32 products of this process computed in TF32, or never: whatever torch's own settings begin with.

    Native code of AOTInductor asks torch for what it calls of cuBLAS and cuDNN; what was compiled into it stays so.
    """
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class Lowering:
    """How modules run at one precision on one kind of device ("cuda", or "cpu" in tests). FP32, TF32: as they are."""

    def __init__(self, precision: Precision, where: str) -> None:
        self._dtype = _DTYPES.get(precision)
        self._where = where

    def store(self, module: Callable[..., Any]) -> None:
        """Have the module's weights take half the room, one after the other."""
        if self._dtype is None or not isinstance(module, torch.nn.Module):
            return
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dtype == torch.float32 and parameter.dim() >= _STORED_LOWER:
                    parameter.data = parameter.data.to(self._dtype)
        if isinstance(module, torch.fx.GraphModule):
            _forget_types(module)

    def computing(self) -> contextlib.AbstractContextManager[object]:
        """Return what to call a module under."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._where, self._dtype, cache_enabled=False)

    def restore(self, answer: object, wanted: torch.dtype) -> object:
        """Return an answer in the type that the manifest gives, where only its precision is another."""
        if self._dtype is None or not isinstance(answer, torch.Tensor) or not wanted.is_floating_point:
            return answer
        return answer.to(wanted) if answer.dtype in (self._dtype, torch.float32) else answer


def _forget_types(module: torch.fx.GraphModule) -> None:
    """Take out what torch.export asserts of the types of values in between: they are others now."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # noqa: SLF001 - its name in torch
            module.graph.erase_node(node)
    module.recompile()
