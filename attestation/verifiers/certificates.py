"""Certificate chains of devices: leaf, intermediates, a configured root; offline, at a given time.

Not TLS: device certificates name no host, and their purpose is checked by whoever knows what it must be. Revocation is
not asked here: AK certificates live for hours, and an EK is taken off the lists of policy.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hermetic.attestation.abi.pem import MALFORMED
from hermetic.errors import InvalidRequestError

MAX_CHAIN_LENGTH: Final = 5  # certificates, root included
MAX_CERTIFICATE_SIZE: Final = 8192  # bytes of DER
MIN_RSA_BITS: Final = 2048
CERTIFICATES_KEPT: Final = 512
"""Certificates that were read, so that those of a manifest are not read again for each device. At most 4 MiB. Read
is not verified."""
SIGNATURES_KEPT: Final = 512
"""Pairs of issuer and certificate whose signature was looked at: it does not change, and a fleet shares its issuers.
At most 8 MiB."""

_UNDERSTOOD: Final = frozenset(
    {
        x509.OID_BASIC_CONSTRAINTS,
        x509.OID_KEY_USAGE,
        x509.OID_EXTENDED_KEY_USAGE,
        x509.OID_SUBJECT_ALTERNATIVE_NAME,
        x509.OID_CERTIFICATE_POLICIES,
    }
)
"""Extensions that may be critical. Name constraints and our ignorance of a critical extension are reasons to refuse."""


@lru_cache(maxsize=CERTIFICATES_KEPT)
def parse(der: bytes) -> x509.Certificate:
    """Read one certificate; raises `InvalidRequestError`."""
    if len(der) > MAX_CERTIFICATE_SIZE:
        raise InvalidRequestError(f"certificate: expected at most {MAX_CERTIFICATE_SIZE} bytes, got {len(der)}")
    try:
        certificate = x509.load_der_x509_certificate(der)
    except (UnsupportedAlgorithm, *MALFORMED) as error:
        raise InvalidRequestError(f"certificate: expected X.509 in DER, got {error}") from error
    demand_readable(certificate)
    return certificate


def demand_readable(certificate: x509.Certificate) -> None:
    """Raise `InvalidRequestError` where a part that the library reads late, when it is asked for, is malformed."""
    try:
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm
    except (UnsupportedAlgorithm, *MALFORMED) as error:
        raise InvalidRequestError(f"certificate: expected X.509 in DER, got {error}") from error


def spki(certificate_or_key: x509.Certificate | rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """The SubjectPublicKeyInfo (DER) of a certificate or key; raises `InvalidRequestError` for an unusable key."""
    try:
        key = (
            certificate_or_key.public_key() if isinstance(certificate_or_key, x509.Certificate) else certificate_or_key
        )
    except ValueError as error:
        raise InvalidRequestError(f"certificate: expected a usable public key, got {error}") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=CERTIFICATES_KEPT)
def spki_of(certificate: x509.Certificate) -> bytes:
    """As `spki`, kept: the same certificate has the same key."""
    return spki(certificate)


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    time: datetime,
) -> x509.Certificate:
    """The root (or configured intermediate) among `roots` that vouches for `leaf` at `time`: see `verify_path`."""
    return verify_path(leaf, intermediates, roots, time)[-1]


def verify_path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    time: datetime,
) -> tuple[x509.Certificate, ...]:
    """The way from `leaf` to the root (or configured intermediate) among `roots` that vouches for it at `time`.

    Every certificate on the way, the trusted one included, must be in its time; every issuer must be a CA that may sign
    certificates and whose path length allows it. Raises `InvalidRequestError` saying at which certificate the way ends.
    """
    path = [leaf]
    _demand_usable(leaf, time)
    for below in range(MAX_CHAIN_LENGTH):
        current = path[-1]
        anchor = next((root for root in roots if _issued(root, current)), None)
        if anchor is not None:
            _demand_issuer(anchor, below, time)
            return (*path, anchor)
        issuer = next((one for one in intermediates if one != current and _issued(one, current)), None)
        if issuer is None:
            raise InvalidRequestError(f"expected an issuer out of the configured roots, got {_named(current.issuer)!r}")
        _demand_issuer(issuer, below, time)
        path.append(issuer)
    raise InvalidRequestError(f"expected a chain of at most {MAX_CHAIN_LENGTH} certificates, got a longer one")


@lru_cache(maxsize=SIGNATURES_KEPT)
def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        # Compares the names first. It knows no SHA-1 or MD5: a ValueError, and a test holds it.
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _demand_usable(certificate: x509.Certificate, time: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= time <= end:
        raise InvalidRequestError(
            f"expected {_named(certificate.subject)!r} to be in its time at {time}, got {start} to {end}"
        )
    if wrong := _unusable(certificate):
        raise InvalidRequestError(wrong)


@lru_cache(maxsize=CERTIFICATES_KEPT)
def _unusable(certificate: x509.Certificate) -> str:
    """What makes a certificate unusable at any time; empty: nothing does."""
    unknown = [e.oid.dotted_string for e in certificate.extensions if e.critical and e.oid not in _UNDERSTOOD]
    if unknown:
        return f"expected only known critical extensions in {_named(certificate.subject)!r}, got {', '.join(unknown)}"
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        name = _named(certificate.subject)
        return f"expected an RSA key of at least {MIN_RSA_BITS} bits in {name!r}, got {key.key_size}"
    return ""


def _demand_issuer(certificate: x509.Certificate, below: int, time: datetime) -> None:
    """Demand that `certificate` may issue, with `below` CA certificates between it and the leaf."""
    _demand_usable(certificate, time)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise InvalidRequestError(
            f"expected a CA certificate at {_named(certificate.subject)!r}, got one without {error.oid.dotted_string}"
        ) from error
    if not (constraints.ca and usage.key_cert_sign):
        raise InvalidRequestError(
            f"expected a CA certificate at {_named(certificate.subject)!r}, got one that may not sign certificates"
        )
    if constraints.path_length is not None and constraints.path_length < below:
        raise InvalidRequestError(
            f"expected at most {constraints.path_length} CAs below {_named(certificate.subject)!r}, got {below}"
        )


def _named(name: x509.Name) -> str:
    return name.rfc4514_string() or "an empty name"
