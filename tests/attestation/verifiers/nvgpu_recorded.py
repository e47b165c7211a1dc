"""Recorded evidence of NVIDIA devices, as the tests take it."""

import base64
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hermetic.attestation.checks import Check, Checks
from hermetic.attestation.claims import Claims, NvGpuClaims
from hermetic.attestation.roots import NvGpuTrust, TrustRoots, nvidia
from hermetic.attestation.verifiers import nvgpu
from hermetic.errors import VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "nvgpu"
CASES: list[dict[str, Any]] = json.loads((VECTORS / "cases.json").read_text())
THEN = datetime(2024, 6, 1, tzinfo=UTC)


def report(name: str) -> bytes:
    """A report that is kept as hex."""
    return bytes.fromhex((VECTORS / f"{name}.report.hex").read_text())


def chain(name: str) -> bytes:
    """A chain, PEM."""
    return (VECTORS / f"{name}.chain.pem").read_bytes()


def device(transcript: bytes, certificates: bytes, arch: str = "HOPPER") -> dict[str, Any]:
    """One device as it travels."""
    return {
        "arch": arch,
        "uuid": "unknown",
        "evidence": base64.b64encode(transcript).decode(),
        "certificate": base64.b64encode(certificates).decode(),
    }


def evidence_of(case: dict[str, Any]) -> Any:
    """The evidence of a case, in the form of its file or in Trustee's."""
    if "evidence" in case:
        return json.loads((VECTORS / case["evidence"]).read_text())
    files = case["device"]
    transcript = bytes.fromhex((VECTORS / files["report"]).read_text())
    return {"device_evidence_list": [device(transcript, (VECTORS / files["chain"]).read_bytes(), files["arch"])]}


def devices_of(evidence: Any) -> list[dict[str, Any]]:
    """The devices, in either form."""
    found: list[dict[str, Any]] = evidence["device_evidence_list"] if isinstance(evidence, dict) else evidence
    return found


def nonce_of(evidence: Any) -> bytes:
    """The nonce in the first report."""
    return base64.b64decode(devices_of(evidence)[0]["evidence"])[4:36]


def rim(name: str) -> bytes:
    """A manifest."""
    return (VECTORS / name).read_bytes()


def judged(
    evidence: Any, nonce: bytes | None, trust: NvGpuTrust | None = None, time: datetime = THEN
) -> tuple[NvGpuClaims | None, tuple[Check, ...]]:
    """The claims, None where a check failed, and every check."""
    checks = Checks()
    found: Claims | None = None
    with contextlib.suppress(VerificationError):
        found = nvgpu.judge(checks, evidence, nonce, TrustRoots(nvgpu=trust or nvidia.load()), time)
    assert (found is None) == bool(checks.failed)
    return (None if found is None else _only(found)), checks.all


def _only(claims: Claims) -> NvGpuClaims:
    (kind,) = claims.kinds
    assert isinstance(kind, NvGpuClaims)
    return kind


def failures(evidence: Any, nonce: bytes | None, trust: NvGpuTrust | None = None, time: datetime = THEN) -> set[str]:
    """The names of the checks that failed."""
    _, checks = judged(evidence, nonce, trust, time)
    return {check.name for check in checks if check.result == "fail"}
