"""Whether a SEV-SNP report is genuine: made by an AMD processor, signed by its key, for this report data.

The steps and check names are those of docs/spec/snp-evidence.md. Whether the values are the wanted ones (VMPL, debug,
TCB floors, measurement, which chip) is asked by policy/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hermetic.attestation.abi.amd_certificate import HWID, PRODUCT_NAME, SVNS, AmdCertificate
from hermetic.attestation.abi.snp import MASKED, SIGNED_SIZE, TURIN_HWID_SIZE, Generation, Report, SigningKey, Tcb
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import AmdAuthorities, SnpTrust, TrustRoots
from hermetic.attestation.verifiers import p384
from hermetic.attestation.verifiers.snp_chain import check_chain
from hermetic.attestation.verifiers.snp_claims import snp_claims
from hermetic.errors import FailedCheck, InvalidRequestError, VerificationError


@dataclass(frozen=True, slots=True)
class ReportChecked:
    """A report whose checks were all made; genuine when none of them failed."""

    report: Report
    generation: Generation
    certificate: AmdCertificate


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of genuine SNP evidence over `report_data` (64 bytes) at `time`; raises `VerificationError`."""
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known: that check is then not evaluated.
    """
    # (1) The evidence has the right form.
    try:
        parsed = SnpEvidence.parse(evidence)
    except InvalidRequestError as error:
        checks.fail("snp.structure", "evidence of kind snp", error)
        raise VerificationError(checks.failed) from error
    checks.hold("snp.structure")
    checked = check_report(checks, parsed.report, parsed.certificates, trust.snp, time)
    # (6) It was made for us, now.
    if report_data is None:
        checks.skip("snp.report_data", "no report data is wanted")
    elif checked is not None:
        checks.equal("snp.report_data", report_data, checked.report.report_data)
    checks.raise_failures(VerificationError)
    if checked is None:  # what could not be made has failed, so this is never reached; and never claims without it
        raise VerificationError([FailedCheck("snp.report", "an SNP attestation report", "another")])
    return Claims(kinds=(snp_claims(checks, checked.report, checked.generation, checked.certificate),))


def check_report(
    checks: Checks, data: bytes, certificates: Certificates, trust: SnpTrust, time: datetime
) -> ReportChecked | None:
    """Record every check of a report (1184 bytes) but what it is about; None where some could not be made."""
    # (2) The report has the right form.
    try:
        report = Report.parse(data)
    except InvalidRequestError as error:
        checks.fail("snp.report", "an SNP attestation report", error)
        return None
    checks.hold("snp.report")
    # (3) AMD vouches for a key, of the kind that has signed.
    certificate = _endorsement(checks, report, certificates, trust)
    if certificate is None:
        return None
    kind = SigningKey.VLEK if certificate.common_name == "SEV-VLEK" else SigningKey.VCEK
    _check_kind(checks, report, certificate)
    crls = (*trust.crls, *certificates.crls)
    authorities = check_chain(checks, certificate, kind, trust, crls, time)
    # (4) The key is this chip's, at this version of its firmware.
    generation = _check_product(checks, report, certificate, authorities)
    if generation is not None:
        _check_tcb(checks, report, certificate, generation)
        _check_hwid(checks, report, certificate, kind, generation)
    # (5) The key has signed the report.
    _check_signature(checks, report, data[:SIGNED_SIZE], certificate)
    return None if generation is None else ReportChecked(report, generation, certificate)


def _endorsement(checks: Checks, report: Report, given: Certificates, trust: SnpTrust) -> AmdCertificate | None:
    """The certificate of the key that has signed: from the evidence, else from the verifier's own store."""
    name = "snp.endorsement"
    own, other = (given.vleks, given.vceks) if report.signing_key is SigningKey.VLEK else (given.vceks, given.vleks)
    sent = own or other  # of the other kind: refused as such, by name
    if not sent:
        stored = _stored(report, trust.endorsements)
        checks.require(name, stored is not None, f"a certificate for the {report.signing_key.name}", "none that fits")
        return stored
    checks.demand(name, len(sent) == 1, "one certificate", f"{len(sent)}")
    if len(sent) != 1:
        return None
    try:
        certificate = AmdCertificate.parse(sent[0])
    except InvalidRequestError as error:
        checks.fail("snp.endorsement.structure", "a certificate of AMD's", error)
        return None
    checks.hold("snp.endorsement.structure")
    return certificate


