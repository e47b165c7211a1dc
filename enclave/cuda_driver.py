"""The GPU as device_memory.py needs it: eighteen calls of NVIDIA's driver, through ctypes.

The driver and not the runtime library: it is there wherever a GPU is, its names and types do not change with the
version of CUDA that torch or onnxruntime bring, and both of them work in the context that it calls primary. Source:
CUDA Driver API, sections 6.6 (primary context), 6.13 (memory) and 6.18 (streams). Not here: kernels, graphs, NVML.
"""

import ctypes
from typing import Any, Final

from hermetic.enclave.host_memory import HostBlock, PrivatePages, wipe_at
from hermetic.errors import DeviceError, DeviceFullError

__all__ = ["CudaDevice"]

LIBRARY: Final = "libcuda.so.1"
_SUCCESS: Final = 0
_OUT_OF_MEMORY: Final = 2
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: not ordered behind the legacy default stream
_NAME_BYTES: Final = 256

_INT: Final = ctypes.c_int
_SIZE: Final = ctypes.c_size_t
_UNSIGNED: Final = ctypes.c_uint
_ADDRESS: Final = ctypes.c_uint64  # CUdeviceptr
_POINTER: Final = ctypes.c_void_p

# The driver exports the newest binary interface of a call under `_v2`.
_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (_UNSIGNED,),
    "cuDeviceGetCount": (_POINTER,),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDeviceGetName": (_POINTER, _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuCtxSetCurrent": (_POINTER,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_POINTER, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostRegister_v2": (_POINTER, _SIZE, _UNSIGNED),
    "cuMemHostUnregister": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuMemsetD8Async": (_ADDRESS, ctypes.c_ubyte, _SIZE, _POINTER),
    "cuStreamCreate": (_POINTER, _UNSIGNED),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamSynchronize": (_POINTER,),
}


class CudaDevice:
    """One GPU in its primary context (device_memory.py, `Device`). Errors are `DeviceError` with the driver's code."""

    def __init__(self, index: int = 0, driver: object | None = None) -> None:
        """Open GPU `index` as CUDA counts them. `driver`: other than this host's, for tests.

        Raises `DeviceError` where there is no driver or no such GPU.
        """
        self._driver: object = _load() if driver is None else driver
        for name, arguments in _CALLS.items():
            function = getattr(self._driver, name, None)
            if function is None:
                raise DeviceError(f"GPU: wanted a driver with {name}, got one without")
            function.argtypes, function.restype = arguments, _INT
        self._pages = PrivatePages()
        self._locked: set[int] = set()
        self.index = index
        self._call("cuInit", 0)
        self._handle = self._ordinal(index)
        context = _POINTER()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle)
        self._context = context
        self.use_here()

    def _ordinal(self, index: int) -> int:
        count, handle = _INT(), _INT()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= index < count.value:
            raise DeviceError(f"GPU: wanted number {index}, got {count.value} in all")
        self._call("cuDeviceGet", ctypes.byref(handle), index)
        return handle.value

    @property
    def name(self) -> str:
        """What the driver calls this GPU."""
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._handle)
        return name.value.decode(errors="replace")

    def use_here(self) -> None:
        """Make the context current in the calling thread, for all other methods."""
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Return what the driver could still give out, in bytes."""
        free, total = _SIZE(), _SIZE()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` of memory with any content; `DeviceFullError` where there is no room."""
        self.use_here()  # a runtime may ask on a thread of its own
        address = _ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
        return address.value

    def free(self, address: int) -> None:
        """Give memory back to the driver."""
        self.use_here()
        self._call("cuMemFree_v2", address)

    def allocate_host(self, nbytes: int, *, locked: bool = True) -> HostBlock:
        """Return zeros. Mapped by us and then locked: what the driver maps is not to be scanned."""
        block = self._pages.allocate(nbytes)
        if locked:
            self.lock_host(block.address, len(block.view))
        return block

    def wipe_host(self, block: HostBlock, nbytes: int) -> None:
        """Zero the first `nbytes`. The device must have finished with them."""
        wipe_at(block.address, min(nbytes, len(block.view)))

    def free_host(self, block: HostBlock) -> None:
        """Unlock and unmap."""
        if block.address in self._locked:
            self.unlock_host(block.address)
        self._pages.free(block)

    def lock_host(self, address: int, nbytes: int) -> None:
        """Page-lock what is mapped already, shared memory too. `DeviceFullError` where no more can be locked."""
        self._call("cuMemHostRegister_v2", address, nbytes, 0)
        self._locked.add(address)

    def unlock_host(self, address: int) -> None:
        """Undo that."""
        self._call("cuMemHostUnregister", address)
        self._locked.discard(address)

    def stream(self) -> int:
        """Return a new stream, as a number that torch's `ExternalStream` takes."""
        stream = _POINTER()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def end_stream(self, stream: int) -> None:
        """Give up a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def copy_in(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Begin to copy from page-locked main memory to the device."""
        self._call("cuMemcpyHtoDAsync_v2", address, host, nbytes, stream)

    def copy_out(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Begin to copy from the device to page-locked main memory."""
        self._call("cuMemcpyDtoHAsync_v2", host, address, nbytes, stream)

    def fill(self, address: int, nbytes: int, stream: int) -> None:
        """Begin to zero device memory."""
        self._call("cuMemsetD8Async", address, 0, nbytes, stream)

    def wait(self, stream: int | None) -> None:
        """Wait for a stream; for everything in this context where `stream` is None."""
        if stream is None:
            self._call("cuCtxSynchronize")
        else:
            self._call("cuStreamSynchronize", stream)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise DeviceFullError(f"GPU: wanted memory for {name}, got none free")
        if code != _SUCCESS:
            raise DeviceError(f"GPU: wanted {name} to succeed, got CUDA error {code}")


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        raise DeviceError(f"GPU: wanted NVIDIA's driver as {LIBRARY}, got no such library") from None
