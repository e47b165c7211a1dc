"""A second opinion on quote and collateral: the library `dcap-qvl`, which must agree with us in every value.

We judge first, by our own parser and our own checks; then the library judges the same bytes, with the same root and the
same time. A bug in either of the two alone admits nothing. Its own appraisal is switched off as far as that goes: some
domains (debug, without SEPT_VE_DISABLE, with a service domain) it never judges, and says so after it has verified the
signature; there the check is "not evaluated", and the properties are checks of our own (policy/dcap.py).
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.dcap_collateral import Collateral
from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import TcbClaims
from hermetic.attestation.verifiers.dcap import CHAINS_KEPT, Platform

WANTED: Final = "agreement of the library dcap-qvl"
PREFIX: Final = "Verification failed: "
DEBUG: Final = "Debug mode is enabled"
NO_SEPT_VE_DISABLE: Final = "SEPT_VE_DISABLE is not enabled"
SERVICE_TD: Final = "Invalid MR service TD"


def check_witness(
    checks: Checks,
    kind: str,
    raw: bytes,
    quote: Quote,
    platform: Platform,
    collateral: Collateral,
    tcb: TcbClaims,
    time: datetime,
) -> None:
    """Check `<kind>.witness`: the library verifies `raw` and reads the same status, platform and report in it."""
    name = f"{kind}.witness"
    try:
        claims = _judged(raw, platform, collateral, time)
    except ValueError as error:
        if str(error).removeprefix(PREFIX) in _never_judged(quote.body):
            checks.skip(name, f"dcap-qvl judges no such report: {error}")
        else:
            checks.fail(name, WANTED, error)
        return
    try:
        differences = _differences(claims, quote, platform, tcb)
    except (KeyError, TypeError, ValueError) as error:
        checks.fail(name, WANTED, f"claims in another form: {error!r}")
        return
    checks.demand(name, not differences, WANTED, differences)


def _judged(raw: bytes, platform: Platform, collateral: Collateral, time: datetime) -> Mapping[str, Any]:
    # Late: whoever only makes evidence has no need of 6 MB of foreign code in its memory.
    import dcap_qvl  # noqa: PLC0415

    _leaf, *authorities = platform.chain
    tcb_info, identity = collateral.tcb_info_signed, collateral.qe_identity_signed
    pck_crl = next(one for one in collateral.pck_crls if one.issuer == authorities[0].subject)
    bundle = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=_pem(tuple(authorities)),
        root_ca_crl=collateral.root_crl.public_bytes(Encoding.DER),
        pck_crl=pck_crl.public_bytes(Encoding.DER),
        tcb_info_issuer_chain=_pem(tcb_info.chain),
        tcb_info=tcb_info.text,
        tcb_info_signature=tcb_info.signature,
        qe_identity_issuer_chain=_pem(identity.chain),
        qe_identity=identity.text,
        qe_identity_signature=identity.signature,
    )
    now = int(time.timestamp())
    verifier = dcap_qvl.QuoteVerifier(authorities[-1].public_bytes(Encoding.DER))
    judged = verifier.verify_with_policy(raw, bundle, now, dcap_qvl.QuotePolicy.claims_only(now))
    claims: Mapping[str, Any] = json.loads(judged.to_json())
    return claims


def _never_judged(report: TdReport | EnclaveReport) -> frozenset[str]:
    """What the library may say of this very report where we leave the word to a policy."""
    reasons = {DEBUG} if report.debug else set()
    if isinstance(report, TdReport):
        if "SEPT_VE_DISABLE" not in report.attributes:
            reasons.add(NO_SEPT_VE_DISABLE)
        if report.mr_service_td is not None and any(report.mr_service_td):
            reasons.add(SERVICE_TD)
    return frozenset(reasons)


def _differences(claims: Mapping[str, Any], quote: Quote, platform: Platform, tcb: TcbClaims) -> list[str]:
    """Names of the values in which the library's claims are not ours."""
    pck, body = claims["platform"]["pck"], _flat(claims["report"])
    wanted: dict[str, object] = {
        "version": quote.header.version,
        "tee_type": quote.header.tee_type,
        "user_data": quote.header.user_data.hex(),
        "fmspc": list(platform.pck.fmspc),
        "ppid": list(platform.pck.ppid),
        "pce_id": list(platform.pck.pce_id),
        "cpu_svn": list(platform.pck.components),
        "pce_svn": platform.pck.pce_svn,
        "status": tcb.status,
        "advisory_ids": set(tcb.advisories),
        **_report(quote.body),
    }
    got: dict[str, object] = {
        **claims["header"],
        **{key: pck[key] for key in ("fmspc", "ppid", "pce_id", "cpu_svn", "pce_svn")},
        "status": claims["tcb"]["status"],
        "advisory_ids": set(claims["tcb"]["advisory_ids"]),
        **{f"report.{key}": value for key, value in body.items()},
    }
    return sorted(name for name, value in wanted.items() if name not in got or got[name] != value)


def _flat(members: Mapping[str, Any]) -> dict[str, Any]:
    """The innermost members of nested objects."""
    flat: dict[str, Any] = {}
    for name, value in members.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def _report(body: TdReport | EnclaveReport) -> dict[str, object]:
    """The report in the library's names, `report.` before each."""
    if isinstance(body, EnclaveReport):
        return {
            "report.cpu_svn": body.cpu_svn.hex(),
            "report.attributes": body.attributes.hex(),
            "report.mr_enclave": body.mr_enclave.hex(),
            "report.mr_signer": body.mr_signer.hex(),
            "report.isv_prod_id": body.isv_prod_id,
            "report.isv_svn": body.isv_svn,
            "report.report_data": body.report_data.hex(),
        }
    named: dict[str, bytes | None] = {
        "tee_tcb_svn": body.tee_tcb_svn,
        "mr_seam": body.mr_seam,
        "mr_signer_seam": body.mr_signer_seam,
        "seam_attributes": body.seam_attributes,
        "td_attributes": body.td_attributes,
        "xfam": body.xfam,
        "mr_td": body.mr_td,
        "mr_config_id": body.mr_config_id,
        "mr_owner": body.mr_owner,
        "mr_owner_config": body.mr_owner_config,
        "report_data": body.report_data,
        "tee_tcb_svn2": body.tee_tcb_svn2,
        "mr_service_td": body.mr_service_td,
        **{f"rt_mr{index}": value for index, value in enumerate(body.rtmrs)},
    }
    return {f"report.{name}": value.hex() for name, value in named.items() if value is not None}


@lru_cache(maxsize=CHAINS_KEPT)
def _pem(chain: tuple[x509.Certificate, ...]) -> str:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain).decode()
