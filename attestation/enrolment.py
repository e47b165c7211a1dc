"""Enrolment of a TPM's attestation key (AK): the decisions behind /hermetic/v1/ak/challenge and /ak/certificate.

Protocol and certificate: docs/spec/ak-enrolment.md; the steps below are numbered as there. Pure but for a random serial
number: time, secret and issuing key are arguments. Not here: HTTP, where a pending enrolment is kept and that it is
used once (broker/), the TPM's side (attesters/tpm.py).
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.ak_certificate import AIK_PURPOSE_OID, EnrolledBoot
from hermetic.attestation.abi.members import base64_bytes, base64_member
from hermetic.attestation.abi.tpm import MAX_ATTEST_SIZE, MAX_PUBLIC_SIZE, MAX_SIGNATURE_SIZE, Attributes, Public
from hermetic.attestation.abi.tpm_credential import make_credential
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Profile
from hermetic.attestation.demo_mark import is_demo
from hermetic.attestation.evidence import JsonObject, JsonValue
from hermetic.attestation.verifiers import certificates, quote
from hermetic.attestation.verifiers.ak import check_public
from hermetic.errors import InvalidRequestError, VerificationError

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

VERSION: Final = 1
SECRET_SIZE: Final = 32  # bytes
CHALLENGE_LIFE: Final = timedelta(minutes=5)
CERTIFICATE_LIFE: Final = timedelta(hours=24)
MAX_CERTIFICATE_LIFE: Final = timedelta(days=7)
CLOCK_SKEW: Final = timedelta(minutes=5)  # between this broker and whoever checks its certificate
QUOTE_LABEL: Final = b"hermetic-ak-enrolment/1\0"
"""Begins what is hashed into the enrolment quote's nonce, so that no quote for another purpose passes."""

EK_PURPOSE_OID: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate."""
EK_ATTRIBUTES: Final = Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.RESTRICTED | Attributes.DECRYPT

_MODEL_OID: Final = x509.ObjectIdentifier("2.23.133.2.2")  # tcg-at-tpmModel
_SOFTWARE_MODELS: Final = frozenset({"swtpm"})


@dataclass(frozen=True, slots=True)
class EkTrust:
    """Whose endorsement key (EK) certificates are believed. `software` is used only with the profile "demo"."""

    profile: Profile
    vendors: tuple[x509.Certificate, ...]
    software: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class AkCa:
    """The broker's certificate authority for AKs: nothing else is issued by it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    life: timedelta = CERTIFICATE_LIFE


@dataclass(frozen=True, slots=True)
class PendingEnrolment:
    """What the broker keeps between the two requests, for one use before `expires`; `secret` is secret."""

    ak: Public
    ek: bytes  # SHA-256 of the EK's SubjectPublicKeyInfo
    software: bool
    secret: bytes
    expires: datetime

    def to_json(self) -> dict[str, JsonValue]:
        """What a broker keeps, sealed."""
        return {"ak": self.ak.pack().hex(), "ek": self.ek.hex(), "software": self.software,
                "secret": self.secret.hex(), "expires": self.expires.timestamp()}  # fmt: skip

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> "PendingEnrolment":
        """Read what `to_json` wrote."""
        ak, ek, secret = (bytes.fromhex(members[name]) for name in ("ak", "ek", "secret"))
        return cls(Public.parse(ak), ek, members["software"], secret, datetime.fromtimestamp(members["expires"], UTC))


def challenge(
    request: JsonObject, trust: EkTrust, time: datetime, secret: bytes
) -> tuple[PendingEnrolment, dict[str, JsonValue]]:
    """Decide on the body of /ak/challenge; what to keep, and the members of the reply beside the challenge's id.

    `secret` is 32 fresh random bytes. Raises `InvalidRequestError` for a malformed body, `VerificationError` with
    every failed check when the EK is not a known vendor's or the AK is not a restricted signing key of a TPM.
    """
    # (1) The body has the right form.
    if request.get("version") != VERSION:
        raise InvalidRequestError(f"ak/challenge: expected version {VERSION}, got {request.get('version')!r}")
    chain = _certificates(request.get("ek-certificates"))
    ek = Public.parse(base64_member(request, "ek-public", MAX_PUBLIC_SIZE))
    ak = Public.parse(base64_member(request, "ak-public", MAX_PUBLIC_SIZE))
    checks = Checks()
    # (2) The EK is a TPM's, by the word of a configured vendor.
    software = _check_ek(checks, ek, chain, trust, time)
    # (3) The AK signs nothing but what its TPM has made.
    check_public(checks, "ak", ak)
    checks.raise_failures(VerificationError)
    # (4) Only the TPM that holds both can read the secret.
    credential = make_credential(ek, ak.name(), secret)
    fingerprint = hashlib.sha256(certificates.spki(chain[0])).digest()
    pending = PendingEnrolment(ak, fingerprint, software, secret, time + CHALLENGE_LIFE)
    return pending, {
        "credential-blob": base64.b64encode(credential.id_object).decode(),
        "encrypted-secret": base64.b64encode(credential.encrypted_secret).decode(),
    }


