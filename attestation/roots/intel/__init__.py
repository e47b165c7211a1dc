"""Intel's SGX Root CA, which a release ships: of PCK certificates and of collateral, for SGX and TDX.

PEM, from https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer; valid until
2049-12-31. A file with another certificate than the one whose fingerprint stands below is refused.
"""

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap_collateral import parse_files
from hermetic.attestation.roots.dcap_trust import DcapTrust
from hermetic.errors import ConfigurationError

ROOT: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""SHA-256 of Intel SGX Root CA (DER)."""


def load(collateral: Sequence[bytes] = ()) -> DcapTrust:
    """Trust in Intel's root, with the `collateral` in these files (docs/spec/tdx-evidence.md).

    Raises `InvalidRequestError` for a file that is no collateral, `ConfigurationError` for a root that was not shipped
    so.
    """
    return DcapTrust((_root(),), parse_files(collateral))


def _root() -> x509.Certificate:
    data = resources.files(__package__).joinpath("sgx_root_ca.pem").read_bytes()
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ConfigurationError(f"roots/intel/sgx_root_ca.pem: expected a certificate in PEM, got {error}") from error
    found = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if found != ROOT:
        raise ConfigurationError(f"roots/intel/sgx_root_ca.pem: expected SHA-256 {ROOT}, got {found}")
    return certificate
