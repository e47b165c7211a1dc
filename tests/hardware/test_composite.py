"""A whole confidential machine with its GPUs, as `hermetic serve` would collect it; skipped where a part is missing.

The same flow runs on software chips in tests/flows/test_composite.py.
"""

import os
from datetime import UTC, datetime

import pytest

from hermetic.attestation.attesters import Attester
from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.attesters.nvgpu import NvGpuAttester
from hermetic.attestation.attesters.snp import SnpAttester, SnpSettings
from hermetic.attestation.attesters.tdx import TdxAttester, TdxSettings
from hermetic.attestation.broker.jwe import tee_key
from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.broker.verification import verify_attestation
from hermetic.attestation.evidence import device_report_data, report_data
from hermetic.attestation.roots import SnpTrust, TrustRoots, amd, intel, nvidia
from hermetic.errors import DeviceError, TsmError
from tests.attestation.broker.independent_guest import make_key

pytestmark = pytest.mark.hardware


def primary() -> Attester:
    reasons = []
    for make in (lambda: SnpAttester(SnpSettings(ConfigfsTsm())), lambda: TdxAttester(TdxSettings(ConfigfsTsm()))):
        try:
            attester: Attester = make()
            attester.collect(os.urandom(48))
        except TsmError as error:
            reasons.append(str(error))
        else:
            return attester
    pytest.skip(f"no confidential VM: {'; '.join(reasons)}")


def test_processor_and_gpus_are_genuine_together() -> None:
    nonce, key = "bm9uY2U=", make_key("P-256")[1]
    attester = CompositeAttester(primary(), [NvGpuAttester()])
    try:
        made = attester.collect(
            device_report_data(nonce, key), lambda text: report_data(nonce, key, additional_evidence=text)
        )
    except DeviceError as error:
        pytest.skip(f"no GPU that makes reports: {error}")
    attestation = Attestation("0.4.0", nonce, tee_key(key), made.primary, made.additional, None)
    trust = TrustRoots(snp=SnpTrust(amd.load()), dcap=intel.load(), nvgpu=nvidia.load())
    claims = verify_attestation(attestation, attester.tee, trust, None, datetime.now(UTC)).claims
    assert [kind.kind for kind in claims.kinds] == [attester.tee, "nvgpu"]
