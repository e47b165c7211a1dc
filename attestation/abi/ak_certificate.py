"""What an AK certificate says beside the key: which TPM, which boot (docs/spec/ak-enrolment.md, "The certificate").

Here: the extension's bytes. Not here: when one is issued (enrolment.py) or believed (verifiers/ak.py).
"""

import uuid
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat import asn1

from hermetic.errors import InvalidRequestError

ENROLLED_BOOT_OID: Final = x509.ObjectIdentifier(f"2.25.{uuid.UUID('1a00765a-f122-44b8-9bc3-8cd29d2e02ef').int}")
"""Our extension, in an arc made from a UUID (ITU-T X.667), which needs no registration."""
AIK_PURPOSE_OID: Final = x509.ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate, the extended key usage of an attestation key."""


@asn1.sequence
class EnrolledBoot:
    """SEQUENCE { version INTEGER, akName, ek OCTET STRING, reset-, restartCount INTEGER, software BOOLEAN }."""

    version: int
    ak_name: bytes  # nameAlg || digest of the AK's public area
    ek: bytes  # SHA-256 of the EK's SubjectPublicKeyInfo (DER)
    reset_count: int
    restart_count: int
    software: bool  # the EK's chain ends at a CA of software TPMs

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """The extension of `certificate`; raises `InvalidRequestError` when it is missing or malformed."""
        try:
            extension = certificate.extensions.get_extension_for_oid(ENROLLED_BOOT_OID)
            if not isinstance(extension.value, x509.UnrecognizedExtension):
                raise TypeError("another type under our identifier")
            boot = asn1.decode_der(cls, extension.value.value)
        except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError, TypeError) as error:
            raise InvalidRequestError(f"AK certificate: expected the enrolled-boot extension, got {error}") from error
        if boot.version != 1:
            raise InvalidRequestError(f"AK certificate: expected enrolled-boot version 1, got {boot.version}")
        return boot

    def extension(self) -> x509.UnrecognizedExtension:
        """The extension to put into a certificate."""
        return x509.UnrecognizedExtension(ENROLLED_BOOT_OID, asn1.encode_der(self))
