"""Whether NVIDIA devices belong together: all of them, none twice, in one mode, linked by the switches that are here.

The steps are those of docs/spec/nvgpu-evidence.md, "The set". Which and how many devices a machine must have is a
policy's question.
"""

from collections.abc import Sequence
from typing import Final

from hermetic.attestation.abi.nvgpu import Opaque
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Evaluated
from hermetic.attestation.verifiers.nvgpu_device import VerifiedDevice
from hermetic.attestation.verifiers.nvgpu_evidence import NvGpuEvidence

SWITCH_ARCH: Final = "LS10"


def check_statement(checks: Checks, evidence: NvGpuEvidence) -> None:
    """Check what the guest's driver says of the machine. No report says it, so without it nothing is evaluated."""
    statement = evidence.statement
    if statement is None:
        for name in ("cc", "devtools", "environment", "count"):
            checks.skip(f"nvgpu.{name}", "the guest does not say it, and no report does")
        return
    checks.equal("nvgpu.cc", "on", statement.cc)
    checks.equal("nvgpu.devtools", "off", statement.devtools)
    checks.equal("nvgpu.environment", "production", statement.environment)
    gpus = sum(device.arch != SWITCH_ARCH for device in evidence.devices)
    checks.equal("nvgpu.count", statement.gpus, gpus)


def check_set(checks: Checks, devices: Sequence[VerifiedDevice], *, of_one_machine: bool = True) -> Evaluated:
    """Check the devices against each other; whether the links between them could be evaluated.

    Reports that nobody has asked for need not be `of_one_machine`: then a device may be there several times.
    """
    for name, values in (
        ("nvgpu.distinct", [one.claims.device for one in devices]),
        ("nvgpu.distinct_keys", [one.claims.ueid for one in devices]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice and not of_one_machine:
            checks.skip(name, f"reports without a challenge need not be of one machine: several times {twice}")
        else:
            checks.equal(name, [], twice)
    gpus = [one for one in devices if one.claims.arch != SWITCH_ARCH]
    switches = [one for one in devices if one.claims.arch == SWITCH_ARCH]
    if gpus:
        kinds = {(one.claims.arch, one.claims.mode or "unsaid", one.claims.driver_version or "none") for one in gpus}
        told = [" ".join(kind) for kind in sorted(kinds)]
        checks.demand("nvgpu.alike", len(kinds) == 1, "GPUs of one architecture, mode and driver", told)
    return _check_topology(checks, gpus, switches)


def _check_topology(checks: Checks, gpus: Sequence[VerifiedDevice], switches: Sequence[VerifiedDevice]) -> Evaluated:
    """Check that GPUs and switches name each other: plain traffic between GPUs goes over these switches only."""
    if not gpus or not switches:
        named = any(one.report.pdis(Opaque.PDI) for one in gpus)
        why = "no evidence of the switches that the GPUs name" if named else "no GPUs with switches"
        checks.skip("nvgpu.topology", why)
        return "not evaluated"
    here = {pdi for one in switches for pdi in one.report.pdis(Opaque.PDI)}
    for number, gpu in enumerate(gpus):
        checks.equal(f"nvgpu.topology.gpu.{number}", here, set(gpu.report.pdis(Opaque.PDI)))
    seen = [set(one.report.pdis(Opaque.SWITCH_GPU_PDIS)) for one in switches]
    for number, linked in enumerate(seen):
        # A GPU's report does not say its own identifier: what can be told is that all see the same, and how many.
        holds = len(linked) == len(gpus) and linked == seen[0]
        checks.demand(f"nvgpu.topology.switch.{number}", holds, f"{len(gpus)} GPUs, the same at each switch", linked)
    return "match"
