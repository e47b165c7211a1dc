"""The requests that a locked worker may make of NVIDIA's driver, by number: what CUDA needs once its context is there.

Nodes /dev/nvidiactl and /dev/nvidiaN: _IOWR('F', number, size); the driver looks at the number alone, and the size is
that of its version's structures, so it is not compared. /dev/nvidia-uvm: plain numbers, all of them past those that
mean something to any file (FIBMAP, FIGETBSZ). Sources: NVIDIA, open-gpu-kernel-modules, kernel-open/common/inc/
nv-ioctl-numbers.h, src/nvidia/arch/nvalloc/unix/include/nv_escape.h, kernel-open/nvidia-uvm/uvm_ioctl.h and
uvm_linux_ioctl.h. Which of them computing needs: gVisor, pkg/sentry/devices/nvproxy/seccomp_filters.go.

Not here, so refused: configuration, registry and I2C of the card, export of memory to other processes and devices, peer
access between GPUs, the tools of UVM that read and write a process's memory, and everything for displays.
"""

from typing import Final

from hermetic.enclave.isolation.seccomp import Argument

__all__ = ["REQUESTS"]

_REQUEST: Final = 1  # the argument of ioctl(2)
_IOWR_F: Final = 0xC0000000 | ord("F") << 8
_WITHOUT_SIZE: Final = 0xC000FFFF

FRONT_END: Final = {
    "NV_ESC_RM_ALLOC_MEMORY": 0x27,
    "NV_ESC_RM_FREE": 0x29,
    "NV_ESC_RM_CONTROL": 0x2A,
    "NV_ESC_RM_ALLOC": 0x2B,
    "NV_ESC_RM_DUP_OBJECT": 0x34,
    "NV_ESC_RM_SHARE": 0x35,
    "NV_ESC_RM_VID_HEAP_CONTROL": 0x4A,
    "NV_ESC_RM_MAP_MEMORY": 0x4E,
    "NV_ESC_RM_UNMAP_MEMORY": 0x4F,
    "NV_ESC_RM_UPDATE_DEVICE_MAPPING_INFO": 0x5E,
    "NV_ESC_CARD_INFO": 200,
    "NV_ESC_REGISTER_FD": 201,
    "NV_ESC_ALLOC_OS_EVENT": 206,
    "NV_ESC_FREE_OS_EVENT": 207,
    "NV_ESC_CHECK_VERSION_STR": 210,
    "NV_ESC_ATTACH_GPUS_TO_FD": 212,
    "NV_ESC_SYS_PARAMS": 214,
    "NV_ESC_WAIT_OPEN_COMPLETE": 218,
}
"""Of /dev/nvidiactl and /dev/nvidiaN."""

UVM: Final = {
    "UVM_INITIALIZE": 0x30000001,
    "UVM_DEINITIALIZE": 0x30000002,
    "UVM_CREATE_RANGE_GROUP": 23,
    "UVM_DESTROY_RANGE_GROUP": 24,
    "UVM_REGISTER_GPU_VASPACE": 25,
    "UVM_UNREGISTER_GPU_VASPACE": 26,
    "UVM_REGISTER_CHANNEL": 27,
    "UVM_UNREGISTER_CHANNEL": 28,
    "UVM_SET_RANGE_GROUP": 31,
    "UVM_MAP_EXTERNAL_ALLOCATION": 33,
    "UVM_FREE": 34,
    "UVM_REGISTER_GPU": 37,
    "UVM_UNREGISTER_GPU": 38,
    "UVM_PAGEABLE_MEM_ACCESS": 39,
    "UVM_SET_PREFERRED_LOCATION": 42,
    "UVM_UNSET_PREFERRED_LOCATION": 43,
    "UVM_DISABLE_READ_DUPLICATION": 45,
    "UVM_UNSET_ACCESSED_BY": 47,
    "UVM_MIGRATE": 51,
    "UVM_MIGRATE_RANGE_GROUP": 53,
    "UVM_MAP_DYNAMIC_PARALLELISM_REGION": 65,
    "UVM_UNMAP_EXTERNAL": 66,
    "UVM_ALLOC_SEMAPHORE_POOL": 68,
    "UVM_VALIDATE_VA_RANGE": 72,
    "UVM_CREATE_EXTERNAL_RANGE": 73,
    "UVM_MM_INITIALIZE": 75,
}
"""Of /dev/nvidia-uvm."""

REQUESTS: Final = (
    *((Argument(_REQUEST, _IOWR_F | number, mask=_WITHOUT_SIZE),) for number in FRONT_END.values()),
    *((Argument(_REQUEST, number),) for number in UVM.values()),
)
"""The alternatives of a filter's rule for ioctl."""
