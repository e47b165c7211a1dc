"""The memory that cuBLAS computes in, which torch keeps for each stream from the first product there to the end.

Two libraries, two workspaces: cuBLAS has one, and cuBLASLt, which computes products with a bias, another. Whatever is
in them, every product of a batch writes there. So they are taken before there is a batch, where it can be seen which
they are (runtime_caches.py, `TorchCache.add_scratch`), on every stream that batches or recordings come on.

cuDNN takes its workspaces from torch's allocator for each call, and gives them back.
Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp (`cublas_handle_stream_to_workspace`, and cublaslt's).
"""

from typing import Final

import torch

__all__ = ["SIDE", "take_workspaces"]

SIDE: Final = 64  # rows and columns: more than one, or it is no product for cuBLASLt


def take_workspaces(square: torch.Tensor) -> None:
    """Compute products of FP32[SIDE, SIDE] on the current stream, and keep nothing else of them."""
    torch.mm(square, square)
    torch.nn.functional.linear(square, square, torch.zeros(SIDE, device=square.device))
