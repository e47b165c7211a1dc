"""A TPM quote in parts, as tpm2-tools and Keylime keep it: TPMS_ATTEST, TPMT_SIGNATURE, PCR values, the AK's key.

The quote may be over any PCRs of the SHA-256 bank: what each of them means is for whoever asked for it. A key that
nobody vouches for proves nothing, so the AK's public key beside the quote counts only because whoever gives it says
that it is the enrolled one.
"""

import base64
import hashlib
from collections.abc import Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hermetic.attestation.abi import tpm2_tools
from hermetic.attestation.abi.tpm import Alg, Attest, QuoteInfo
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, TpmClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.stored.beside import Beside
from hermetic.attestation.verifiers import quote
from hermetic.errors import FailedCheck, InvalidRequestError, VerificationError

PARTS = frozenset({"message", "signature", "pcrs", "ak_public"})
WANTED = "a TPMT_SIGNATURE, tpm2-tools' PCR values and the AK's public key (PEM) beside the quote (--endorsement)"


def evidence(message: bytes, beside: Beside) -> tuple[JsonValue, FailedCheck | None]:
    """The quote and its parts as one JSON value; or what is missing."""
    counts = {
        "signatures": len(beside.tpm_signatures),
        "files of PCR values": len(beside.pcrs),
        "public keys": len(beside.keys),
    }
    if any(count != 1 for count in counts.values()):
        got = ", ".join(f"{count} {name}" for name, count in counts.items())
        return None, FailedCheck("tpm.structure", WANTED, got)
    parts = {"message": message, "signature": beside.tpm_signatures[0], "pcrs": beside.pcrs[0]}
    parts["ak_public"] = beside.keys[0]
    return {name: base64.b64encode(data).decode() for name, data in parts.items()}, None


def judge(checks: Checks, parts: Mapping[str, JsonValue], report_data: bytes | None, trust: TrustRoots) -> Claims:
    """The claims of a genuine quote in parts; raises `VerificationError`. Every check is recorded in `checks`."""
    message, signature, values, spki = (
        base64.b64decode(str(parts[name])) for name in ("message", "signature", "pcrs", "ak_public")
    )
    try:
        pcrs = tpm2_tools.parse_pcrs(values)
        key = load_der_public_key(spki)
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise InvalidRequestError(f"expected an RSA or EC key, got {type(key).__name__}")
    except (InvalidRequestError, ValueError, UnsupportedAlgorithm) as error:
        checks.fail("tpm.structure", "PCR values and the AK's key", error)
        raise VerificationError(checks.failed) from error
    checks.hold("tpm.structure")
    fingerprint = hashlib.sha256(spki).digest()
    checks.demand(
        "tpm.ak.certificate", fingerprint in trust.tpm.provisioned_aks, "a key that was enrolled", fingerprint
    )
    quote.check_signature(checks, message, signature, key)
    attest = quote.check_attest(checks, message)
    if attest is not None:
        _check_quote(checks, attest, pcrs, report_data)
    checks.raise_failures(VerificationError)
    if attest is None:
        raise VerificationError([FailedCheck("tpm.quote.structure", "TPMS_ATTEST", "another")])
    return Claims(kinds=(_claims(checks, attest, pcrs, fingerprint),))


def _check_quote(checks: Checks, attest: Attest, pcrs: Mapping[int, bytes], report_data: bytes | None) -> None:
    if report_data is None:
        checks.skip("tpm.quote.nonce", "no report data is wanted")
    else:
        quote.check_nonce(checks, attest, report_data, len(report_data))
    try:
        selections = QuoteInfo.parse(attest.attested).selections
    except InvalidRequestError as error:
        checks.fail("tpm.quote.selection", "TPMS_QUOTE_INFO", error)
        return
    quoted = [index for one in selections if one.bank == Alg.SHA256 for index in one.indices]
    checks.equal("tpm.pcrs", sorted(quoted), sorted(pcrs))
    whole = [pcrs.get(index, b"") for index in range(max(quoted, default=-1) + 1)]
    quote.check_pcrs(checks, attest, whole, quoted)


def _claims(checks: Checks, attest: Attest, pcrs: Mapping[int, bytes], fingerprint: bytes) -> TpmClaims:
    return TpmClaims(
        checks=checks.passed,
        software=False,
        enrolled="provisioned",
        ak_name=None,
        ak_spki=fingerprint.hex(),
        ek=None,
        reset_count=attest.reset_count,
        restart_count=attest.restart_count,
        firmware_version=f"{attest.firmware_version:016x}",
        clock_safe=attest.safe == 1,
        pcrs={str(index): value.hex() for index, value in pcrs.items()},
        boot_log=False,
        secure_boot=None,
        measured_code=None,
        log_pcr=None,
        log_base=None,
        manifests=(),
    )
