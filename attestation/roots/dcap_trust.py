"""What a verifier of Intel's quotes (TDX, SGX) trusts and is given; Intel's own root is in `intel`."""

from dataclasses import dataclass

from cryptography import x509

from hermetic.attestation.abi.dcap_collateral import Collateral
from hermetic.attestation.roots.grace import NO_GRACE, Grace


@dataclass(frozen=True, slots=True)
class DcapTrust:
    """Who may vouch for a quoting enclave, and what is known of platforms."""

    roots: tuple[x509.Certificate, ...] = ()
    """Roots of PCK certificates and of collateral; a release ships Intel's (`intel.load`)."""
    collateral: tuple[Collateral, ...] = ()
    """Unverified: each use verifies it again. Without any, TCB levels and revocation are not evaluated."""
    grace: Grace = NO_GRACE
    """How much longer than it says collateral is believed."""