def _stored(report: Report, store: Sequence[AmdCertificate]) -> AmdCertificate | None:
    """The latest certificate in `store` that fits; the only one there is, so that its checks say why it does not."""
    fitting = [one for one in store if _fits(report, one)]
    if not fitting:
        return store[0] if len(store) == 1 else None
    return max(fitting, key=lambda one: one.end)


def _fits(report: Report, certificate: AmdCertificate) -> bool:
    """Whether `certificate` names the reported TCB and, for a VCEK, this chip."""
    is_chip_s = report.signing_key is SigningKey.VCEK
    if certificate.common_name != f"SEV-{report.signing_key.name}":
        return False
    if is_chip_s and report.chip_id[:TURIN_HWID_SIZE] not in certificate.extensions.get(HWID, b""):
        return False  # cheap, and true of almost everything in a store
    try:
        generation = Generation(certificate.text(PRODUCT_NAME).partition("-")[0])
        size = generation.hwid_size
        names_chip = not is_chip_s or certificate.identifier(HWID, size) == report.chip_id[:size]
        return names_chip and certified_tcb(certificate, generation).pack() == report.reported_tcb
    except (InvalidRequestError, ValueError):
        return False


def _check_kind(checks: Checks, report: Report, certificate: AmdCertificate) -> None:
    wanted = f"SEV-{report.signing_key.name}"
    checks.equal("snp.report.signing_key", wanted, certificate.common_name)
    if report.signing_key is SigningKey.VLEK:
        checks.skip("snp.report.mask_chip_key", "only for a VCEK")
    else:
        checks.require("snp.report.mask_chip_key", not report.masks_chip_key, "a chip key that signs", "a masked one")


def _check_product(
    checks: Checks, report: Report, certificate: AmdCertificate, authorities: AmdAuthorities | None
) -> Generation | None:
    """Check that processor, certificate and authority are of one generation; which."""
    cpuid = report.cpuid
    processor = None if cpuid is None else Generation.of(*cpuid)
    try:
        product = certificate.text(PRODUCT_NAME).partition("-")[0]
    except InvalidRequestError as error:
        product = str(error)
    wanted = processor if authorities is None else authorities.generation
    seen = [product] if cpuid is None else [product, str(processor or f"CPUID {cpuid[0]:#04x} {cpuid[1]:#04x}")]
    checks.demand("snp.product", wanted is not None and set(seen) == {str(wanted)}, wanted or "a generation", seen)
    return processor or wanted


def certified_tcb(certificate: AmdCertificate, generation: Generation) -> Tcb:
    """The TCB that a VCEK's or VLEK's `certificate` names; raises `InvalidRequestError` where it names none."""
    names = [name for name in SVNS if name != "fmc" or generation is Generation.TURIN]
    return Tcb(**{name: certificate.number(SVNS[name]) for name in names})


def _check_tcb(checks: Checks, report: Report, certificate: AmdCertificate, generation: Generation) -> None:
    try:
        for packed in (report.current_tcb, report.committed_tcb, report.launch_tcb):
            Tcb.parse(packed, generation)
        reported = Tcb.parse(report.reported_tcb, generation)
        certified = certified_tcb(certificate, generation)
    except InvalidRequestError as error:
        checks.fail("snp.tcb", f"TCBs of {generation}", error)
        return
    # The reported one, not the current: from it the firmware derives the key.
    checks.equal("snp.tcb", certified, reported)


def _check_hwid(
    checks: Checks, report: Report, certificate: AmdCertificate, kind: SigningKey, generation: Generation
) -> None:
    if kind is SigningKey.VLEK:
        checks.skip("snp.hwid", "a VLEK is of no chip")
        return
    try:
        hwid = certificate.identifier(HWID, generation.hwid_size)
    except InvalidRequestError as error:
        checks.fail("snp.hwid", "the identifier of a chip", error)
        return
    masked = report.chip_id == MASKED
    checks.demand(
        "snp.hwid",
        not masked and report.chip_id == hwid.ljust(len(report.chip_id), b"\0"),
        hwid,
        "a masked chip_id" if masked else report.chip_id,
    )


def _check_signature(checks: Checks, report: Report, signed: bytes, certificate: AmdCertificate) -> None:
    try:
        key = load_der_public_key(certificate.spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        checks.fail("snp.key", "a key on P-384", error)
        return
    p384.check_numbers(checks, "snp", cast("CertificatePublicKeyTypes", key), (report.r, report.s), signed)
