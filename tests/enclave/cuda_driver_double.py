"""NVIDIA's driver over main memory: the C signatures of its manual, so that a call with other arguments is found out.

Source of signatures: CUDA Driver API reference manual, 13.0. Work is done at once: order is device_double.py's matter.
"""

import ctypes
from collections.abc import Callable
from typing import Any

OUT_OF_MEMORY = 2
INVALID_VALUE = 1
ROOM = 64 << 20  # bytes that one allocation can have
PAGE = 4096

_int = ctypes.c_int
_p_int = ctypes.POINTER(ctypes.c_int)
_p_size = ctypes.POINTER(ctypes.c_size_t)
_p_void = ctypes.POINTER(ctypes.c_void_p)
_p_device = ctypes.POINTER(ctypes.c_ulonglong)
_device = ctypes.c_ulonglong
_size = ctypes.c_size_t
_void = ctypes.c_void_p
_uint = ctypes.c_uint

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_uint,),
    "cuDeviceGetCount": (_p_int,),
    "cuDeviceGet": (_p_int, _int),
    "cuDeviceGetName": (_void, _int, _int),
    "cuDevicePrimaryCtxRetain": (_p_void, _int),
    "cuCtxSetCurrent": (_void,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_p_size, _p_size),
    "cuMemAlloc_v2": (_p_device, _size),
    "cuMemFree_v2": (_device,),
    "cuMemHostRegister_v2": (_void, _size, _uint),
    "cuMemHostUnregister": (_void,),
    "cuMemcpyHtoDAsync_v2": (_device, _void, _size, _void),
    "cuMemcpyDtoHAsync_v2": (_void, _device, _size, _void),
    "cuMemsetD8Async": (_device, ctypes.c_ubyte, _size, _void),
    "cuStreamCreate": (_p_void, _uint),
    "cuStreamDestroy_v2": (_void,),
    "cuStreamSynchronize": (_void,),
}


class CudaDriverDouble:
    """Has a function for each name, as a loaded library has. `gpus`: how many there are."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.locked: dict[int, int] = {}
        self.no_more_locks = False
        self.streams = 0
        for name, arguments in SIGNATURES.items():
            setattr(self, name, ctypes.CFUNCTYPE(_int, *arguments)(self._noting(name, getattr(self, f"_{name}"))))

    def _noting(self, name: str, act: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return act(*arguments)

        return call

    def _cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return 0 if flags == 0 else INVALID_VALUE

    def _cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count[0] = self.gpus
        return 0

    def _cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        handle[0] = 70 + index
        return 0

    def _cuDeviceGetName(self, name: int, length: int, handle: int) -> int:  # noqa: N802
        ctypes.memmove(name, b"double\0", min(length, 7))
        return 0 if handle >= 70 else INVALID_VALUE

    def _cuDevicePrimaryCtxRetain(self, context: Any, handle: int) -> int:  # noqa: N802
        context[0] = 0xC0
        return 0 if handle >= 70 else INVALID_VALUE

    def _cuCtxSetCurrent(self, context: int) -> int:  # noqa: N802
        return 0 if context == 0xC0 else INVALID_VALUE

    def _cuCtxSynchronize(self) -> int:  # noqa: N802
        return 0

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free[0], total[0] = ROOM - sum(map(len, self.memory.values())), ROOM
        return 0

    def _cuMemAlloc_v2(self, address: Any, nbytes: int) -> int:  # noqa: N802
        if not 0 < nbytes <= ROOM:
            return OUT_OF_MEMORY if nbytes else INVALID_VALUE
        memory = ctypes.create_string_buffer(nbytes)
        address[0] = ctypes.addressof(memory)
        self.memory[ctypes.addressof(memory)] = memory
        return 0

    def _cuMemFree_v2(self, address: int) -> int:  # noqa: N802
        return 0 if self.memory.pop(address, None) is not None else INVALID_VALUE

    def _cuMemHostRegister_v2(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        if self.no_more_locks:
            return OUT_OF_MEMORY
        self.locked[address] = nbytes
        return 0 if address % PAGE == 0 and nbytes and flags == 0 else INVALID_VALUE

    def _cuMemHostUnregister(self, address: int) -> int:  # noqa: N802
        return 0 if self.locked.pop(address, None) else INVALID_VALUE

    def _cuMemcpyHtoDAsync_v2(self, address: int, host: int, nbytes: int, stream: int) -> int:  # noqa: N802
        ctypes.memmove(address, host, nbytes)
        return 0 if stream else INVALID_VALUE

    def _cuMemcpyDtoHAsync_v2(self, host: int, address: int, nbytes: int, stream: int) -> int:  # noqa: N802
        ctypes.memmove(host, address, nbytes)
        return 0 if stream else INVALID_VALUE

    def _cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> int:  # noqa: N802
        ctypes.memset(address, value, nbytes)
        return 0 if stream else INVALID_VALUE

    def _cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        self.streams += 1
        stream[0] = 0x5000 + self.streams
        return 0 if flags == 1 else INVALID_VALUE

    def _cuStreamDestroy_v2(self, stream: int) -> int:  # noqa: N802
        return 0 if stream > 0x5000 else INVALID_VALUE

    def _cuStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        return 0 if stream > 0x5000 else INVALID_VALUE
