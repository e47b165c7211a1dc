"""Whether AMD vouches for the key that signs SNP reports: certificate, authority, root, time, revocation.

The checks are `snp.chain.*` and `snp.crl.*` of docs/spec/snp-evidence.md. Not here: whether the key is the one of this
very report and chip (snp.py).
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hermetic.attestation.abi.amd_certificate import AmdCertificate, AmdRevocationList
from hermetic.attestation.abi.snp import SigningKey
from hermetic.attestation.checks import Checks
from hermetic.attestation.roots import AmdAuthorities, Grace, SnpTrust
from hermetic.errors import InvalidRequestError

_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)


def check_chain(
    checks: Checks,
    certificate: AmdCertificate,
    key: SigningKey,
    trust: SnpTrust,
    crls: Sequence[bytes],
    time: datetime,
) -> AmdAuthorities | None:
    """Check that `trust` vouches for `certificate` of kind `key` at `time`, and no list of `crls` (DER) revokes that.

    The authorities that do, as far as the name of the issuer says; None where they are not known.
    """
    named = [one for one in trust.authorities if _issuer(one, key).subject == certificate.issuer]
    checks.require(
        "snp.chain.generation",
        len(named) == 1,
        f"a {key.name} issued for one of {', '.join(one.generation for one in trust.authorities) or 'no generation'}",
        f"{certificate.common_name} of another issuer",
    )
    if len(named) != 1:
        return None
    authorities = named[0]
    ark, issuer = authorities.ark, _issuer(authorities, key)
    _check_signed(checks, "snp.chain.signature", [(certificate, issuer)])
    _check_signed(checks, "snp.chain.authority", [(issuer, ark), (ark, ark)])
    late = [one for one in (certificate, issuer, ark) if not one.start <= time <= one.end]
    checks.demand(
        "snp.chain.time",
        not late,
        f"all in their time at {time}",
        "; ".join(f"{one.common_name} from {one.start} to {one.end}" for one in late) or "so",
    )
    _check_revocation(checks, issuer, ark, crls, trust.grace, time)
    return authorities


def _issuer(authorities: AmdAuthorities, key: SigningKey) -> AmdCertificate:
    return authorities.asvk if key is SigningKey.VLEK else authorities.ask


def _check_signed(checks: Checks, name: str, pairs: Sequence[tuple[AmdCertificate, AmdCertificate]]) -> None:
    """Record whether the first of each pair is signed by the second."""
    for one, issuer in pairs:
        try:
            verify_signature(issuer, one.signed, one.signature)
        except InvalidSignature:
            checks.fail(name, f"{one.common_name} signed by {issuer.common_name}", "another signature")
            return
    checks.hold(name)


def verify_signature(issuer: AmdCertificate, signed: bytes, signature: bytes) -> None:
    """Raise `InvalidSignature` unless the key of `issuer` made `signature` (RSASSA-PSS, SHA-384) over `signed`."""
    try:
        key = load_der_public_key(issuer.spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidSignature from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidSignature
    key.verify(signature, signed, _PSS, hashes.SHA384())


def _check_revocation(
    checks: Checks, issuer: AmdCertificate, ark: AmdCertificate, crls: Sequence[bytes], grace: Grace, time: datetime
) -> None:
    found: list[AmdRevocationList] = []
    for data in crls:
        try:
            found.append(AmdRevocationList.parse(data))
        except InvalidRequestError as error:
            checks.fail("snp.crl.structure", "a revocation list of AMD's", error)
    ours = sorted((one for one in found if one.issuer == ark.subject), key=lambda one: one.start)
    if not ours:
        for name in ("snp.crl.signature", "snp.crl.time", "snp.chain.revoked"):
            checks.skip(name, f"no revocation list of {ark.common_name} was given")
        return
    latest = ours[-1]
    try:
        verify_signature(ark, latest.signed, latest.signature)
    except InvalidSignature:
        checks.fail("snp.crl.signature", f"a list signed by {ark.common_name}", "another signature")
    else:
        checks.hold("snp.crl.signature")
    grace.check(checks, "snp.crl.time", "amd-crl", (latest.start, latest.end), time)
    checks.demand(
        "snp.chain.revoked",
        not latest.revoked & {issuer.serial, ark.serial},
        f"{issuer.common_name} and {ark.common_name} not revoked",
        f"revoked serial numbers {sorted(latest.revoked)[:16]}",
    )
