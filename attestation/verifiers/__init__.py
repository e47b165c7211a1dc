"""Is the evidence genuine? One module per kind; whether it is acceptable is the question of policy/, not imported here.

Pure: time is an argument, no network, no files. Verification returns claims or raises `VerificationError` with every
failed check.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol

from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue, fit_to
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import azure_snp, azure_tdx, nvgpu, sgx, snp, tdx, tpm
from hermetic.errors import FailedCheck, VerificationError

__all__ = ["VERIFIERS", "Verifier", "verify"]


class Verifier(Protocol):
    """Judges evidence of one kind."""

    def __call__(self, evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
        """The claims of genuine evidence over `report_data` (already fitted); raises `VerificationError`."""
        ...


def _sample(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The demo's kind, imported late: release images do not carry it, and refuse what it makes."""
    try:
        from hermetic.attestation.testing import sample  # noqa: PLC0415 - see above
    except ModuleNotFoundError:
        raise VerificationError([FailedCheck("kind", "a kind of evidence of this release", "'sample'")]) from None
    return sample.verify(evidence, report_data, trust, time)


VERIFIERS: Final[Mapping[str, Verifier]] = {
    "az-snp-vtpm": azure_snp.verify,
    "az-tdx-vtpm": azure_tdx.verify,
    "nvidia": nvgpu.verify,
    "sample": _sample,
    "sgx": sgx.verify,
    "snp": snp.verify,
    "tdx": tdx.verify,
    "tpm": tpm.verify,
}
"""Every kind of evidence that can be verified."""


def verify(tee: str, evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of `evidence` of kind `tee`, bound to the 48-byte digest `report_data`, genuine at `time` (aware).

    Raises `VerificationError` carrying every failed check, also for evidence that does not parse.
    """
    verifier = VERIFIERS.get(tee)
    if verifier is None:
        raise VerificationError([FailedCheck("kind", f"one of {', '.join(sorted(VERIFIERS))}", repr(tee))])
    return verifier(evidence, fit_to(tee, report_data), trust, time)
