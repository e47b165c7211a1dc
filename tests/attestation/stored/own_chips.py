"""Evidence that no recorded file can show, of chips and vendors of the tests' own: debug, revocation, a Turin.

Everything but the keys is as the recorded evidence has it; verdicts are by the own vendor's root alone.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.snp import Generation, Policy
from hermetic.attestation.roots import DcapTrust, SnpTrust, TrustRoots
from tests.attestation import amd
from tests.attestation.stored.rows import read
from tests.attestation.verifiers import nvgpu_made
from tests.conformance.intel import Intel, text_of

Own = dict[str, Any]
"""What a `Case` is made of."""

AT = "2025-06-25"
SGX_DEBUG: Mapping[int, bytes] = {48: b"\x07"}  # attributes of an enclave's report: INIT, DEBUG, MODE64BIT


def snp(
    revoked: tuple[str, ...] = (), generation: Generation = Generation.MILAN, key: str = "one", **changes: Any
) -> Own:
    """A report of SEV-SNP by the chip "one", with the VCEK of the chip `key` beside it."""
    vendor = _amd(generation)
    size = generation.hwid_size
    report = amd.sign(amd.report(generation, **changes), amd.signing_key(amd.chip_id("one", size)))
    vcek = vendor.vcek(amd.chip_id(key, size), amd.tcb_of(generation))
    beside = (vcek, *((vendor.crl(*revoked),) if revoked else ()))
    roots = TrustRoots(snp=SnpTrust(authorities=(vendor.authorities(),)))
    return {"evidence": report, "beside": beside, "trust": roots}


def debug_snp(generation: Generation = Generation.MILAN) -> Own:
    """A report of a guest that the host may look into."""
    return snp(generation=generation, policy=0x30000 | Policy.DEBUG)


def quote(kind: str, *, is_revoked: bool = False, body: Mapping[int, bytes] | None = None) -> Own:
    """A quote of `kind` by a platform of our own, with whole collateral beside it."""
    name = {"tdx": "tdx/phala_b0c06f_v4", "sgx": "sgx/phala_00a067_v3"}[kind]
    intel, published = _intel(name), read(f"{name}.collateral.json")
    beside = (
        intel.answer("tcbInfo", _up_to_date(text_of(published, "tcb_info"))),
        intel.answer("enclaveIdentity", text_of(published, "qe_identity")),
        intel.chain(),
        intel.crl(intel.root),
        intel.crl(intel.ca, *([intel.pck] if is_revoked else [])),
    )
    made = intel.quoted(body=body or {})
    roots = TrustRoots(dcap=DcapTrust(roots=(intel.root.certificate,)))
    wanted = Quote.parse(made).body.report_data
    return {"evidence": made, "beside": beside, "trust": roots, "at": AT, "report_data": wanted}


def gpu(**how: Any) -> Own:
    """A GPU's report with OCSP answers for all of its chain; `how` is about the chip's own."""
    vendor = nvgpu_made.Vendor()
    chip = vendor.chip()
    return {
        "evidence": json.dumps({"device_evidence_list": [chip.report()]}).encode(),
        "beside": tuple(chip.answers(**how)),
        "trust": TrustRoots(nvgpu=vendor.trust()),
        "at": f"{nvgpu_made.NOW:%Y-%m-%d}",
        "report_data": nvgpu_made.NONCE,
    }


def _up_to_date(tcb_info: str) -> str:
    """The TCB info with every level up to date: what is not asked here must not fail."""
    for status in ("ConfigurationAndSWHardeningNeeded", "SWHardeningNeeded", "ConfigurationNeeded"):
        tcb_info = tcb_info.replace(f'"{status}"', '"UpToDate"')
    return tcb_info


@cache
def _intel(name: str) -> Intel:
    return Intel(read(f"{name}.quote"), datetime(2025, 6, 25, tzinfo=UTC))


@cache
def _amd(generation: Generation) -> amd.Vendor:
    return amd.Vendor(generation)
