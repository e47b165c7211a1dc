"""A loaded model of one input and one output on a GPU that is a double: asked by batches, as its worker would be."""

import mmap
from typing import Any

import numpy as np

from hermetic.enclave.batch_frames import Batch, Done, Tensor, decode_done
from hermetic.enclave.batch_runner import SharedBuffers
from hermetic.enclave.buffers import layout
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.device_runner import DeviceRunner
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceRuntime
from tests.enclave.sealed_models import spec
from tests.enclave.worker_on_double import described

Rows = np.ndarray[Any, np.dtype[np.float32]]

LARGEST = 4


def orders(memory_limit_bytes: int, **more: Any) -> GpuOrders:
    return GpuOrders(gpu=Gpu(number=0, uuid="GPU-aa", minor=0), memory_limit_bytes=memory_limit_bytes, **more)


def to_load(format_name: str, file: str, content: bytes, columns: int, **more: Any) -> ModelToLoad:
    """Return the model whose rows of FP32[columns] have answers of the same shape."""
    ends = (spec("x", "FP32", columns),), (spec("y", "FP32", columns),)
    return ModelToLoad(format_name, None, {file: memoryview(bytearray(content))}, *ends, LARGEST, 1, **more)


class Model:
    """It, and what is left of it."""

    def __init__(self, runtime: DeviceRuntime, device: Any, memory: DeviceMemory, columns: int) -> None:
        description = described("FP32", columns, columns).model_copy(update={"max_batch_size": LARGEST})
        self.device = device
        self.memory = memory
        self.runner = DeviceRunner(runtime, description, memory)
        self._places = layout(description, 1, 4096)
        self._buffers = SharedBuffers(mmap.mmap(-1, self._places.size), self._places)

    def told(self, rows: Rows, tenant: bytes | None = None) -> Done:
        """Return what is said of a batch."""
        self._buffers.region(0, self._places.inputs[0])[0][: rows.nbytes] = rows.tobytes()
        batch = Batch(0, 0, (Tensor(rows.nbytes, rows.shape),))
        return decode_done(self.runner.finish(self.runner.start(batch, self._buffers, tenant)))

    def ask(self, rows: Rows, tenant: bytes | None = None) -> Rows:
        """Return the answers, which lie where a front end reads them."""
        done = self.told(rows, tenant)
        if done.text:
            raise ValueError(done.text)
        raw = bytes(self._buffers.region(0, self._places.outputs[0])[0][: rows.nbytes])
        return np.frombuffer(raw, np.float32).reshape(rows.shape)

    def unload(self) -> bytes:
        """Give all of it up; return what is left of the device's memory that is not zero."""
        self.runner.close()
        self.memory.unload()
        left: bytes = self.device.device_bytes().strip(b"\0")
        return left
