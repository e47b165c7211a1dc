"""Whether evidence of NVIDIA GPUs and NVSwitches is genuine (docs/spec/nvgpu-evidence.md).

Every device's report is for this nonce and signed by a key that NVIDIA vouches for; firmware is compared where
manifests were given; the devices belong together. Whether the devices, versions and modes are the wanted ones is
policy's question; which machine they are in is known from the CPU's evidence, into which the same nonce and this
evidence's own text go.
"""

from datetime import datetime
from typing import Final

from hermetic.attestation.abi.nvgpu import NONCE_SIZE
from hermetic.attestation.checks import NOT_EVALUATED, Checks
from hermetic.attestation.claims import Claims, NvGpuClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers.nvgpu_device import check_device
from hermetic.attestation.verifiers.nvgpu_evidence import NONCE, NvGpuEvidence
from hermetic.attestation.verifiers.nvgpu_rim import check_collateral
from hermetic.attestation.verifiers.nvgpu_set import check_set, check_statement
from hermetic.errors import FailedCheck, InvalidRequestError, VerificationError

WANTED: Final = "evidence of NVIDIA devices"


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of genuine evidence of NVIDIA devices over `report_data` (32 bytes) at `time`.

    Raises `VerificationError` with every failed check.
    """
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known. Then each report must carry the nonce that
    its file states beside it, else the first one's, and all the same one; and a device that is there several times is
    no failure: a file may hold one device's reports, while what answers a challenge is one machine.
    """
    # (1) The evidence has the right form.
    try:
        parsed = NvGpuEvidence.parse(evidence)
    except InvalidRequestError as error:
        checks.fail("nvgpu.structure", WANTED, error)
        raise VerificationError(checks.failed) from error
    checks.hold("nvgpu.structure")
    if report_data is None:
        checks.skip("nvgpu.nonce_length", "no nonce is wanted")
        carried = sorted({one.report[NONCE].hex() for one in parsed.devices})
        checks.demand("nvgpu.one_nonce", len(carried) == 1, "one nonce in all reports", carried)
    else:
        checks.equal("nvgpu.nonce_length", NONCE_SIZE, len(report_data))
    collateral = check_collateral(checks, trust.nvgpu)
    # (2)-(7) Each device for itself.
    devices = [
        check_device(checks, f"nvgpu.{index}", device, nonce, trust.nvgpu, collateral, time)
        for index, (device, nonce) in enumerate(zip(parsed.devices, parsed.nonces(report_data), strict=True))
    ]
    # (8) What the guest says, and the devices beside each other.
    check_statement(checks, parsed)
    whole = [device for device in devices if device is not None]
    topology = check_set(checks, whole, of_one_machine=report_data is not None)
    checks.raise_failures(VerificationError)
    if len(whole) != len(devices):
        raise VerificationError([FailedCheck("nvgpu.structure", WANTED, "a device without claims")])
    claims = NvGpuClaims(
        checks=checks.passed,
        not_evaluated=tuple(check.name for check in checks.all if check.result == NOT_EVALUATED),
        devices=tuple(device.claims for device in whole),
        cc_state="not evaluated" if parsed.statement is None else "stated",
        topology=topology,
    )
    return Claims(kinds=(claims,))
