"""Certificates in PEM, and all the ways in which the library says that bytes are no certificate.

A certificate is parsed late, member by member: whoever has not yet verified who signed one asks it for nothing but its
bytes and its key, and expects `MALFORMED`.
"""

import base64
import binascii
import re
from typing import Final

from cryptography import x509

from hermetic.attestation.abi import der
from hermetic.errors import InvalidRequestError

MALFORMED: Final = (
    ValueError,
    TypeError,  # names with a value of another type than their attribute has
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate or revocation list that is none."""

_VERSION: Final = 0xA0  # [0] EXPLICIT
_BLOCK: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\r\n]*)-----END CERTIFICATE-----")


def certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in `pem`, none of them verified; raises `InvalidRequestError`."""
    try:
        found = tuple(certificate(base64.b64decode(block.group(1))) for block in _BLOCK.finditer(pem))
    except (*MALFORMED, binascii.Error) as error:
        raise InvalidRequestError(f"expected certificates in PEM, got {error}") from error
    if not found:
        raise InvalidRequestError("expected certificates in PEM, got none")
    return found


def certificate(data: bytes) -> x509.Certificate:
    """One certificate in DER, unverified. Raises `InvalidRequestError` or one of `MALFORMED`.

    Refused beside that: two things that the library lets pass and nobody needs, which leave bytes free to change.
    """
    whole = der.DerReader.whole(data, der.SEQUENCE, "certificate")
    body = whole.enter(der.SEQUENCE, "body")
    if body.at(_VERSION):
        body.take(_VERSION, "version")
    if body.integer("serial number") == 0:
        raise InvalidRequestError("certificate: expected a serial number above 0, got 0")
    whole.take(der.SEQUENCE, "signature algorithm")
    whole.bits("signature")
    whole.end()
    return x509.load_der_x509_certificate(data)
