"""NVML's Python package as the attester sees it, replaying recorded GPUs: the same names, the same fixed buffers.

The layouts are those of nvml.h (CUDA 13): sizes beside buffers of 0x2000, 0x1400 and 0x1000 bytes. A recorded report
is of one nonce; any other is answered by it all the same, as a replaying machine would.
"""

import ctypes
from typing import Any


class State(ctypes.Structure):
    _fields_ = [("environment", ctypes.c_uint), ("ccFeature", ctypes.c_uint), ("devToolsMode", ctypes.c_uint)]


class Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Report(ctypes.Structure):
    _fields_ = [
        ("isCecAttestationReportPresent", ctypes.c_uint),
        ("attestationReportSize", ctypes.c_uint),
        ("cecAttestationReportSize", ctypes.c_uint),
        ("nonce", ctypes.c_uint8 * 0x20),
        ("attestationReport", ctypes.c_uint8 * 0x2000),
        ("cecAttestationReport", ctypes.c_uint8 * 0x1000),
    ]


class Certificate(ctypes.Structure):
    _fields_ = [
        ("certChainSize", ctypes.c_uint),
        ("attestationCertChainSize", ctypes.c_uint),
        ("certChain", ctypes.c_uint8 * 0x1000),
        ("attestationCertChain", ctypes.c_uint8 * 0x1400),
    ]


class NVMLError(Exception):
    """What every failing call raises."""


class NvmlDouble:
    """The module `pynvml` with these GPUs: (architecture, report, chain) each. `failing` names calls that fail."""

    NVMLError = NVMLError

    def __init__(self, gpus: list[tuple[int, bytes, bytes]], failing: tuple[str, ...] = ()) -> None:
        self.gpus = gpus
        self.failing = failing
        self.open = 0
        self.nonces: list[bytes] = []
        self.system = State(2, 1, 0)
        self.oversized = False
        self.busy = 0  # percent
        self.uuids: list[str] = []

    def _called(self, name: str, *, while_open: bool = True) -> None:
        if name in self.failing or (while_open and not self.open):
            raise NVMLError(f"{name}: Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self._called("nvmlInit", while_open=False)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - NVML's name
        self.open -= 1
        self._called("nvmlShutdown", while_open=False)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlSystemGetConfComputeState(self) -> State:  # noqa: N802 - NVML's name
        self._called("nvmlSystemGetConfComputeState")
        return self.system

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlDeviceGetArchitecture(self, handle: int) -> int:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetArchitecture")
        return self.gpus[handle][0]

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetUUID")
        return self.uuids[handle] if self.uuids else f"GPU-{handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Utilization:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetUtilizationRates")
        return Utilization(self.busy, 0)

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: int, nonce: Any) -> Report:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetConfComputeGpuAttestationReport")
        made = Report()
        made.nonce = (ctypes.c_uint8 * len(nonce))(*nonce)  # as the package does it
        self.nonces.append(bytes(made.nonce))
        data = self.gpus[handle][1]
        made.attestationReport[: len(data)] = list(data)
        made.attestationReportSize = 0x2001 if self.oversized else len(data)
        return made

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: int) -> Certificate:  # noqa: N802 - NVML's name
        self._called("nvmlDeviceGetConfComputeGpuCertificate")
        made = Certificate()
        data = self.gpus[handle][2]
        made.attestationCertChain[: len(data)] = list(data)
        made.attestationCertChainSize = len(data)
        return made
