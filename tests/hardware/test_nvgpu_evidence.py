"""Evidence of the GPUs of this machine, made through NVML and verified; skipped where there is none that makes reports.

The same flow runs on a double in tests/attestation/attesters/test_nvgpu.py.
"""

import os
from datetime import UTC, datetime
from typing import Any

import pytest

from hermetic.attestation.attesters.nvgpu import NvGpuAttester
from hermetic.errors import DeviceError
from tests.attestation.verifiers.nvgpu_recorded import judged

pytestmark = pytest.mark.hardware

# What this machine may lack and its evidence still be a GPU's: the host's settings, not the report's.
SETTINGS = {"nvgpu.cc", "nvgpu.devtools", "nvgpu.environment"}


def made(nonce: bytes) -> Any:
    try:
        return NvGpuAttester().collect(nonce)
    except DeviceError as error:
        pytest.skip(f"not run: {error}")


def test_the_gpus_of_this_machine_make_genuine_evidence() -> None:
    nonce = os.urandom(32)
    _, checks = judged(made(nonce), nonce, time=datetime.now(UTC))
    assert {check.name for check in checks if check.result == "fail"} <= SETTINGS


def test_their_evidence_is_for_one_nonce() -> None:
    nonce = os.urandom(32)
    _, checks = judged(made(nonce), os.urandom(32), time=datetime.now(UTC))
    assert any(check.name.endswith("report.nonce") and check.result == "fail" for check in checks)
