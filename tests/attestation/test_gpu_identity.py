"""What a host's own evidence says of its GPUs, and when one is not what a model was loaded on: on doubles that sign."""

from typing import Any

import pytest

from hermetic.attestation.attesters.nvgpu import NvGpuAttester
from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.attestation.evidence import canonical
from hermetic.attestation.gpu_identity import GpuFacts, check_gpu, gpus_in
from hermetic.errors import DeviceError, GpuChangedError
from tests.attestation.machines import Gpu, SigningNvml, device_name, vendor_of_now
from tests.attestation.verifiers.nvgpu_made import Chip

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def chips() -> list[Chip]:
    vendor = vendor_of_now()
    return [vendor.chip(), vendor.chip()]


def evidence_of(nvml: SigningNvml) -> str:
    made: Any = NvGpuAttester(NvmlLibrary(nvml)).collect(NONCE)
    return canonical({"nvidia": made}).decode()


def driver_of(*chips: Chip) -> SigningNvml:
    return SigningNvml([Gpu(chip.leaf, chip.chain) for chip in chips])


def seen(nvml: SigningNvml) -> tuple[GpuFacts, ...]:
    return gpus_in(evidence_of(nvml), NONCE)


def test_each_gpu_is_named_by_its_chip_with_versions_and_modes(chips: list[Chip]) -> None:
    first, second = seen(driver_of(*chips))
    assert (first.uuid, second.uuid) == ("GPU-0", "GPU-1")
    assert [first.device, second.device] == list(map(device_name, chips))
    assert (first.architecture, first.cc, first.devtools, first.environment) == ("HOPPER", "on", "off", "production")
    assert first.driver
    assert first.vbios
    assert check_gpu("GPU-1", second, (first, second)) == second
    assert check_gpu("GPU-0", None, (first, second)) == first


def test_a_host_without_gpus_in_its_evidence_has_none() -> None:
    assert gpus_in("", NONCE) == ()
    assert gpus_in('{"other":{}}', NONCE) == ()


def test_a_report_over_another_nonce_is_no_evidence(chips: list[Chip]) -> None:
    with pytest.raises(DeviceError, match="over its nonce, got ValueError: a report over 0001"):
        gpus_in(evidence_of(driver_of(chips[0])), bytes(32))


def test_a_gpu_that_is_gone_is_named(chips: list[Chip]) -> None:
    (first, _) = seen(driver_of(*chips))
    with pytest.raises(GpuChangedError, match=r"^GPU GPU-1: wanted it in this host's evidence, got \['GPU-0'\]$"):
        check_gpu("GPU-1", first, (first,))
    with pytest.raises(GpuChangedError, match="expected a GPU, got none"):
        evidence_of(driver_of())


def test_another_chip_under_the_same_name_is_another_gpu(chips: list[Chip]) -> None:
    (before,), (after,) = seen(driver_of(chips[0])), seen(driver_of(chips[1]))
    assert before.uuid == after.uuid
    with pytest.raises(GpuChangedError, match=f"got another device: wanted {before.device}, got {after.device}"):
        check_gpu("GPU-0", before, (after,))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ((2, 0, 0), "cc: wanted on, got off"),
        ((2, 1, 1), "devtools: wanted off, got on"),
        ((1, 1, 0), "environment: wanted production, got simulation"),
    ],
)
def test_a_mode_that_changed_is_another_gpu(chips: list[Chip], state: tuple[int, int, int], said: str) -> None:
    nvml = driver_of(chips[0])
    (before,) = seen(nvml)
    nvml.system.environment, nvml.system.ccFeature, nvml.system.devToolsMode = state
    with pytest.raises(GpuChangedError, match=said):
        check_gpu("GPU-0", before, seen(nvml))


@pytest.mark.parametrize("name", ["driver", "vbios", "architecture"])
def test_another_version_is_another_gpu(chips: list[Chip], name: str) -> None:
    (before,) = seen(driver_of(chips[0]))
    after = GpuFacts(**{**before.facts(), name: "another"})  # type: ignore[arg-type]
    with pytest.raises(GpuChangedError, match=f"{name}: wanted .*, got another"):
        check_gpu("GPU-0", before, (after,))
