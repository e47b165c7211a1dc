"""Short certificates for attested serving keys (docs/spec/key-broker.md, section 3.2).

What a certificate says comes from the configuration entry of the client; from the CSR comes only the proof that the
attested key's holder asks. Whether the session may have one is broker.py's decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.claims import Profile
from hermetic.attestation.demo_mark import DEMO_EXTENSION, DEMO_ORGANISATION
from hermetic.errors import ConfigurationError, InvalidRequestError

BACKDATED: Final = timedelta(seconds=60)
MAX_LIFE: Final = timedelta(days=7)
MAX_CSR_BYTES: Final = 16384
ANY_CLIENT: Final = "*"

_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class ServingNames:
    """What the certificate of one client says. `client` is the identity's name, or `*` for whoever has no entry."""

    client: str
    common_name: str
    alternatives: tuple[x509.GeneralName, ...]


class ServingAuthority:
    """The serving CA: an EC key, its chain (own certificate first), and who is called what."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        chain: Sequence[x509.Certificate],
        names: Sequence[ServingNames],
        life: timedelta,
        profile: Profile,
    ) -> None:
        """Raises `ConfigurationError` when key and certificate do not belong together or the life is too long."""
        if not chain or chain[0].public_key() != key.public_key():
            raise ConfigurationError("serving CA: expected the certificate of its key, got another's")
        if not timedelta(0) < life <= MAX_LIFE:
            raise ConfigurationError(f"serving certificates: expected a life of at most {MAX_LIFE}, got {life}")
        self._key = key
        self._chain = tuple(chain)
        self._names = {entry.client: entry for entry in names}
        self._life = life
        self._demo = profile == "demo"

    def names_for(self, client: ClientIdentity | None) -> ServingNames:
        """What the certificate of `client` will say; raises `InvalidRequestError` for a client without an entry."""
        name = ANY_CLIENT if client is None else client.name
        entry = self._names.get(name, self._names.get(ANY_CLIENT))
        if entry is None:
            raise InvalidRequestError(f"serving certificate: expected a client with configured names, got {name}")
        return entry

    def issue(self, key: ec.EllipticCurvePublicKey, names: ServingNames, now: datetime) -> bytes:
        """A certificate for `key` that says what `names` says, and the chain above it: PEM, leaf first."""
        leaf = self._builder(key, names, now).sign(self._key, hashes.SHA256())
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in (leaf, *self._chain))

    def _builder(self, key: ec.EllipticCurvePublicKey, names: ServingNames, now: datetime) -> x509.CertificateBuilder:
        issuer = self._chain[0]
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._subject(names))
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + self._life, issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names.alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.add_extension(DEMO_EXTENSION, critical=False) if self._demo else builder

    def _subject(self, names: ServingNames) -> x509.Name:
        organisation = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, DEMO_ORGANISATION)] if self._demo else []
        return x509.Name([*organisation, x509.NameAttribute(x509.NameOID.COMMON_NAME, names.common_name)])


def verify_request(csr_pem: str, attested: object) -> ec.EllipticCurvePublicKey:
    """The CSR's key, once it is the attested one and has signed the CSR; raises `InvalidRequestError`."""
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidRequestError(f"csr: expected at most {MAX_CSR_BYTES} characters, got {len(csr_pem)}")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode("ascii"))
        key = csr.public_key()
        genuine = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError(f"csr: expected PKCS #10 in PEM, got {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key != attested:
        raise InvalidRequestError("csr: expected the session's attested EC key, got another key")
    if not genuine:
        raise InvalidRequestError("csr: expected a signature by its own key, got one that does not verify")
    return key
