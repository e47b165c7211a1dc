"""A private certificate authority: one self-signed ECDSA P-256 key that signs leaves for one purpose.

Each purpose has a CA of its own, so that a certificate of one kind never opens another kind's door: identities are
pairs of issuing CA and name. Sources: RFC 5280; SPIFFE X.509-SVID for the one URI of a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hermetic.attestation.demo_mark import DEMO_EXTENSION, DEMO_LIFE_DAYS, DEMO_ORGANISATION, is_demo
from hermetic.errors import ConfigurationError

__all__ = ["Authority", "Leaf", "Names", "new_key", "signing_request"]

CA_LIFE: Final = timedelta(days=5 * 365)
LEAF_LIFE: Final = timedelta(days=90)
DEMO_LIFE: Final = timedelta(days=DEMO_LIFE_DAYS)
BACKDATED: Final = timedelta(minutes=5)
"""A certificate begins this much before now, for clocks that run behind."""


@dataclass(frozen=True, slots=True)
class Names:
    """Whose certificates these are: `organisation` stands in every subject, `demo` marks everything."""

    organisation: str
    demo: bool = False

    @classmethod
    def of_demo(cls) -> Self:
        """The names of a demo, which say what it is."""
        return cls(DEMO_ORGANISATION, demo=True)

    def subject(self, common_name: str) -> x509.Name:
        """The subject `O=<organisation>, CN=<common name>`."""
        return x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, self.organisation),
                x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
            ]
        )


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one end-entity certificate says: who, for which side of TLS, under which names."""

    common_name: str
    usage: x509.ObjectIdentifier
    alternatives: Sequence[x509.GeneralName]


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA with its key. `issue` signs leaves; it signs no other CA (path length 0)."""

    names: Names
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, names: Names, common_name: str, *, now: datetime | None = None) -> Self:
        """A new self-signed CA; lives 7 days in a demo, else five years."""
        key = new_key()
        subject = names.subject(common_name)
        life = DEMO_LIFE if names.demo else CA_LIFE
        builder = _builder(names, subject, subject, key.public_key(), now or datetime.now(UTC), life)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(ca=True), critical=True)
        return cls(names, builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Self:
        """A CA from its two files' contents; raises `ConfigurationError` unless they are a pair of ours."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"CA: expected a certificate and a key in PEM, got {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigurationError("CA: expected the EC key of its certificate, got another key")
        organisation = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        names = Names(str(organisation[0].value) if organisation else "", demo=is_demo(certificate))
        return cls(names, certificate, key)

    def issue(self, leaf: Leaf, key: ec.EllipticCurvePublicKey, *, now: datetime | None = None) -> x509.Certificate:
        """A certificate for `key` that says what `leaf` says; lives 7 days in a demo, else 90."""
        life = DEMO_LIFE if self.names.demo else LEAF_LIFE
        subject = self.names.subject(leaf.common_name)
        builder = _builder(self.names, subject, self.certificate.subject, key, now or datetime.now(UTC), life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([leaf.usage]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(leaf.alternatives), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return builder.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def signing_request(names: Names, leaf: Leaf, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate signing request (PKCS #10, PEM) for what `leaf` says; the CA decides what it certifies."""
    builder = x509.CertificateSigningRequestBuilder(names.subject(leaf.common_name))
    builder = builder.add_extension(x509.SubjectAlternativeName(leaf.alternatives), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([leaf.usage]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    names: Names,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    """What every certificate has: names, serial, dates, key identifier, and in a demo its mark."""
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - BACKDATED,
        not_valid_after=now + life,
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(DEMO_EXTENSION, critical=False) if names.demo else builder


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
