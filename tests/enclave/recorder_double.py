"""A recorder of CUDA graphs that is none (runtimes/torch_graphs.py, `Recorder`): its memory is a device double's."""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from math import prod

import torch

from tests.enclave.device_double import TorchCudaDouble


class RecorderDouble:
    """Records by keeping what to do, computes nothing meanwhile. Its tensors and its pool are memory of the double.

    What a replay computes in between lies in the pool, where it stays, as a graph's does: `between` of the last batch.
    """

    def __init__(self, cuda: TorchCudaDouble) -> None:
        self._cuda = cuda
        self._recording = False
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
        act()

    def record(self, act: Callable[[], object]) -> Callable[[], object]:
        self.calls.append("record")
        pool = self._cuda.allocate(512)
        self._cuda.free(pool)  # what a graph uses only in between is free as soon as it is recorded
        self.pools.append(pool)

        def replay() -> None:
            self.calls.append("replay")
            act()
            ctypes.memset(pool, 0x77, 512)

        return replay

    def after_the_last(self) -> None:
        self.calls.append("after")

    def copied_out(self) -> None:
        self.calls.append("copied out")
