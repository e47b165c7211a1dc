"""What a verifier trusts, as one value that callers build and pass down. Nothing is trusted by default.

Reading certificates from files is `load.py`; vendors' roots are configured by the operator, or shipped
(`amd`, `intel`, `nvidia`) and trusted where a caller says so.
"""

from dataclasses import dataclass, field

from cryptography import x509

from hermetic.attestation.claims import Profile
from hermetic.attestation.roots.dcap_trust import DcapTrust
from hermetic.attestation.roots.grace import NO_GRACE, Grace
from hermetic.attestation.roots.nvgpu_trust import NvGpuTrust
from hermetic.attestation.roots.snp_trust import AmdAuthorities, SnpTrust

__all__ = ["NO_GRACE", "AmdAuthorities", "DcapTrust", "Grace", "NvGpuTrust", "SnpTrust", "TpmTrust", "TrustRoots"]


@dataclass(frozen=True, slots=True)
class TpmTrust:
    """Who may vouch for an attestation key (AK) of a TPM."""

    ak_cas: tuple[x509.Certificate, ...] = ()
    """Certificate authorities of brokers that enrol AKs (docs/spec/ak-enrolment.md)."""
    provisioned_aks: frozenset[bytes] = frozenset()
    """SHA-256 of the SubjectPublicKeyInfo (DER) of AKs that an operator entered by hand."""


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """Trust in every kind of evidence, and the profile: only "demo" admits software TPMs and the kind `sample`."""

    profile: Profile = "production"
    tpm: TpmTrust = field(default_factory=TpmTrust)
    dcap: DcapTrust = field(default_factory=DcapTrust)
    nvgpu: NvGpuTrust = field(default_factory=NvGpuTrust)
    snp: SnpTrust = field(default_factory=SnpTrust)
