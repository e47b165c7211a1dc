"""GPUs as the driver lists them, in folders that the tests make."""

from pathlib import Path

from hermetic.enclave.gpus import Gpu, GpuOrders, environment_of, gpus_here

INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 17
GPU UUID: \t {uuid}
Bus Location: \t 0000:{bus}:00.0
Device Minor: \t {minor}
"""


def listed(root: Path, *gpus: tuple[str, str, int]) -> Path:
    """A host whose driver lists these: bus, UUID, minor number."""
    for bus, uuid, minor in gpus:
        folder = root / f"proc/driver/nvidia/gpus/0000:{bus}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(INFORMATION.format(uuid=uuid, bus=bus, minor=minor))
    return root


def test_numbers_follow_the_addresses_and_nodes_the_minor_numbers(tmp_path: Path) -> None:
    found = gpus_here(listed(tmp_path, ("61", "GPU-bb", 0), ("19", "GPU-aa", 3)))
    assert [(gpu.number, gpu.uuid, *gpu.nodes) for gpu in found] == [
        (0, "GPU-aa", "/dev/nvidia3"),
        (1, "GPU-bb", "/dev/nvidia0"),
    ]
    assert found[0].name == "NVIDIA H100 80GB HBM3"


def test_a_gpu_that_has_not_told_its_uuid_is_none_and_no_driver_is_no_gpu(tmp_path: Path) -> None:
    (found,) = gpus_here(listed(tmp_path, ("19", "GPU-??-??", 0), ("20", "", 1), ("21", "GPU-cc", 2)))
    assert (found.number, found.uuid) == (2, "GPU-cc")
    assert gpus_here(tmp_path / "nowhere") == ()


def test_a_worker_is_shown_its_own_gpu_alone() -> None:
    orders = GpuOrders(gpu=Gpu(number=5, uuid="GPU-aa", minor=3), memory_limit_bytes=1)
    assert environment_of(orders)["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    assert environment_of(None) == {}
