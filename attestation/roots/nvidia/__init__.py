"""The two roots of NVIDIA that a release ships: of device identities, and of the signers of reference manifests.

PEM, as NVIDIA's own verifiers carry them (https://github.com/NVIDIA/nvtrust and https://github.com/NVIDIA/attestation-sdk,
Apache-2.0). A file with another certificate than the one whose fingerprint stands below is refused.
"""

import hashlib
from importlib import resources
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.roots.nvgpu_trust import NvGpuTrust
from hermetic.errors import ConfigurationError

DEVICE_ROOT: Final = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
"""SHA-256 of NVIDIA Device Identity CA (DER)."""
RIM_ROOT: Final = "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"
"""SHA-256 of NVIDIA CoRIM signing Root CA (DER)."""


def load(
    rims: tuple[bytes, ...] = (), ocsp: tuple[bytes, ...] = (), *, allow_certificate_hold: bool = False
) -> NvGpuTrust:
    """Trust in NVIDIA's roots, with this collateral; raises `ConfigurationError` for a file that was not shipped so."""
    return NvGpuTrust(
        device_roots=(_read("device_identity_ca.pem", DEVICE_ROOT),),
        rim_roots=(_read("corim_signing_ca.pem", RIM_ROOT),),
        rims=rims,
        ocsp=ocsp,
        allow_certificate_hold=allow_certificate_hold,
    )


def _read(name: str, wanted: str) -> x509.Certificate:
    data = resources.files(__package__).joinpath(name).read_bytes()
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ConfigurationError(f"roots/nvidia/{name}: expected a certificate in PEM, got {error}") from error
    found = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if found != wanted:
        raise ConfigurationError(f"roots/nvidia/{name}: expected SHA-256 {wanted}, got {found}")
    return certificate
