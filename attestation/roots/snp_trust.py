"""Trust in SEV-SNP: AMD's authorities, and the certificates and lists that a verifier has at hand."""

from dataclasses import dataclass

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.roots.grace import NO_GRACE, Grace


@dataclass(frozen=True, slots=True)
class AmdAuthorities:
    """Who vouches for the keys of one generation's processors."""

    generation: Generation
    ark: AmdCertificate
    """The root."""
    ask: AmdCertificate
    """Signs VCEKs, the keys of chips."""
    asvk: AmdCertificate
    """Signs VLEKs, the keys that a cloud provider loads."""


@dataclass(frozen=True, slots=True)
class SnpTrust:
    """What evidence of SEV-SNP is verified with, besides itself."""

    authorities: tuple[AmdAuthorities, ...] = ()
    """Believed generations; the shipped ones are `hermetic.attestation.roots.amd.load()`."""
    endorsements: tuple[AmdCertificate, ...] = ()
    """Certificates of VCEKs and VLEKs, for evidence that comes without."""
    crls: tuple[bytes, ...] = ()
    """Revocation lists (DER) of the ARKs; the latest of each counts."""
    grace: Grace = NO_GRACE
    """How much longer than they say revocation lists are believed."""
