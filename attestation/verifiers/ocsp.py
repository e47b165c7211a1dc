"""Whether a certificate is revoked, as OCSP answers say that were fetched before (RFC 6960); offline, at a given time.

An answer counts when the certificate's issuer signed it, or someone above that issuer in the verified chain, or a
responder whom one of these named (a certificate for OCSP signing, issued directly). Nonces are not asked for: answers
are kept, so what makes one fresh is its time. Not here: where answers come from.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.roots import NO_GRACE, Grace
from hermetic.errors import InvalidRequestError

KIND: Final = "ocsp"  # of collateral
MAX_ANSWER_SIZE: Final = 16 * 1024  # bytes of DER
MAX_ANSWERS: Final = 1024
MAX_CERTIFICATES: Final = 8  # in one answer

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)  # that an answer may be signed with

Status = Literal["good", "hold"]


def parse(answers: Sequence[bytes]) -> tuple[ocsp.OCSPResponse, ...]:
    """Read answers; raises `InvalidRequestError` for one that is none, or that reports an error of the responder."""
    if len(answers) > MAX_ANSWERS:
        raise InvalidRequestError(f"OCSP: expected at most {MAX_ANSWERS} answers, got {len(answers)}")
    return tuple(map(_parse, answers))


class Answered(NamedTuple):
    """What an answer says, and until when it says so."""

    status: Status
    end: datetime


def verify_status(
    path: Sequence[x509.Certificate],
    answers: Sequence[ocsp.OCSPResponse],
    time: datetime,
    grace: Grace = NO_GRACE,
) -> Answered:
    """What the newest answer of this `time` says of `path[0]`, whose verified chain up to the root `path` is.

    Raises `InvalidRequestError` without an answer that counts, and for a certificate that is revoked or unknown.
    """
    subject = path[0].subject.rfc4514_string()
    current = []
    for answer in answers:
        for single in answer.responses:
            if _is_of(single, path[0], path[1]):
                judged, end = _judged_at(single, subject, time, grace)
                demand_authority(answer, path[1:], judged)
                current.append((single, end))
    if not current:
        raise InvalidRequestError(f"expected an OCSP answer for {subject!r}, got none")
    newest, end = max(current, key=lambda pair: pair[0].this_update_utc)
    if newest.certificate_status == ocsp.OCSPCertStatus.GOOD:
        return Answered("good", end)
    reason = newest.revocation_reason
    if newest.certificate_status == ocsp.OCSPCertStatus.REVOKED and reason == x509.ReasonFlags.certificate_hold:
        return Answered("hold", end)
    told = newest.certificate_status.name.lower() + ("" if reason is None else f", {reason.value}")
    raise InvalidRequestError(f"expected {subject!r} not to be revoked, got {told}")


def _parse(answer: bytes) -> ocsp.OCSPResponse:
    if len(answer) > MAX_ANSWER_SIZE:
        raise InvalidRequestError(f"OCSP: expected at most {MAX_ANSWER_SIZE} bytes, got {len(answer)}")
    try:
        parsed = ocsp.load_der_ocsp_response(answer)
        if parsed.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise InvalidRequestError(f"OCSP: expected an answer, got {parsed.response_status.name.lower()}")
        # Read late by the library; what is malformed fails here.
        count = len(parsed.certificates)
        _ = [(one.serial_number, one.hash_algorithm) for one in parsed.responses], parsed.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError(f"OCSP: expected an answer in DER, got {error}") from error
    if count > MAX_CERTIFICATES:
        raise InvalidRequestError(f"OCSP: expected at most {MAX_CERTIFICATES} certificates, got {count}")
    return parsed


def _is_of(single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the answer's CertID is that of `certificate`: serial number, and hashes of the issuer's name and key."""
    return single.serial_number == certificate.serial_number and names_issuer(single, issuer)


def names_issuer(single: ocsp.OCSPSingleResponse, issuer: x509.Certificate) -> bool:
    """Whether the answer is about a certificate of `issuer`: hashes of its name and key; EC keys only."""
    name = hashlib.new(single.hash_algorithm.name, issuer.subject.public_bytes()).digest()
    return name == single.issuer_name_hash and _key_hash(issuer, single.hash_algorithm.name) == single.issuer_key_hash


def _key_hash(certificate: x509.Certificate, algorithm: str) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidRequestError(f"OCSP: expected an issuer with an EC key, got {type(key).__name__}")
    return hashlib.new(algorithm, key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()


def demand_authority(answer: ocsp.OCSPResponse, issuers: Sequence[x509.Certificate], time: datetime) -> None:
    """Raise `InvalidRequestError` unless one of `issuers`, or a responder of theirs in its time, signed `answer`."""
    algorithm = answer.signature_hash_algorithm
    signers = [*issuers, *(one for one in answer.certificates if _is_responder(one, issuers, time))]
    if isinstance(algorithm, _HASHES):
        for signer in signers:
            key = signer.public_key()
            try:
                if isinstance(key, ec.EllipticCurvePublicKey):
                    key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
                    return
            except InvalidSignature:
                continue
    raise InvalidRequestError("OCSP: expected an answer signed by the issuer or a responder of its, got another's")


def _is_responder(certificate: x509.Certificate, issuers: Sequence[x509.Certificate], time: datetime) -> bool:
    if not certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc:
        return False
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usage and any(_issued(issuer, certificate) for issuer in issuers)


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _judged_at(
    single: ocsp.OCSPSingleResponse, subject: str, time: datetime, grace: Grace
) -> tuple[datetime, datetime]:
    """The moment as of which an answer is judged, and its end; raises `InvalidRequestError` outside of its time."""
    start, end = single.this_update_utc, single.next_update_utc
    judged = time if end is None else grace.judged_at(KIND, end, time)
    if end is None or not start <= judged <= end:
        raise InvalidRequestError(
            f"expected an OCSP answer for {subject!r} in its time at {time}, got {start} to {end}"
        )
    return judged, end
