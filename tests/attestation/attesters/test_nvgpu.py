"""The attester on a double of NVML that replays recorded GPUs: what it makes is what the verifier accepts."""

import base64
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.attesters import Attester
from hermetic.attestation.attesters.nvgpu import NvGpuAttester
from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.errors import DeviceError
from tests.attestation.attesters.nvml_double import NvmlDouble
from tests.attestation.verifiers.nvgpu_recorded import chain, devices_of, evidence_of, failures, judged, report

HOPPER, AMPERE = 9, 7


def recorded() -> list[tuple[int, bytes, bytes]]:
    devices = devices_of(evidence_of({"evidence": "multi_gpu_hopper.json"}))
    decode = base64.b64decode
    return [(HOPPER, decode(one["evidence"]), decode(one["certificate"])) for one in devices]


def attester(double: NvmlDouble) -> NvGpuAttester:
    return NvGpuAttester(NvmlLibrary(double))


def test_what_is_made_is_genuine() -> None:
    gpus = recorded()
    nonce = gpus[0][1][4:36]
    double = NvmlDouble(gpus)
    evidence: Any = attester(double).collect(nonce + bytes(16))
    assert double.nonces == [nonce] * 4, "48 bytes are cut to the 32 of a report"
    assert double.open == 0
    claims, _ = judged(evidence, nonce)
    assert claims is not None
    assert claims.cc_state == "stated"
    assert isinstance(attester(double), Attester)


@pytest.mark.parametrize(
    ("state", "fails"),
    [((2, 0, 0), "nvgpu.cc"), ((2, 1, 1), "nvgpu.devtools"), ((1, 1, 0), "nvgpu.environment"),
     ((0, 1, 0), "nvgpu.environment"), ((7, 1, 0), "nvgpu.environment")],
)  # fmt: skip
def test_what_the_driver_says_is_carried(state: tuple[int, int, int], fails: str) -> None:
    double = NvmlDouble([(HOPPER, report("hopper_535"), chain("hopper_535"))])
    double.system.environment, double.system.ccFeature, double.system.devToolsMode = state
    nonce = report("hopper_535")[4:36]
    assert failures(attester(double).collect(nonce), nonce) == {fails}


def test_a_replayed_report_is_found_by_its_nonce() -> None:
    double = NvmlDouble([(HOPPER, report("hopper_535"), chain("hopper_535"))])
    assert failures(attester(double).collect(bytes(48)), bytes(32)) == {"nvgpu.0.report.nonce"}


@pytest.mark.parametrize(
    "call",
    ["nvmlInit", "nvmlDeviceGetCount", "nvmlSystemGetConfComputeState", "nvmlDeviceGetHandleByIndex",
     "nvmlDeviceGetArchitecture", "nvmlDeviceGetUUID", "nvmlDeviceGetConfComputeGpuAttestationReport",
     "nvmlDeviceGetConfComputeGpuCertificate"],
)  # fmt: skip
def test_a_driver_that_fails_is_a_device_error_and_is_closed(call: str) -> None:
    double = NvmlDouble(recorded(), failing=(call,))
    with pytest.raises(DeviceError, match=f"could not .*{call}: Not Supported"):
        attester(double).collect(bytes(48))
    assert double.open == 0


def test_a_failure_to_close_loses_no_evidence() -> None:
    double = NvmlDouble(recorded(), failing=("nvmlShutdown",))
    assert attester(double).collect(bytes(48))


def test_no_gpu_an_old_one_and_a_wrong_size_are_refused() -> None:
    with pytest.raises(DeviceError, match="expected a GPU, got none"):
        attester(NvmlDouble([])).collect(bytes(48))
    with pytest.raises(DeviceError, match="GPU 0: expected architecture"):
        attester(NvmlDouble([(AMPERE, b"", b"")])).collect(bytes(48))
    double = NvmlDouble(recorded())
    double.oversized = True
    with pytest.raises(DeviceError, match="report: expected 1 to 8192 bytes, got 8193"):
        attester(double).collect(bytes(48))
    with NvmlLibrary(double) as library, pytest.raises(DeviceError, match="a nonce of 32 bytes, got 31"):
        library.report(0, bytes(31))


def test_the_package_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = NvGpuAttester()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(DeviceError, match="expected the package nvidia-ml-py"):
        made.collect(bytes(48))


def test_the_drivers_library_may_lie_elsewhere(tmp_path: Path) -> None:
    """Loaded from its path first, it is the one that the package then finds under the library's own name."""
    source, library = tmp_path / "nvml.c", tmp_path / "elsewhere.so"
    source.write_text("int the_answer(void) { return 42; }\n")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    name = "libhermetic-test-nvml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", library, source], check=True)
    double = NvmlDouble(recorded())
    with pytest.raises(OSError, match=name):
        ctypes.CDLL(name)
    with NvmlLibrary(double, library):
        assert ctypes.CDLL(name).the_answer() == 42
