"""Who is calling: from a leaf certificate that TLS has verified to (issuing CA, name). No decision on access is here.

The name is the certificate's one SPIFFE URI (SPIFFE X509-SVID section 2: exactly one URI SAN), else its subject as an
RFC 4514 string. Who is revoked is known here too, because only here a certificate is looked at. A parsed certificate is
kept by the bytes of its PEM; how long it is valid is looked at on every call, because a resumed TLS session may outlive
the certificate.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.errors import AccessDeniedError, ConfigurationError, UnauthenticatedError
from hermetic.server.config import Revoked
from hermetic.server.transport import Peer

TLS_VERSION: Final = b"TLSv1.3"
CERTIFICATES_KEPT: Final = 4096  # parsed leaf certificates
CERTIFICATE_LIMIT: Final = 64 * 1024  # bytes of PEM
NAME_LIMIT: Final = 512  # characters


class Identity(NamedTuple):
    """Who a certificate names: the authority (a key of the configuration) that issued it, and the name in it."""

    authority: str
    name: str


@dataclass(frozen=True, slots=True)
class _Parsed:
    identity: Identity
    not_before: float
    not_after: float


class _Revocations:
    """The rows of `[[revoked]]`, by kind of mark."""

    def __init__(self, rows: Iterable[Revoked], authorities: Mapping[str, str]) -> None:
        marks = list(rows)
        for row in marks:
            if row.authority and row.authority not in authorities:
                raise ConfigurationError(
                    f"revoked: wanted one of the authorities {sorted(authorities)}, got {row.authority!r}"
                )
        self._names = {Identity(row.authority, row.name) for row in marks if row.name}
        self._serials = {(row.authority, int(row.serial, 16)) for row in marks if row.serial}
        self._keys = {row.spki_sha256 for row in marks if row.spki_sha256}

    def check(self, identity: Identity, certificate: x509.Certificate) -> None:
        """Raise where the caller is revoked."""
        if identity in self._names:
            raise AccessDeniedError("this identity is revoked")
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if (identity.authority, certificate.serial_number) in self._serials:
            raise UnauthenticatedError("certificate: wanted one that is not revoked, got a revoked one")
        if hashlib.sha256(spki).hexdigest() in self._keys:
            raise UnauthenticatedError("certificate: wanted a key that is not revoked, got a revoked one")


class Identities:
    """Reads callers' certificates against the configured authorities."""

    def __init__(self, authorities: Mapping[str, str], revoked: Iterable[Revoked] = ()) -> None:
        """`authorities`: key of the configuration -> PEM of one or more CA certificates.

        Raises `ConfigurationError` where one does not parse, or somebody of an unknown authority is revoked.
        """
        self._authorities = [(key, ca) for key, pem in authorities.items() for ca in _load_authority(key, pem)]
        self._revoked = _Revocations(revoked, authorities)
        self._kept: dict[bytes, _Parsed] = {}
        self._rehearse()

    def identify(self, peer: Peer, now: float) -> Identity:
        """Return who `peer` is at `now` (seconds, time.time()).

        Raises `UnauthenticatedError`, or `AccessDeniedError` for somebody who is revoked by name.
        """
        if peer.tls_version != TLS_VERSION:
            raise UnauthenticatedError(f"wanted TLS 1.3, got {(peer.tls_version or b'none').decode(errors='replace')}")
        if peer.certificate is None:
            raise UnauthenticatedError("wanted a client certificate, got none")
        parsed = self._kept.get(peer.certificate)
        if parsed is None:
            parsed = self._parse(peer.certificate)
            if len(self._kept) >= CERTIFICATES_KEPT:
                self._kept.clear()
            self._kept[peer.certificate] = parsed
        if not parsed.not_before <= now <= parsed.not_after:
            raise UnauthenticatedError(
                f"certificate: wanted one valid now, got {_date(parsed.not_before)} to {_date(parsed.not_after)}"
            )
        return parsed.identity

    def _parse(self, pem: bytes) -> _Parsed:
        if len(pem) > CERTIFICATE_LIMIT:
            raise UnauthenticatedError(f"certificate: wanted at most {CERTIFICATE_LIMIT} bytes, got {len(pem)}")
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            _check_use(certificate)
            identity = Identity(self._issuer(certificate), _name(certificate))
            self._revoked.check(identity, certificate)
        except ValueError as error:
            raise UnauthenticatedError(f"certificate: does not parse: {error}") from None
        return _Parsed(
            identity, certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        )

    def _rehearse(self) -> None:
        """Read the authorities as if they called: what cryptography imports late is imported before the lock-down."""
        for _, authority in self._authorities:
            with contextlib.suppress(UnauthenticatedError):
                self._issuer(authority)
            with contextlib.suppress(UnauthenticatedError, AccessDeniedError):
                self._revoked.check(Identity("", ""), authority)
            with contextlib.suppress(UnauthenticatedError):
                _check_use(authority)
            _name(authority)

    def _issuer(self, certificate: x509.Certificate) -> str:
        for key, authority in self._authorities:
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return key
        raise UnauthenticatedError("certificate: wanted one issued by a configured authority, got another issuer's")


def _load_authority(key: str, pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:  # also where there is none in it
        raise ConfigurationError(f"authority {key!r}: wanted PEM certificates, got {error}") from None


def _check_use(certificate: x509.Certificate) -> None:
    """Raise `UnauthenticatedError` unless this is a leaf meant for TLS clients (RFC 5280 sections 4.2.1.9 and .12)."""
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise UnauthenticatedError("certificate: wanted a leaf, got a CA's")
    except x509.ExtensionNotFound:
        pass
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
        raise UnauthenticatedError("certificate: wanted extended key usage clientAuth, got others")


def _name(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if any(uri.lower().startswith("spiffe:") for uri in uris):
        if len(uris) != 1:
            raise UnauthenticatedError(f"certificate: wanted exactly one URI SAN beside a SPIFFE ID, got {len(uris)}")
        return _bounded(uris[0])
    return _bounded(certificate.subject.rfc4514_string())


def _bounded(name: str) -> str:
    if not 0 < len(name) <= NAME_LIMIT:
        raise UnauthenticatedError(f"certificate: wanted a name of 1 to {NAME_LIMIT} characters, got {len(name)}")
    return name


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
