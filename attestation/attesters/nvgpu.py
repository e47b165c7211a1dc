"""Evidence of this machine's NVIDIA GPUs: a report over the nonce from each, its chain, and what the driver says of CC.

The supervisor is the only process that holds one. Not here: NVML's own calls (nvgpu_device.py), switches (their
library, NSCQ, is not spoken), any judgement (verifiers/).
"""

import base64
import threading
from typing import Final

from hermetic.attestation.attesters.nvgpu_device import Nvml, NvmlLibrary
from hermetic.attestation.evidence import REPORT_DATA_SIZE, JsonValue, fit
from hermetic.errors import DeviceError, GpuChangedError

ENVIRONMENTS: Final = {0: "unavailable", 1: "simulation", 2: "production"}
ARCHITECTURES: Final = {9: "HOPPER", 10: "BLACKWELL"}
"""NVML_DEVICE_ARCH_* of those that make reports."""


class NvGpuAttester:
    """Makes evidence of kind `nvgpu`. Thread-safe; opens the driver's library for each evidence and closes it again."""

    tee: Final = "nvidia"

    def __init__(self, nvml: Nvml | None = None) -> None:
        """Take the driver's interface; NVML by default, whose package (nvidia-ml-py) is imported when it is asked."""
        self._nvml = NvmlLibrary() if nvml is None else nvml
        self._lock = threading.Lock()

    def extend(self, digest: bytes) -> None:
        """Do nothing: no register of a GPU takes a manifest."""

    def collect(self, report_data: bytes) -> JsonValue:
        """Reports of all GPUs over `report_data`, cut to 32 bytes, in the form of docs/spec/nvgpu-evidence.md.

        Raises `DeviceError` where there is no driver, where a GPU makes no report or is of another architecture, and
        `GpuChangedError` where the driver has none.
        """
        nonce = fit(report_data, REPORT_DATA_SIZE[self.tee])
        with self._lock, self._nvml as nvml:
            state = nvml.state()
            devices = [_device(nvml, index, nonce) for index in range(nvml.count())]
        if not devices:
            raise GpuChangedError("NVIDIA driver: expected a GPU, got none")
        return {
            "device_evidence_list": devices,
            "hermetic": {
                "cc": "on" if state.cc else "off",
                "devtools": "on" if state.devtools else "off",
                "environment": ENVIRONMENTS.get(state.environment, "unavailable"),
                "gpus": len(devices),
            },
        }


def _device(nvml: Nvml, index: int, nonce: bytes) -> JsonValue:
    number = nvml.architecture(index)
    if number not in ARCHITECTURES:
        raise DeviceError(f"GPU {index}: expected architecture {sorted(ARCHITECTURES.values())}, got NVML's {number}")
    return {
        "arch": ARCHITECTURES[number],
        "uuid": nvml.uuid(index),
        "evidence": _b64(nvml.report(index, nonce)),
        "certificate": _b64(nvml.certificate(index)),
    }


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
