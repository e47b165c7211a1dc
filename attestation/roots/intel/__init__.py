"""Intel's SGX Root CA, which a release ships: of PCK certificates and of collateral, for SGX and TDX.

PEM, from https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer; valid until
2049-12-31. A file with another certificate than the one whose fingerprint stands below is refused.

Beside it the certificate of the key that signs TCB info and identities, as Intel's service sends it with each (its
header `TCB-Info-Issuer-Chain`), valid until 2032-05-06. It is trusted for nothing: it completes stored answers that
were kept without that header, and is verified up to the root like any other.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap_collateral import parse_files
from hermetic.attestation.roots.dcap_trust import DcapTrust
from hermetic.errors import ConfigurationError

ROOT: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""SHA-256 of Intel SGX Root CA (DER)."""

TCB_SIGNING: Final = "c0575e76d0303b61d09cde8cbdb70db34a74f38318300d7c0e6ba8cf4bf45aea"
"""SHA-256 of Intel SGX TCB Signing (DER)."""


def load(collateral: Sequence[bytes] = ()) -> DcapTrust:
    """Trust in Intel's root, with the `collateral` in these files (docs/spec/tdx-evidence.md).

    Raises `InvalidRequestError` for a file that is no collateral, `ConfigurationError` for a root that was not shipped
    so.
    """
    return DcapTrust((_read("sgx_root_ca.pem", ROOT),), parse_files(collateral))


@cache
def signing_chain() -> tuple[x509.Certificate, x509.Certificate]:
    """The signer of TCB info and identities, and the root; raises `ConfigurationError` for a file that is another."""
    return _read("tcb_signing.pem", TCB_SIGNING), _read("sgx_root_ca.pem", ROOT)


def _read(name: str, wanted: str) -> x509.Certificate:
    data = resources.files(__package__).joinpath(name).read_bytes()
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ConfigurationError(f"roots/intel/{name}: expected a certificate in PEM, got {error}") from error
    found = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if found != wanted:
        raise ConfigurationError(f"roots/intel/{name}: expected SHA-256 {wanted}, got {found}")
    return certificate
