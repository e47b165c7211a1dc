"""Whether Intel's collateral is genuine and in its time, and whether it takes back a certificate of the platform.

Not here: what the collateral says of the platform's state (dcap_tcb.py), whether that state is acceptable (policies).
"""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap_collateral import Collateral, SignedText
from hermetic.attestation.checks import Checks
from hermetic.attestation.roots import DcapTrust, Grace
from hermetic.attestation.verifiers.dcap import Platform
from hermetic.attestation.verifiers.dcap_chain import check_chain, check_signature, common_name

SIGNING_CHAIN: Final = "signing-chain"  # kind of collateral
TCB_SIGNER: Final = "Intel SGX TCB Signing"
"""Below Intel's root live PCK certificates too, whose keys leave the factory: they may not sign collateral."""

LISTS_KEPT: Final = 64
"""Pairs of revocation list and issuer whose signature was looked at: it does not change, and every quote needs the same
ones. Intel's lists have 3 KB, and none more than `MAX_FILE_SIZE` of abi/."""


def choose(checks: Checks, kind: str, collateral: Sequence[Collateral], platform: Platform) -> Collateral | None:
    """The youngest of `collateral` that is for `platform`; None where none was given, or none fits.

    A site has lists of several CAs. Those of other CAs say nothing here, and their end is not the end of this one.
    """
    if not collateral:
        checks.skip(f"{kind}.collateral", "no collateral was given")
        return None
    wanted = (kind.upper(), platform.pck.fmspc.hex(), platform.pck.pce_id.hex())
    fitting = [one for one in collateral if (one.tcb_info.id, one.tcb_info.fmspc, one.tcb_info.pceId) == wanted]
    got = sorted({f"{one.tcb_info.id} {one.tcb_info.fmspc} {one.tcb_info.pceId}" for one in collateral})
    checks.demand(f"{kind}.collateral.platform", bool(fitting), " ".join(wanted), got)
    found = max(fitting, key=lambda one: one.tcb_info.issueDate, default=None)
    if found is None:
        return None
    lists = tuple(one for one in found.pck_crls if one.issuer == platform.chain[0].issuer)
    return dataclasses.replace(found, pck_crls=lists or found.pck_crls)


def check_collateral(
    checks: Checks,
    kind: str,
    collateral: Collateral,
    platform: Platform,
    trust: DcapTrust,
    time: datetime,
) -> None:
    """Check signatures, chains and times of `collateral`, and that no certificate in use was taken back."""
    info, identity = collateral.tcb_info, collateral.qe_identity
    grace = trust.grace
    _check_signed(checks, f"{kind}.collateral.tcb_info", collateral.tcb_info_signed, trust, time)
    period = info.issueDate, info.nextUpdate
    grace.check(checks, f"{kind}.collateral.tcb_info.time", "tcb-info", period, time)
    wanted = "TD_QE" if kind == "tdx" else "QE"
    checks.equal(f"{kind}.collateral.qe_identity.id", wanted, identity.id)
    _check_signed(checks, f"{kind}.collateral.qe_identity", collateral.qe_identity_signed, trust, time)
    period = identity.issueDate, identity.nextUpdate
    grace.check(checks, f"{kind}.collateral.qe_identity.time", "qe-identity", period, time)
    _leaf, ca, root = platform.chain
    _check_list(checks, f"{kind}.collateral.root_crl", (collateral.root_crl,), root, ("root-crl", grace), time)
    _check_list(checks, f"{kind}.collateral.pck_crl", collateral.pck_crls, ca, ("pck-crl", grace), time)
    _check_revoked(checks, f"{kind}.collateral.revoked", collateral, platform)


def _check_signed(checks: Checks, name: str, signed: SignedText, trust: DcapTrust, time: datetime) -> None:
    end = min((one.not_valid_after_utc for one in signed.chain), default=time)
    judged = trust.grace.judged_at(SIGNING_CHAIN, end, time)
    signer = check_chain(checks, f"{name}.signer", signed.chain, trust.roots, judged)
    trust.grace.say(checks, f"{name}.signer.time", SIGNING_CHAIN, end, time)
    if signer is None:
        return
    checks.equal(f"{name}.signer.name", TCB_SIGNER, common_name(signer.subject))
    check_signature(checks, f"{name}.signature", signer.public_key(), signed.signature, signed.text.encode())


def _check_list(
    checks: Checks,
    name: str,
    lists: Sequence[x509.CertificateRevocationList],
    issuer: x509.Certificate,
    kind_and_grace: tuple[str, Grace],
    time: datetime,
) -> None:
    found = next((one for one in lists if one.issuer == issuer.subject), None)
    is_good = found is not None and _is_signed(found.public_bytes(Encoding.DER), issuer)
    issuers = sorted(common_name(one.issuer) for one in lists)
    checks.demand(f"{name}.signature", is_good, f"a list signed by {common_name(issuer.subject)}", issuers)
    if found is not None:
        start, end = found.last_update_utc, found.next_update_utc
        if end is None:
            checks.fail(f"{name}.time", time, f"{start} to an end that it does not say")
        else:
            kind, grace = kind_and_grace
            grace.check(checks, f"{name}.time", kind, (start, end), time)


@lru_cache(maxsize=LISTS_KEPT)
def _is_signed(listed: bytes, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    return isinstance(key, ec.EllipticCurvePublicKey) and x509.load_der_x509_crl(listed).is_signature_valid(key)


def _check_revoked(checks: Checks, name: str, collateral: Collateral, platform: Platform) -> None:
    leaf, *rest = platform.chain
    signed = collateral.tcb_info_signed, collateral.qe_identity_signed
    of_root = {one.serial_number for chain in (rest, *(part.chain for part in signed)) for one in chain}
    of_ca = [one for one in collateral.pck_crls if one.issuer == leaf.issuer]
    taken = [serial for serial in of_root if collateral.root_crl.get_revoked_certificate_by_serial_number(serial)]
    taken += [leaf.serial_number for one in of_ca if one.get_revoked_certificate_by_serial_number(leaf.serial_number)]
    checks.demand(name, not taken, "no certificate that was taken back", [f"{serial:x}" for serial in sorted(taken)])
