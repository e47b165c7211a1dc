"""A recorder of CUDA graphs that is none (runtimes/torch_graphs.py, `Recorder`): its memory is a device double's."""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from math import prod

import torch

from tests.enclave.device_double import TorchCudaDouble

BETWEEN = b"\x77" * 512
WORKSPACE = b"\x66" * 512


class RecorderDouble:
    """Records by keeping what to do, computes nothing meanwhile. Its tensors and its pool are memory of the double.

    What a replay computes in between lies in the pool, where it stays, as a graph's does: `BETWEEN`. Part of it is in
    the workspace of the recording stream (`WORKSPACE`): taken at the first product there, kept, and written to by each
    replay, for its address is in the recording.
    """

    def __init__(self, cuda: TorchCudaDouble) -> None:
        self._cuda = cuda
        self._workspace = 0
        self.calls: list[str] = []
        self.pools: list[int] = []

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        nbytes = max(512, prod(shape) * dtype.itemsize)
        address = self._cuda.allocate(nbytes)
        ctypes.memset(address, 0, nbytes)
        held = (ctypes.c_char * nbytes).from_address(address)
        weakref.finalize(held, self._cuda.free, address)
        raw = torch.frombuffer(held, dtype=dtype)
        return raw[: prod(shape)].reshape(tuple(shape))

    def warm_up(self, act: Callable[[], object]) -> None:
        self.calls.append("warm-up")
        self._take_workspace()
        act()

    def record(self, act: Callable[[], object]) -> Callable[[], object]:
        self.calls.append("record")
        self._take_workspace()
        pool = self._cuda.allocate(512)
        self._cuda.free(pool)  # what a graph uses only in between is free as soon as it is recorded
        self.pools.append(pool)

        def replay() -> None:
            self.calls.append("replay")
            act()
            ctypes.memmove(pool, BETWEEN, len(BETWEEN))
            ctypes.memmove(self._workspace, WORKSPACE, len(WORKSPACE))

        return replay

    def _take_workspace(self) -> None:
        """As cuBLAS does, at the first product on a stream: whoever asks torch later sees that it is in use."""
        self._workspace = self._workspace or self._cuda.allocate(len(WORKSPACE))

    def after_the_last(self) -> None:
        self.calls.append("after")

    def copied_out(self) -> None:
        self.calls.append("copied out")
