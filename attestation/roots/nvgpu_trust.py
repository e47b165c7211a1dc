"""What a verifier of NVIDIA devices trusts and is given; NVIDIA's own roots are in `nvidia`."""

from dataclasses import dataclass

from cryptography import x509

from hermetic.attestation.roots.grace import NO_GRACE, Grace


@dataclass(frozen=True, slots=True)
class NvGpuTrust:
    """Who may vouch for NVIDIA's devices and their firmware, and the collateral to judge them with, as bytes."""

    device_roots: tuple[x509.Certificate, ...] = ()
    """Roots of device certificates; a release ships NVIDIA's (`nvidia.load`)."""
    rim_roots: tuple[x509.Certificate, ...] = ()
    """Roots of the signers of reference manifests (shipped too)."""
    rims: tuple[bytes, ...] = ()
    """Reference manifests of drivers and VBIOSes, XML; those of other versions than a device's are not looked at."""
    ocsp: tuple[bytes, ...] = ()
    """OCSP answers, DER. With one, every certificate that can be revoked needs one."""
    allow_certificate_hold: bool = False
    """Take a certificate on hold for one that is not revoked; the claims say "hold"."""
    grace: Grace = NO_GRACE
    """How much longer than they say manifests and OCSP answers are believed."""