def certificate(request: JsonObject, pending: PendingEnrolment, ca: AkCa, time: datetime) -> dict[str, JsonValue]:
    """Decide on the body of /ak/certificate for `pending`, which the caller has already removed; the reply.

    Raises `InvalidRequestError` for a malformed body, `VerificationError` with every failed check.
    """
    secret = base64_member(request, "secret", SECRET_SIZE)
    message = base64_member(request, "quote", MAX_ATTEST_SIZE)
    signature = base64_member(request, "signature", MAX_SIGNATURE_SIZE)
    checks = Checks()
    # (5) In time, and by the TPM that could read the secret.
    checks.demand("challenge.expires", time <= pending.expires, f"an answer until {pending.expires}", time)
    proven = hmac.compare_digest(secret, pending.secret)
    checks.require("challenge.secret", proven, "the activated secret", "another")
    # (6) The AK itself says, for this challenge, in which boot it is.
    quote.check_signature(checks, message, signature, pending.ak.public_key())
    attest = quote.check_attest(checks, message)
    if attest is not None:
        quote.check_nonce(checks, attest, quote_nonce(pending.secret))
    checks.raise_failures(VerificationError)
    if attest is None:
        raise InvalidRequestError("ak/certificate: expected a quote, got none")
    # (7) A short certificate.
    boot = EnrolledBoot(
        version=1,
        ak_name=pending.ak.name(),
        ek=pending.ek,
        reset_count=attest.reset_count,
        restart_count=attest.restart_count,
        software=pending.software,
    )
    leaf = issue(pending.ak, boot, ca, time)
    return {"certificate": "".join(one.public_bytes(Encoding.PEM).decode() for one in (leaf, ca.certificate))}


def quote_nonce(secret: bytes) -> bytes:
    """The nonce (32 bytes) of the quote that answers a challenge with `secret`."""
    return hashlib.sha256(QUOTE_LABEL + secret).digest()


def issue(ak: Public, boot: EnrolledBoot, ca: AkCa, time: datetime) -> x509.Certificate:
    """The certificate of `ak` in `boot`, valid from `time` for the CA's `life` (at most 7 days)."""
    if not timedelta(0) < ca.life <= MAX_CERTIFICATE_LIFE:
        raise InvalidRequestError(f"AK CA: expected a life of at most {MAX_CERTIFICATE_LIFE}, got {ca.life}")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"TPM attestation key {boot.ak_name.hex()[4:20]}")])
    usage = x509.KeyUsage(
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
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca.certificate.subject)
        .public_key(ak.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(time - CLOCK_SKEW)
        .not_valid_after(min(time + ca.life, ca.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([AIK_PURPOSE_OID]), critical=False)
        .add_extension(boot.extension(), critical=False)
        .sign(ca.key, hashes.SHA256())
    )


def _check_ek(checks: Checks, ek: Public, chain: Sequence[x509.Certificate], trust: EkTrust, time: datetime) -> bool:
    """Check the EK and its certificate; whether it is a software TPM's."""
    held = ek.attributes & EK_ATTRIBUTES == EK_ATTRIBUTES and not ek.attributes & Attributes.SIGN
    checks.demand("ek.attributes", held, "fixed to its TPM, restricted, decrypting only", repr(ek.attributes))
    checks.equal("ek.key", certificates.spki(chain[0]), certificates.spki(ek.public_key()))
    is_rsa = isinstance(chain[0].public_key(), rsa.RSAPublicKey)
    usage = _extension(chain[0], x509.KeyUsage)
    fits = usage is not None and (usage.key_encipherment if is_rsa else usage.key_agreement)
    checks.demand("ek.usage", fits, "key encipherment (RSA) or key agreement (EC)", usage)
    purposes = _extension(chain[0], x509.ExtendedKeyUsage)
    # The EK profile lets a vendor leave the purpose out; one that is there must be an EK's.
    purpose_fits = purposes is None or EK_PURPOSE_OID in purposes
    checks.demand("ek.purpose", purpose_fits, EK_PURPOSE_OID.dotted_string, purposes)
    roots = trust.vendors + (trust.software if trust.profile == "demo" else ())
    try:
        anchor = certificates.verify_chain(chain[0], chain[1:], roots, time)
    except InvalidRequestError as error:
        checks.fail("ek.chain", "an EK certificate of a configured vendor", error)
        return False
    checks.hold("ek.chain")
    software = anchor in trust.software or _is_software_model(chain[0]) or any(map(is_demo, (*chain, anchor)))
    checks.require("ek.software", trust.profile == "demo" or not software, "a hardware TPM", "a software TPM")
    return software


def _extension(leaf: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return leaf.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _is_software_model(leaf: x509.Certificate) -> bool:
    """Whether the EK certificate names a model that is software (TCG EK profile 3.2.9: in a directory name)."""
    names = _extension(leaf, x509.SubjectAlternativeName)
    directories = [] if names is None else names.get_values_for_type(x509.DirectoryName)
    return any(
        attribute.oid == _MODEL_OID and str(attribute.value).lower() in _SOFTWARE_MODELS
        for directory in directories
        for attribute in directory
    )


def _certificates(values: JsonValue) -> list[x509.Certificate]:
    if not isinstance(values, list) or not 1 <= len(values) <= certificates.MAX_CHAIN_LENGTH:
        raise InvalidRequestError(
            f"ek-certificates: expected 1 to {certificates.MAX_CHAIN_LENGTH} certificates, leaf first, got others"
        )
    limit = certificates.MAX_CERTIFICATE_SIZE
    return [certificates.parse(base64_bytes(value, "ek-certificates", limit)) for value in values]
