"""GPUs and MIG slices as NVML and /proc tell of them: a double of the one, folders for the other.

Formats: NVIDIA MIG User Guide, "Device Nodes and Capabilities"; NVML API Reference, "Multi Instance GPU Management".
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.enclave.gpus import Gpu, GpuOrders, environment_of, gpus_here
from hermetic.server.gpu_facts import with_facts
from tests.enclave.test_gpus import listed

GIB = 1 << 30
ACCESS = "DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"


class NvmlError(Exception):
    pass


class NotSupportedError(NvmlError):
    pass


class NotFoundError(NvmlError):
    pass


class PynvmlDouble:
    """The calls that facts need. GPU-aa is cut: its devices 0 and 2 are given, 1 is not. GPU-bb has no MIG at all."""

    NVMLError = NvmlError
    NVMLError_NotSupported = NotSupportedError
    NVMLError_NotFound = NotFoundError

    def __init__(self, cc: int = 0, failing: str = "") -> None:
        self.failing = failing
        self.cc = cc
        self.slices = {0: ("MIG-a0", 1, 0, 10), 2: ("MIG-a2", 9, 1, 20)}

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name == super().__getattribute__("failing"):
            raise AttributeError(name)  # as of a package that is older than the call
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        pass

    nvmlShutdown = nvmlInit  # noqa: N815

    def nvmlSystemGetConfComputeState(self) -> Any:  # noqa: N802
        return SimpleNamespace(ccFeature=self.cc, devToolsMode=0, environment=2)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        gib = self.slices[handle][3] if isinstance(handle, int) else 80
        return SimpleNamespace(total=gib * GIB)

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        if handle != "GPU-aa":
            raise NotSupportedError
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        return 7 if handle == "GPU-aa" else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> int:  # noqa: N802
        if index not in self.slices:
            raise NotFoundError(handle)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return self.slices[handle][0]

    def nvmlDeviceGetGpuInstanceId(self, handle: int) -> int:  # noqa: N802
        return self.slices[handle][1]

    def nvmlDeviceGetComputeInstanceId(self, handle: int) -> int:  # noqa: N802
        return self.slices[handle][2]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """GPU-aa is number 0 and has minor number 3; its instances' nodes are 12 to 15. The node 1 can cut GPUs anew."""
    root = listed(tmp_path, ("19", "GPU-aa", 3), ("61", "GPU-bb", 0))
    capabilities = root / "proc/driver/nvidia/capabilities"
    for path, minor in {
        "mig/config": 1,
        "mig/monitor": 2,
        "gpu3/mig/gi1/access": 12,
        "gpu3/mig/gi1/ci0/access": 13,
        "gpu3/mig/gi9/access": 14,
        "gpu3/mig/gi9/ci1/access": 15,
    }.items():
        (capabilities / path).parent.mkdir(parents=True, exist_ok=True)
        (capabilities / path).write_text(ACCESS.format(minor=minor))
    return root


def found(root: Path, double: PynvmlDouble) -> tuple[Gpu, ...]:
    with NvmlLibrary(double) as nvml:
        return with_facts(gpus_here(root), nvml, root)


def test_a_gpu_that_is_cut_is_its_slices_each_with_its_own_nodes(host: Path) -> None:
    gpus = found(host, PynvmlDouble())
    assert [(one.label, one.visible, one.memory_bytes) for one in gpus] == [
        ("0:0", "MIG-a0", 10 * GIB),
        ("0:2", "MIG-a2", 20 * GIB),
        ("1", "GPU-bb", 80 * GIB),
    ]
    assert [one.nodes for one in gpus] == [
        ("/dev/nvidia3", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"),
        ("/dev/nvidia3", "/dev/nvidia-caps/nvidia-cap14", "/dev/nvidia-caps/nvidia-cap15"),
        ("/dev/nvidia0",),
    ]
    assert not {one.place for one in gpus} & {(0, -1)}


def test_a_worker_is_shown_its_own_slice_alone(host: Path) -> None:
    for gpu in found(host, PynvmlDouble()):
        environment = environment_of(GpuOrders(gpu=gpu, memory_limit_bytes=1))
        assert environment["CUDA_VISIBLE_DEVICES"] == gpu.visible


def without_node(root: Path, _: PynvmlDouble) -> None:
    (root / "proc/driver/nvidia/capabilities/gpu3/mig/gi9/ci1/access").unlink()


def with_a_node_of_words(root: Path, _: PynvmlDouble) -> None:
    access = root / "proc/driver/nvidia/capabilities/gpu3/mig/gi9/access"
    access.write_text(ACCESS.format(minor="../nvidia-cap1"))


@pytest.mark.parametrize("act", [without_node, with_a_node_of_words])
def test_a_slice_that_nothing_would_open_is_none(host: Path, act: Callable[[Path, PynvmlDouble], None]) -> None:
    double = PynvmlDouble()
    act(host, double)
    assert [one.label for one in found(host, double)] == ["0:0", "1"]


@pytest.mark.parametrize("call", ["nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMigMode"])
def test_what_nvml_does_not_tell_stays_unknown(host: Path, call: str) -> None:
    gpus = found(host, PynvmlDouble(cc=1, failing=call))
    assert [(one.label, one.memory_bytes, one.confidential) for one in gpus] == [("0", None, True), ("1", None, True)]


@pytest.mark.parametrize(
    ("cc", "failing", "wanted"), [(1, "", True), (0, "", False), (1, "nvmlSystemGetConfComputeState", False)]
)
def test_confidential_computing_is_what_the_driver_says(host: Path, cc: int, failing: str, wanted: bool) -> None:
    assert {one.confidential for one in found(host, PynvmlDouble(cc, failing))} == {wanted}


def test_orders_with_a_slice_cross_to_a_worker(host: Path) -> None:
    orders = GpuOrders(gpu=found(host, PynvmlDouble())[0], memory_limit_bytes=1, transfers="joined")
    assert GpuOrders.model_validate_json(orders.model_dump_json()) == orders
