"""Azure's TDX evidence: a recorded machine, and what is changed about it in vain."""

import base64
import hashlib
import json
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.abi.azure_hcl import HclReport
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.verifiers import azure_tdx
from hermetic.errors import VerificationError

from .dcap_quotes import TIMES, VECTORS, quote, trust

EVIDENCE: dict[str, Any] = json.loads((VECTORS / "tdx/az_tdx_v1.json").read_text())
CHALLENGE = b"challenge"
PUBLISHED = "intel-2025-07"
NOW = TIMES[PUBLISHED]


def decoded(name: str) -> bytes:
    return base64.urlsafe_b64decode(EVIDENCE[name] + "=" * (-len(EVIDENCE[name]) % 4))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


HCL, QUOTE = decoded("hcl_report"), decoded("td_quote")


def failures(nonce: bytes = CHALLENGE, **changes: Any) -> set[str]:
    with pytest.raises(VerificationError) as caught:
        azure_tdx.verify(EVIDENCE | changes, nonce, trust(), NOW)
    return {check.name for check in caught.value.failures}


def test_the_recorded_machine_is_genuine() -> None:
    claims = azure_tdx.verify(EVIDENCE, CHALLENGE, trust(PUBLISHED), NOW)
    assert claims.tdx is not None
    assert claims.tpm is not None
    assert (claims.tdx.sept_ve_disable, claims.tdx.debug, claims.tpm.enrolled) == (False, False, "hardware-report")
    wanted = {"azure.hcl.binding", "azure.hcl.report", "tpm.quote.signature", "tpm.quote.nonce", "tdx.quote.signature"}
    assert wanted <= set(claims.tdx.checks)
    assert claims.tdx.platform.tcb is not None
    assert Claims.parse(claims.to_json()) == claims


def test_a_challenge_is_taken_whole() -> None:
    with pytest.raises(VerificationError, match=r"tpm\.quote\.nonce"):
        verifiers.verify("az-tdx-vtpm", EVIDENCE, CHALLENGE.ljust(48, b"\0"), trust(), NOW)
    assert failures(b"challeng") == {"tpm.quote.nonce", "tpm.quote.nonce_length"}
    checks = Checks()
    azure_tdx.judge(checks, EVIDENCE, None, trust(), NOW)
    assert "tpm.quote.nonce" in checks.not_evaluated


def test_the_vtpm_s_key_is_the_one_that_the_quote_binds() -> None:
    hcl = HclReport.parse(HCL)
    start = HCL.index(hcl.variable_data)
    place = HCL.index(b'"00000000"', start) + 1 if b'"00000000"' in HCL else start + len(hcl.variable_data) - 4
    assert "azure.hcl.binding" in failures(hcl_report=encoded(HCL[:place] + b"1" + HCL[place + 1 :]))
    assert hashlib.sha256(hcl.variable_data).digest() == QUOTE[48 + 520 : 48 + 552]


def test_a_quote_of_another_domain_binds_nothing() -> None:
    other = encoded(quote("tdx/phala_b0c06f_v4.quote"))
    assert failures(td_quote=other) == {"azure.hcl.report", "azure.hcl.binding"}
    assert failures(td_quote=encoded(quote("sgx/phala_00a067_v3.quote"))) == {"azure.structure"}


def test_the_report_of_another_processor_is_refused() -> None:
    snp = json.loads((VECTORS / "snp/az_snp_milan_v1.json").read_text())
    assert failures(hcl_report=snp["hcl_report"]) == {"azure.structure"}
    with pytest.raises(VerificationError, match=r"azure\.structure"):
        azure_tdx.verify(snp, CHALLENGE, trust(), NOW)


def test_no_byte_of_the_quotes_can_be_changed() -> None:
    for index in range(0, 632, 3):
        changed = encoded(QUOTE[:index] + bytes([QUOTE[index] ^ 1 << index % 8]) + QUOTE[index + 1 :])
        assert failures(td_quote=changed) & {"azure.structure", "tdx.quote.signature"}
    message = bytes.fromhex(EVIDENCE["tpm_quote"]["message"])
    for index in range(len(message)):
        changed = (message[:index] + bytes([message[index] ^ 1 << index % 8]) + message[index + 1 :]).hex()
        assert "tpm.quote.signature" in failures(tpm_quote=EVIDENCE["tpm_quote"] | {"message": changed})


def test_no_byte_of_the_paravisor_s_report_that_counts_can_be_changed() -> None:
    for index in [*range(32 + 512, 32 + 912), *range(1236, len(HclReport.parse(HCL).variable_data) + 1236, 9)]:
        changed = encoded(HCL[:index] + bytes([HCL[index] ^ 1]) + HCL[index + 1 :])
        assert failures(hcl_report=changed), index


def test_reordered_pcrs_are_refused() -> None:
    pcrs = EVIDENCE["tpm_quote"]["pcrs"]
    swapped = [pcrs[1], pcrs[0], *pcrs[2:]]
    assert failures(tpm_quote=EVIDENCE["tpm_quote"] | {"pcrs": swapped}) == {"tpm.quote.pcr_digest"}
