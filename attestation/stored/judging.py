"""Stored evidence before the verifier of its kind, with what lay beside it handed to where that verifier looks.

What was given must be of use: collateral for another kind, and files that are nothing known, are failures by name, so
that nobody takes a verdict for one that they had a part in. Not here: policies (verdict.py).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap_collateral import Collateral, parse_files
from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.abi.snp import SigningKey
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue, fit
from hermetic.attestation.roots import TrustRoots, intel
from hermetic.attestation.stored import tpm_parts, unvouched
from hermetic.attestation.stored.beside import KNOWN, Beside
from hermetic.attestation.stored.forms import Stored, endorsement_of, manifest_of, recognise_form
from hermetic.attestation.verifiers import azure_snp, azure_tdx, nvgpu, sgx, snp, tdx, tpm
from hermetic.attestation.verifiers.dcap_chain import common_name
from hermetic.attestation.verifiers.dcap_collateral import TCB_SIGNER
from hermetic.attestation.verifiers.nvgpu_rim import check_manifest
from hermetic.attestation.verifiers.snp_chain import check_chain
from hermetic.errors import InvalidRequestError, VerificationError

Judge: TypeAlias = Callable[[Checks, JsonValue, bytes | None, TrustRoots, datetime], Claims]

QUOTE_FIELD: Final = 64  # bytes of report data in reports of CPUs
ALONE: Final = frozenset({"rim", "vcek", "vlek"})
"""Kinds that are no evidence but vouch for some: genuine or not, and without claims."""


def recognise(evidence: bytes, endorsements: Sequence[bytes] = (), collateral: Sequence[bytes] = ()) -> Stored:
    """Which kind the file `evidence` is, with the files that lie beside it; never raises for what they hold.

    `endorsements` (certificates, chains, keys) and `collateral` (what vendors publish) are told apart by their content
    too; the two names only say which file a failed check means. Something unknown is `refused`, saying what is known.
    """
    return recognise_form(evidence, Beside.of(endorsement=endorsements, collateral=collateral))


def judge(
    checks: Checks,
    stored: Stored,
    trust: TrustRoots,
    time: datetime,
    report_data: bytes | None = None,
    *,
    vouched: bool = True,
) -> Claims | None:
    """Record every check of `stored` at `time` (aware) in `checks`; its claims, None where one failed or it has none.

    `report_data` is what the evidence must be bound to (a nonce, for TPMs and NVIDIA's devices); None where nobody
    knows: that is then not evaluated. Without `vouched` so is the chain of a TPM's key that came without one.
    """
    for name, got in stored.beside.unreadable:
        checks.fail(name, KNOWN, got)
    if stored.refused is not None:
        checks.fail(stored.refused.name, stored.refused.wanted, stored.refused.got)
        return None
    if stored.left_out:
        checks.skip("evidence.trailer", stored.left_out)
    _check_used(checks, stored)
    given = _trust(checks, stored, trust)
    if stored.kind in ALONE:
        _judge_alone(checks, stored, given, time)
        return None
    is_unvouched = not vouched and stored.kind == "tpm" and unvouched.is_unvouched(stored.evidence, given)
    judged_by = unvouched.judge if is_unvouched else _JUDGES[stored.kind]
    try:
        claims = judged_by(checks, stored.evidence, _fitted(stored.kind, report_data), given, time)
    except VerificationError:
        return None  # every failure stands in `checks`
    return None if checks.failed else claims


def _judge_tpm(
    checks: Checks, evidence: JsonValue, report_data: bytes | None, trust: TrustRoots, time: datetime
) -> Claims:
    if isinstance(evidence, Mapping) and evidence.keys() == tpm_parts.PARTS:
        return tpm_parts.judge(checks, evidence, report_data, trust)
    return tpm.judge(checks, evidence, report_data, trust, time)


def _judge_sample(
    checks: Checks, _evidence: JsonValue, _report_data: bytes | None, _trust: TrustRoots, _time: datetime
) -> Claims:
    checks.fail("sample.profile", "evidence that proves something", "the demo's sample, which anybody can write")
    raise VerificationError(checks.failed)


_JUDGES: Final[Mapping[str, Judge]] = {
    "az-snp-vtpm": azure_snp.judge,
    "az-tdx-vtpm": azure_tdx.judge,
    "nvgpu": nvgpu.judge,
    "sample": _judge_sample,
    "sgx": sgx.judge,
    "snp": snp.judge,
    "tdx": tdx.judge,
    "tpm": _judge_tpm,
}


def _fitted(kind: str, report_data: bytes | None) -> bytes | None:
    """A shorter digest stands in a CPU's field with 00 behind it; a nonce has no such field."""
    is_padded = report_data is not None and kind in {"snp", "tdx", "sgx"} and len(report_data) < QUOTE_FIELD
    return fit(report_data, QUOTE_FIELD) if report_data is not None and is_padded else report_data


def _check_used(checks: Checks, stored: Stored) -> None:
    """Check that nothing that says how genuine evidence is was given for evidence of another kind."""
    found = strange(stored.beside, stored.kind)
    if found:
        checks.fail("collateral.kind", f"collateral for evidence of kind {stored.kind}", found)
    if len(stored.beside.event_logs) > 1:
        checks.fail("collateral.event_log", "at most one event log", len(stored.beside.event_logs))


def strange(beside: Beside, kind: str) -> list[str]:
    """What of `beside` is of no use to evidence of that kind."""
    places = {
        "AMD's revocation lists": (beside.amd_crls, {"snp", "az-snp-vtpm", "vcek", "vlek"}),
        "Intel's collateral": (beside.intel, {"tdx", "sgx", "az-tdx-vtpm"}),
        "reference manifests": (beside.rims, {"nvgpu"}),
        "OCSP answers": (beside.ocsp, {"nvgpu", "rim"}),
        "an event log": (beside.event_logs, {"tdx", "tpm"}),
    }
    return [name for name, (pieces, kinds) in places.items() if pieces and kind not in kinds]


def _trust(checks: Checks, stored: Stored, trust: TrustRoots) -> TrustRoots:
    """`trust` with what lay beside the evidence."""
    beside = stored.beside.whole()
    provisioned = trust.tpm.provisioned_aks | {hashlib.sha256(key).digest() for key in beside.keys}
    return dataclasses.replace(
        trust,
        tpm=dataclasses.replace(trust.tpm, provisioned_aks=provisioned),
        dcap=dataclasses.replace(
            trust.dcap, collateral=(*trust.dcap.collateral, *_intel_collateral(checks, stored.kind, beside))
        ),
        nvgpu=dataclasses.replace(
            trust.nvgpu, rims=(*trust.nvgpu.rims, *beside.rims), ocsp=(*trust.nvgpu.ocsp, *beside.ocsp)
        ),
        snp=dataclasses.replace(
            trust.snp,
            endorsements=(*trust.snp.endorsements, *(one for one in beside.amd if one.common_name in _ENDORSEMENTS)),
            crls=(*trust.snp.crls, *beside.amd_crls),
        ),
    )


_ENDORSEMENTS: Final = frozenset({"SEV-VCEK", "SEV-VLEK"})
"""Authorities that lie beside are not looked at: they are the verifier's."""


def _intel_collateral(checks: Checks, kind: str, beside: Beside) -> tuple[Collateral, ...]:
    """What `beside` holds of Intel's collateral, whole; it comes with the chain of its signer, or without."""
    name = f"{'tdx' if kind == 'az-tdx-vtpm' else kind}.collateral.structure"
    if not beside.intel or kind not in {"tdx", "sgx", "az-tdx-vtpm"}:
        return ()
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in _signing_chain(beside.certificates))
    try:
        found = parse_files([*beside.intel, chain])
    except InvalidRequestError as error:
        checks.fail(name, "Intel's collateral, whole", error)
        return ()
    checks.require(name, bool(found), "TCB info with QE identity and revocation lists", "no TCB info")
    return found


def _signing_chain(certificates: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The signer of TCB info among `certificates` with its issuer; each as shipped where it is not among them."""
    own_signer, own_root = intel.signing_chain()
    signer = next((one for one in certificates if common_name(one.subject) == TCB_SIGNER), own_signer)
    root = next((one for one in certificates if one.subject == signer.issuer == one.issuer), own_root)
    return signer, root


def _judge_alone(checks: Checks, stored: Stored, trust: TrustRoots, time: datetime) -> None:
    """Judge what only vouches for evidence: a reference manifest, or the certificate of a key that signs reports."""
    name = f"{stored.kind}.structure"
    try:
        found = manifest_of(stored) if stored.kind == "rim" else endorsement_of(stored)
    except InvalidRequestError as error:
        checks.fail(name, f"a {stored.kind.upper()}", error)
        return
    checks.hold(name)
    if isinstance(found, Rim):
        check_manifest(checks, "rim", found, trust.nvgpu, time)
    else:
        check_chain(checks, found, SigningKey[stored.kind.upper()], trust.snp, trust.snp.crls, time)
