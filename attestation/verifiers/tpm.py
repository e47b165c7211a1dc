"""Whether a TPM quote is genuine: made by an enrolled key, in the enrolled boot, for this nonce, with logs that replay.

The steps are those of docs/spec/evidence.md, "Kind tpm". Whether the values are the wanted ones is asked by policy/.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from hermetic.attestation.abi.event_log import ZEROS, EventLog
from hermetic.attestation.abi.tpm import Alg, Attest, endorsement_name
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, TpmClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers import boot_chain, quote
from hermetic.attestation.verifiers.ak import EnrolledAk, check_enrolled, key_of, name_of
from hermetic.attestation.verifiers.tpm_evidence import PCR_COUNT, TpmEvidence
from hermetic.errors import FailedCheck, InvalidRequestError, VerificationError

LOG_PCRS: Final = range(8, 16)
"""PCRs that our event log may use: static, and not the firmware's. 16 and 23 can be reset by anyone, 17 to 22 by
dynamic launch, so nothing that lies there says what has happened since boot."""


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of genuine TPM evidence over `report_data` (32 bytes) at `time`; raises `VerificationError`."""
    return judge(Checks(), evidence, report_data, trust, time)


def judge(checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime) -> Claims:
    """As `verify`; every check that is made, passed, failed or not evaluated, is recorded in `checks`.

    `report_data` is None for stored evidence whose challenge is not known: that check is then not evaluated.
    """
    # (1) The evidence has the right form.
    try:
        parsed = TpmEvidence.parse(evidence)
    except InvalidRequestError as error:
        checks.fail("tpm.structure", "evidence of kind tpm", error)
        raise VerificationError(checks.failed) from error
    checks.hold("tpm.structure")
    # (2) Someone whom we trust vouches for the attestation key.
    enrolled = _check_key(checks, parsed, trust, time)
    # (3) The key signed a quote, for this nonce, over these PCRs.
    quote.check_signature(checks, parsed.message, parsed.signature, parsed.ak_key)
    attest = quote.check_attest(checks, parsed.message)
    if attest is not None:
        if report_data is None:
            checks.skip("tpm.quote.nonce", "no report data is wanted")
        else:
            quote.check_nonce(checks, attest, report_data, len(report_data))
        quote.check_pcrs(checks, attest, parsed.pcrs, range(PCR_COUNT))
        # (4) The quote is of the boot in which the key was enrolled, by the very key.
        if enrolled is not None:
            _check_boot(checks, attest, enrolled)
    # (5) The logs tell the story of exactly these PCRs.
    replayed = _check_logs(checks, parsed)
    checks.raise_failures(VerificationError)
    if attest is None:
        raise VerificationError([FailedCheck("tpm.quote.structure", "TPMS_ATTEST", "another")])
    return Claims(kinds=(_claims(checks, parsed, attest, enrolled, replayed),))


def _check_key(checks: Checks, parsed: TpmEvidence, trust: TrustRoots, time: datetime) -> EnrolledAk | None:
    if parsed.ak_public is not None and parsed.ak_chain:
        try:
            checks.equal("tpm.ak.public", key_of(parsed.ak_public), parsed.ak_spki)
        except InvalidRequestError as error:
            checks.fail("tpm.ak.public", "the public area of the quoting key", error)
            return None
        return check_enrolled(checks, parsed.ak_public, parsed.ak_chain, trust, time)
    checks.require(
        "tpm.ak.certificate",
        hashlib.sha256(parsed.ak_spki).digest() in trust.tpm.provisioned_aks,
        "an AK certificate with its public area, or a key that was provisioned by hand",
        f"neither for key {hashlib.sha256(parsed.ak_spki).hexdigest()}",
    )
    return None


def _check_boot(checks: Checks, attest: Attest, enrolled: EnrolledAk) -> None:
    boot = enrolled.boot
    checks.equal("tpm.quote.signer", endorsement_name(name_of(enrolled.public)), attest.qualified_signer)
    checks.equal("tpm.quote.reset_count", boot.reset_count, attest.reset_count)
    # A TPM Restart (hibernation) clears the PCRs and counts here, not in resetCount.
    checks.equal("tpm.quote.restart_count", boot.restart_count, attest.restart_count)


def _check_logs(checks: Checks, parsed: TpmEvidence) -> Mapping[int, bytes]:
    """Check both logs; the PCR values to which the firmware's log replays, none without one."""
    own = parsed.event_log
    own_pcr = None if own is None else own.pcr
    replayed: Mapping[int, bytes] = {}
    if parsed.boot_log is not None:
        replayed = boot_chain.check_boot_log(checks, parsed.boot_log, parsed.pcrs, own_pcr)
    if own is not None:
        _check_own_log(checks, own, parsed, replayed)
    return replayed


def _check_own_log(checks: Checks, own: EventLog, parsed: TpmEvidence, replayed: Mapping[int, bytes]) -> None:
    is_static = own.pcr in LOG_PCRS
    checks.demand("tpm.event_log.pcr", is_static, f"a static PCR, {LOG_PCRS[0]} to {LOG_PCRS[-1]}", own.pcr)
    if is_static:
        checks.equal("tpm.event_log.replay", parsed.pcrs[own.pcr], own.replay(replayed.get(own.pcr, ZEROS)))


def _claims(
    checks: Checks, parsed: TpmEvidence, attest: Attest, enrolled: EnrolledAk | None, replayed: Mapping[int, bytes]
) -> TpmClaims:
    own, boot_log = parsed.event_log, parsed.boot_log
    own_pcr = None if own is None else own.pcr
    return TpmClaims(
        checks=checks.passed,
        software=enrolled is not None and enrolled.boot.software,
        enrolled="provisioned" if enrolled is None else "certificate",
        ak_name=None if enrolled is None else enrolled.boot.ak_name.hex(),
        ak_spki=hashlib.sha256(parsed.ak_spki).hexdigest(),
        ek=None if enrolled is None else enrolled.boot.ek.hex(),
        reset_count=attest.reset_count,
        restart_count=attest.restart_count,
        firmware_version=f"{attest.firmware_version:016x}",
        clock_safe=attest.safe == 1,
        pcrs={str(index): value.hex() for index, value in enumerate(parsed.pcrs)},
        boot_log=boot_log is not None,
        secure_boot=(
            None if boot_log is None else boot_chain.secure_boot(boot_log, boot_chain.SECURE_BOOT_PCR, Alg.SHA256)
        ),
        measured_code=None if boot_log is None else boot_chain.measured_code(boot_log, own_pcr),
        log_pcr=own_pcr,
        log_base=None if own is None else replayed.get(own.pcr, ZEROS).hex(),
        manifests=() if own is None else tuple(event.digest.hex() for event in own.events),
    )
