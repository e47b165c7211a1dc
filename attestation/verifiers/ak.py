"""Whether an attestation key (AK) signs only what its TPM made, and who vouches for it.

Used at enrolment (before a certificate is issued) and at every verification (what the certificate says is checked
again against the public area and the quote).
"""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509

from hermetic.attestation.abi.ak_certificate import AIK_PURPOSE_OID, EnrolledBoot
from hermetic.attestation.abi.tpm import Alg, Attributes, Curve, Public
from hermetic.attestation.checks import Checks
from hermetic.attestation.demo_mark import is_demo
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import certificates
from hermetic.errors import InvalidRequestError

DEMANDED: Final = (
    Attributes.FIXED_TPM
    | Attributes.FIXED_PARENT
    | Attributes.SENSITIVE_DATA_ORIGIN
    | Attributes.RESTRICTED
    | Attributes.SIGN
)
"""Made in the TPM, never leaves it, and signs only what the TPM itself has written."""
FORBIDDEN: Final = Attributes.DECRYPT | Attributes.ENCRYPTED_DUPLICATION | Attributes.X509_SIGN
"""A key with another use beside quotes."""
ATTRIBUTES_KEPT: Final = 64
"""Combinations whose names are kept."""
AKS_KEPT: Final = 512
"""Attestation keys and certificates of which is kept what they say: each renewal brings them again. No verdict is."""


@dataclass(frozen=True, slots=True)
class EnrolledAk:
    """An AK that a broker's AK CA vouches for."""

    public: Public
    boot: EnrolledBoot


def check_public(checks: Checks, prefix: str, public: Public) -> None:
    """Check attributes and algorithms of an AK's public area; the names of the checks begin with `prefix`."""
    attributes = public.attributes
    checks.demand(
        f"{prefix}.attributes",
        attributes & DEMANDED == DEMANDED and not attributes & FORBIDDEN,
        f"{_listed(DEMANDED)} and none of {_listed(FORBIDDEN)}",
        _listed(attributes),
    )
    wanted = "ECDSA P-256 or RSASSA of at least 2048 bits, SHA-256 everywhere, no symmetric algorithm"
    is_ec = public.type == Alg.ECC and public.scheme.alg == Alg.ECDSA and public.size == Curve.NIST_P256
    is_rsa = public.type == Alg.RSA and public.scheme.alg == Alg.RSASSA and public.size >= certificates.MIN_RSA_BITS
    hashes_fit = public.name_alg == Alg.SHA256 and public.scheme.details == (Alg.SHA256,)
    checks.demand(
        f"{prefix}.algorithm",
        (is_ec or is_rsa) and hashes_fit and public.symmetric.alg == Alg.NULL,
        wanted,
        f"type {public.type:#06x}, size {public.size}, name {public.name_alg:#06x}, scheme {public.scheme}",
    )


def check_enrolled(
    checks: Checks, public: Public, chain: tuple[x509.Certificate, ...], trust: TrustRoots, time: datetime
) -> EnrolledAk | None:
    """Check the certificate `chain` (leaf first) of the AK `public`; None where its extension cannot be read."""
    check_public(checks, "tpm.ak", public)
    leaf = chain[0]
    try:
        anchor = certificates.verify_chain(leaf, chain[1:], trust.tpm.ak_cas, time)
    except InvalidRequestError as error:
        checks.fail("tpm.ak.chain", "a certificate of a configured AK CA", error)
    else:
        checks.hold("tpm.ak.chain")
        demo = any(map(_is_marked, (*chain, anchor)))
        checks.require("tpm.ak.demo", trust.profile == "demo" or not demo, "no demo's certificate", "a demo's")
    _check_purpose(checks, leaf)
    try:
        boot = _boot(leaf)
        checks.equal("tpm.ak.key", certificates.spki_of(leaf), key_of(public))
    except InvalidRequestError as error:
        checks.fail("tpm.ak.certificate", "the AK's key and the enrolled boot", error)
        return None
    checks.equal("tpm.ak.name", boot.ak_name, name_of(public))
    checks.require("tpm.ak.software", trust.profile == "demo" or not boot.software, "a hardware TPM", "a software TPM")
    return EnrolledAk(public, boot)


@lru_cache(maxsize=AKS_KEPT)
def key_of(public: Public) -> bytes:
    """The SubjectPublicKeyInfo (DER) of the key in a public area; raises `InvalidRequestError` where it is none."""
    return certificates.spki(public.public_key())


@lru_cache(maxsize=AKS_KEPT)
def name_of(public: Public) -> bytes:
    """The Name of a public area."""
    return public.name()


@lru_cache(maxsize=AKS_KEPT)
def _boot(leaf: x509.Certificate) -> EnrolledBoot:
    return EnrolledBoot.of(leaf)


@lru_cache(maxsize=AKS_KEPT)
def _is_marked(certificate: x509.Certificate) -> bool:
    return is_demo(certificate)


def _check_purpose(checks: Checks, leaf: x509.Certificate) -> None:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        checks.fail("tpm.ak.purpose", "an AIK certificate of an end entity", error)
        return
    held = list(usages) == [AIK_PURPOSE_OID] and not constraints.ca
    got = [usage.dotted_string for usage in usages]
    checks.demand("tpm.ak.purpose", held, f"only {AIK_PURPOSE_OID.dotted_string} and no CA", got)


@lru_cache(maxsize=ATTRIBUTES_KEPT)
def _listed(attributes: Attributes) -> str:
    names = [member.name.lower() for member in Attributes if member in attributes and member.name]
    return ", ".join(names) or "none"
