"""Whether a DCAP quote is genuine: signed by an attestation key, of a quoting enclave, on a platform that Intel knows.

The steps are those of docs/spec/tdx-evidence.md, for TDX and SGX alike; `kind` ("tdx", "sgx") begins each check's name.
Not here: Intel's word on the platform's state (dcap_collateral.py, dcap_tcb.py), the report's meaning (tdx.py, sgx.py).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal

from cryptography import x509

from hermetic.attestation.abi.dcap import QE_VENDOR_INTEL, Quote
from hermetic.attestation.abi.pck import PckExtension, parse_chain
from hermetic.attestation.abi.sgx import EnclaveReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.verifiers.dcap_chain import check_chain, check_signature, common_name, raw_key
from hermetic.errors import InvalidRequestError

PCK_SUBJECT: Final = "Intel SGX PCK Certificate"
PCK_ISSUERS: Final[Mapping[str, Literal["platform", "processor"]]] = {
    "Intel SGX PCK Platform CA": "platform",
    "Intel SGX PCK Processor CA": "processor",
}

CHAINS_KEPT: Final = 256
"""Certificate chains that were read, and extensions of their leaves: a platform sends the same ones in each quote. Read
is not verified: who signed them, and whether their time has come, is asked each time. At most 4 MiB."""

_chain = lru_cache(maxsize=CHAINS_KEPT)(parse_chain)
_extension = lru_cache(maxsize=CHAINS_KEPT)(PckExtension.of)


@dataclass(frozen=True, slots=True)
class Platform:
    """The platform that made a quote, as its PCK certificate says."""

    chain: tuple[x509.Certificate, ...]  # PCK leaf, PCK CA, root
    pck: PckExtension


def check_quote(
    checks: Checks, kind: str, quote: Quote, roots: Sequence[x509.Certificate], time: datetime
) -> Platform | None:
    """Check everything that needs no collateral; the platform, None where its certificates cannot be read."""
    checks.require(f"{kind}.quote.padding", not quote.padding.strip(b"\0"), "nothing but 00 behind it", "other bytes")
    checks.equal(f"{kind}.quote.vendor", QE_VENDOR_INTEL, quote.header.qe_vendor_id)
    # (1) The platform's certificate, which Intel issued.
    platform = _check_platform(checks, kind, quote, roots, time)
    # (2) It signed the report of a quoting enclave.
    if platform is None:
        checks.skip(f"{kind}.qe.signature", "the platform's certificate is refused")
    else:
        key = platform.chain[0].public_key()
        check_signature(
            checks, f"{kind}.qe.signature", key, quote.signature.qe_report_signature, quote.signature.qe_report
        )
    # (3) Which names the attestation key.
    qe = EnclaveReport.parse(quote.signature.qe_report)
    named = hashlib.sha256(quote.signature.attestation_key + quote.signature.qe_auth_data).digest()
    checks.equal(f"{kind}.qe.attestation_key", named + bytes(32), qe.report_data)
    checks.require(f"{kind}.qe.debug", not qe.debug, "a quoting enclave that nobody can look into", "a debug enclave")
    # (4) Which signed header and body.
    try:
        attestation_key = raw_key(quote.signature.attestation_key)
    except InvalidRequestError as error:
        checks.fail(f"{kind}.quote.signature", "a signature by a key on P-256", error)
    else:
        check_signature(checks, f"{kind}.quote.signature", attestation_key, quote.signature.signature, quote.signed)
    return platform


def _check_platform(
    checks: Checks, kind: str, quote: Quote, roots: Sequence[x509.Certificate], time: datetime
) -> Platform | None:
    try:
        chain = _chain(quote.signature.certificates)
    except InvalidRequestError as error:
        checks.fail(f"{kind}.pck.structure", "the chain of a PCK certificate", error)
        return None
    checks.hold(f"{kind}.pck.structure")
    leaf = check_chain(checks, f"{kind}.pck", chain, roots, time)
    if leaf is None:
        return None
    # Below Intel's root other certificates live too; only these may vouch for a platform.
    names = common_name(leaf.subject), common_name(leaf.issuer)
    checks.demand(
        f"{kind}.pck.names",
        names[0] == PCK_SUBJECT and names[1] in PCK_ISSUERS,
        f"{PCK_SUBJECT}, by {' or '.join(PCK_ISSUERS)}",
        f"{names[0]}, by {names[1]}",
    )
    try:
        return Platform(chain, _extension(leaf))
    except InvalidRequestError as error:
        checks.fail(f"{kind}.pck.extension", "the SGX extension of a PCK certificate", error)
        return None
