"""The mark on everything that `hermetic init --demo` makes, and the check that keeps it out of production.

A marked certificate says so to people (organisation in its subject) and to programs (an extension of our own). Keys of
the demo lie in a folder that anyone may copy, so outside `profile = "demo"` a marked certificate is refused wherever
one is configured or presented.
"""

import uuid
from typing import Final

from cryptography import x509

from hermetic.errors import ConfigurationError

__all__ = ["DEMO_EXTENSION", "DEMO_LIFE_DAYS", "DEMO_OID", "DEMO_ORGANISATION", "is_demo", "refuse_demo"]

DEMO_ORGANISATION: Final = "HERMETIC DEMO - NOT SECRET"
"""Organisation (O) in the subject of every certificate of the demo."""

DEMO_LIFE_DAYS: Final = 7

_NAME: Final = uuid.UUID("8f0d8f5c-2a0b-4f5e-9d0c-6d1f6f0c7a11")

DEMO_OID: Final = x509.ObjectIdentifier(f"2.25.{_NAME.int}")
"""The extension's identifier: an arc made from a UUID (ITU-T X.667), which needs no registration."""

DEMO_EXTENSION: Final = x509.UnrecognizedExtension(DEMO_OID, b"\x05\x00")
"""The extension: not critical, because TLS stacks refuse critical ones that they do not know; its value is NULL."""


def is_demo(certificate: x509.Certificate) -> bool:
    """Whether the certificate, or the one that issued it by name, belongs to a demo. Either mark is enough."""
    names = [*certificate.subject, *certificate.issuer]
    if any(name.oid == x509.NameOID.ORGANIZATION_NAME and name.value == DEMO_ORGANISATION for name in names):
        return True
    return any(extension.oid == DEMO_OID for extension in certificate.extensions)


def refuse_demo(certificate: x509.Certificate, where: str) -> x509.Certificate:
    """The certificate, once it is no demo's; raises `ConfigurationError` naming the setting `where` it stands."""
    if is_demo(certificate):
        subject = certificate.subject.rfc4514_string()
        raise ConfigurationError(f'{where}: expected a certificate of your own outside profile = "demo", got {subject}')
    return certificate
