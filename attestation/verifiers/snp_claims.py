"""What a genuine SEV-SNP report says, as claims (docs/spec/claims.md, "Kind snp")."""

import hashlib
from enum import IntFlag

from hermetic.attestation.abi.amd_certificate import CSP_ID, AmdCertificate
from hermetic.attestation.abi.snp import (
    MASKED,
    NO_MIGRATION_AGENT,
    WITH_MITIGATIONS,
    Generation,
    Platform,
    Policy,
    Report,
    SigningKey,
    Tcb,
)
from hermetic.attestation.checks import NOT_EVALUATED, Checks
from hermetic.attestation.claims import SnpClaims, SnpTcb


def snp_claims(checks: Checks, report: Report, generation: Generation, certificate: AmdCertificate) -> SnpClaims:
    """The claims of `report`, all of whose checks have passed."""
    is_vlek = report.signing_key is SigningKey.VLEK
    has_vectors = report.version >= WITH_MITIGATIONS
    chip_id = report.chip_id[: generation.hwid_size].hex()
    return SnpClaims(
        checks=checks.passed,
        not_evaluated=tuple(check.name for check in checks.all if check.result == NOT_EVALUATED),
        debug=bool(report.policy & Policy.DEBUG),
        version=report.version,
        generation=generation.value,
        signed_by="VLEK" if is_vlek else "VCEK",
        chip_id=None if report.chip_id == MASKED else chip_id,
        csp_id=certificate.text(CSP_ID) if CSP_ID in certificate.extensions else None,
        endorsement=hashlib.sha256(certificate.der).hexdigest(),
        measurement=report.measurement.hex(),
        host_data=report.host_data.hex(),
        id_key_digest=report.id_key_digest.hex(),
        author_key_digest=report.author_key_digest.hex() if report.has_author_key else None,
        family_id=report.family_id.hex(),
        image_id=report.image_id.hex(),
        guest_svn=report.guest_svn,
        vmpl=report.vmpl,
        report_id=report.report_id.hex(),
        migration_agent=None if report.report_id_ma == NO_MIGRATION_AGENT else report.report_id_ma.hex(),
        abi=f"{report.policy >> 8 & 0xFF}.{report.policy & 0xFF}",
        policy=tuple(_name(flag) for flag in Policy if report.policy & flag),
        platform=_platform(report.plat_info),
        reported_tcb=_tcb(report.reported_tcb, generation),
        current_tcb=_tcb(report.current_tcb, generation),
        committed_tcb=_tcb(report.committed_tcb, generation),
        launch_tcb=_tcb(report.launch_tcb, generation),
        firmware=str(report.current),
        committed_firmware=str(report.committed),
        launch_mitigations=f"{report.launch_mit_vector:016x}" if has_vectors else None,
        current_mitigations=f"{report.current_mit_vector:016x}" if has_vectors else None,
    )


def _name(flag: IntFlag) -> str:
    return (flag.name or "").lower().replace("_", "-")


def _platform(info: int) -> tuple[str, ...]:
    """Names of the set bits; a bit that has none here is shown by its number."""
    return tuple(
        _name(Platform(1 << bit)) if 1 << bit in set(Platform) else f"bit-{bit}" for bit in range(64) if info >> bit & 1
    )


def _tcb(packed: bytes, generation: Generation) -> SnpTcb:
    tcb = Tcb.parse(packed, generation)
    return SnpTcb(bootloader=tcb.bootloader, tee=tcb.tee, snp=tcb.snp, microcode=tcb.microcode, fmc=tcb.fmc)
