"""Collateral that a server staples to its evidence: taken for vendors that the caller believes, and for no other. Pure.

A bundle's items are verified up to their vendor's root, whoever packed them, and judged by their own periods. Without
signers of the caller's own nobody says that a bundle is the latest; a server can then keep back news until what it
staples ends. Format: docs/spec/collateral-bundle.md.
"""

from collections.abc import Sequence
from typing import Final

from hermetic.attestation.collateral import Bundle
from hermetic.attestation.log import NoteVerifier
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import FailedCheck, VerificationError

__all__ = ["BUNDLES_LIMIT", "with_stapled"]

BUNDLES_LIMIT: Final = 4


def with_stapled(trust: TrustRoots, bundles: Sequence[bytes], signers: Sequence[NoteVerifier]) -> TrustRoots:
    """The caller's `trust` with the items of `bundles`; one of `signers` must have signed each, where there are any.

    Raises `VerificationError` naming the step at which a bundle fails.
    """
    if len(bundles) > BUNDLES_LIMIT:
        raise VerificationError([FailedCheck("evidence.collateral", f"at most {BUNDLES_LIMIT}", str(len(bundles)))])
    for data in bundles:
        bundle = Bundle.load(data, signers) if signers else Bundle.load_without_asking_who_signed(data)
        trust = bundle.trust(trust)
    return trust
