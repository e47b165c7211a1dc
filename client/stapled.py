"""Collateral that a server staples to its evidence: taken for vendors that the caller believes, and for no other. Pure.

A bundle's items are verified up to their vendor's root, whoever packed them, and judged by their own periods. Without
signers of the caller's own nobody says that a bundle is the latest; a server can then keep back news until what it
staples ends. Format: docs/spec/collateral-bundle.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hermetic.attestation.collateral import Bundle, vendor_roots
from hermetic.attestation.log import NoteVerifier
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import FailedCheck, VerificationError

__all__ = ["BUNDLES_LIMIT", "with_stapled"]

BUNDLES_LIMIT: Final = 4


def with_stapled(trust: TrustRoots, bundles: Sequence[bytes], signers: Sequence[NoteVerifier]) -> TrustRoots:
    """The caller's `trust` with the items of `bundles`; one of `signers` must have signed each, where there are any.

    Raises `VerificationError` naming the step at which a bundle fails.
    """
    if not bundles:
        return trust
    if len(bundles) > BUNDLES_LIMIT:
        raise VerificationError([FailedCheck("evidence.collateral", f"at most {BUNDLES_LIMIT}", str(len(bundles)))])
    believed = _with_every_vendor(trust)
    for data in bundles:
        bundle = Bundle.load(data, signers) if signers else Bundle.load_without_asking_who_signed(data)
        believed = bundle.trust(believed)
    return replace(
        trust,
        snp=believed.snp if trust.snp.authorities else trust.snp,
        dcap=believed.dcap if trust.dcap.roots else trust.dcap,
        nvgpu=believed.nvgpu if trust.nvgpu.device_roots else trust.nvgpu,
    )


def _with_every_vendor(trust: TrustRoots) -> TrustRoots:
    """Roots for every item that a bundle may hold; those of vendors that are not believed are for nothing else."""
    shipped = vendor_roots()
    return replace(
        trust,
        snp=trust.snp if trust.snp.authorities else shipped.snp,
        dcap=trust.dcap if trust.dcap.roots else shipped.dcap,
        nvgpu=trust.nvgpu if trust.nvgpu.device_roots else shipped.nvgpu,
    )
