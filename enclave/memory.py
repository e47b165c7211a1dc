"""Where a worker's batches lie, and when that memory is wiped: one interface, for runtimes on the CPU and on a GPU.

    memory.py           the interface, and which profile gets which implementation
    host_memory.py      the CPU's: private copies of inputs; and the staging of the GPU's
    device_memory.py    the GPU's logic: what is wiped when, and what runtimes cache; runs on a double without a GPU
    device_batch.py     the GPU's batches: request buffers, staging, and how tensors travel
    runtime_caches.py   the memory that torch and onnxruntime keep for later: which of it is free, which is in use
    cuda_driver.py      the GPU itself: eighteen calls of NVIDIA's driver

The contract, on both:
 (1) After a batch, answered or failed, nothing of it is left in memory that was given out here (`forget`).
 (2) Before a batch of another tenant begins, nothing is left in what its runtime freed and keeps (`begin`).
 (3) After a model is unloaded, nothing of it or of any batch is left in memory that this process can get (`unload`).
 (4) Memory is wiped only after the device has finished with it, and reused or freed only after the wipe is finished.
 (5) Where any of it cannot be done, the call raises, the memory is neither used nor freed again, and the worker ends.

How: docs/adr/0164-free-blocks-are-found-and-filled.md. What is not covered: LIMITATIONS.md.
"""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.host_memory import HostBlock, HostMemory
from hermetic.errors import ConfigurationError

__all__ = ["BatchMemory", "Memory", "open_memory"]


class BatchMemory(Protocol):
    """Memory for one batch at a time. Not thread-safe."""

    def begin(self, tenant: bytes | None) -> None:
        """Say whose batch comes next: any bytes that tell tenants apart. None: not known, so maybe another's.

        Wipes what an earlier tenant's batches left. Raises `DeviceError` where it cannot, and where a batch of another
        tenant has not been forgotten yet.
        """

    def take(self, index: int, address: int, nbytes: int, capacity: int) -> HostBlock:
        """Copy input `index`, `nbytes` at `address`, into private memory; return exactly that.

        `capacity`: bytes that this input can have at most. Raises `DeviceError` or `OSError` without memory.
        """

    def forget(self, *, failed: bool) -> None:
        """Wipe all that the batch put here. Must follow each `begin`, whatever happened in between.

        `failed`: the runtime may have left work behind. Raises `DeviceError` where wiping cannot be shown to be done.
        """


class Memory(Protocol):
    """All memory that a worker's batches lie in."""

    def batch(self, inputs: int) -> BatchMemory:
        """Return memory for one batch at a time of a model with so many inputs; several may be in flight."""

    def unload(self) -> None:
        """Wipe and give back everything, once the runtime has given up its model. Raises `DeviceError`."""


_OF_PROFILE: Final[Mapping[str, Callable[[], Memory]]] = {
    "onnx-cpu": HostMemory,
    "torch-cpu": HostMemory,
    "torch-native": HostMemory,
    "onnx-cuda": lambda: DeviceMemory(CudaDevice()),
    "torch-cuda": lambda: DeviceMemory(CudaDevice()),
    "torch-native-cuda": lambda: DeviceMemory(CudaDevice()),
}


def open_memory(profile: str) -> Memory:
    """Return the memory for a lock-down profile. Before seccomp: a GPU's driver opens files and starts threads.

    Raises `ConfigurationError` for a profile that there is none for, `DeviceError` where there is no GPU.
    """
    opener = _OF_PROFILE.get(profile)
    if opener is None:
        raise ConfigurationError(f"memory: wanted a profile of {sorted(_OF_PROFILE)}, got {profile!r}")
    return opener()
