"""Certificates in PEM, and all the ways in which the library says that bytes are no certificate.

A certificate is parsed late, member by member: whoever has not yet verified who signed one asks it for nothing but its
bytes and its key, and expects `MALFORMED`.
"""

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.errors import InvalidRequestError

MALFORMED: Final = (
    ValueError,
    TypeError,  # names with a value of another type than their attribute has
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate or revocation list that is none."""


def certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in `pem`, none of them verified; raises `InvalidRequestError`."""
    try:
        found = tuple(x509.load_pem_x509_certificates(pem))
    except MALFORMED as error:
        raise InvalidRequestError(f"expected certificates in PEM, got {error}") from error
    for one in found:
        # The library does not ask how many bits of a signature's last byte are unused, and nobody signs that number.
        if not one.public_bytes(Encoding.DER).endswith(b"\0" + one.signature):
            raise InvalidRequestError("expected certificates in DER, got a signature that is not of whole bytes")
    return found
