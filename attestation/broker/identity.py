"""Who a client is: the issuer's and its own name out of a certificate that the TLS handshake has verified."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509

from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.demo_mark import is_demo

MOST_KEPT: Final = 1024
"""Certificates whose reading is kept: each request of a connection brings the same one."""

_SPIFFE: Final = "spiffe://"


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """One client certificate: its issuer's name, its own name, and the SHA-256 of its DER in hex."""

    issuer: str
    name: str
    certificate: str

    def to_json(self) -> dict[str, str]:
        """The identity as a record holds it."""
        return {"issuer": self.issuer, "name": self.name, "certificate": self.certificate}


@lru_cache(maxsize=MOST_KEPT)
def client_identity(der: bytes, *, demo: bool) -> ClientIdentity:
    """The identity in `der`: its one SPIFFE URI, else its subject (RFC 4514).

    Raises `Refusal` for more than one SPIFFE URI, and for a demo's certificate where `demo` is false.
    """
    certificate = x509.load_der_x509_certificate(der)
    if is_demo(certificate) and not demo:
        raise Refusal(Variant.ATTESTATION, "client certificate: expected none of a demo outside the demo profile")
    uris = [uri for uri in _uris(certificate) if uri.startswith(_SPIFFE)]
    if len(uris) > 1:
        raise Refusal(Variant.ATTESTATION, f"client certificate: expected at most one SPIFFE URI, got {len(uris)}")
    name = uris[0] if uris else certificate.subject.rfc4514_string()
    return ClientIdentity(certificate.issuer.rfc4514_string(), name, hashlib.sha256(der).hexdigest())


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
