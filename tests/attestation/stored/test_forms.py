"""Evidence and what lies beside it are told by content; what is given and of no use is a failure by name."""

import base64
import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from hermetic.attestation import stored
from hermetic.attestation.abi.go_tpm_tools import GoTpmAttestation
from hermetic.attestation.abi.snp_certificates import VCEK
from hermetic.attestation.policy import GENUINE
from hermetic.attestation.stored.beside import MAX_FILES, Beside
from hermetic.attestation.stored.forms import MAX_EVIDENCE_SIZE
from hermetic.errors import ConfigurationError
from tests.attestation.stored.cases import Case
from tests.attestation.stored.manipulations import GPUS, SNP, TDX, TPM
from tests.attestation.stored.rows import INTEL_2025_07, KEYLIME, VECTORS, read, trust

BUNDLE = (VECTORS / "collateral" / "accepted.bundle").read_bytes()
THEN = datetime(2025, 7, 20, tzinfo=UTC)


def failed(case: Case) -> tuple[str, ...]:
    return case.verdict().failed


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (SNP.evidence.hex().upper().encode(), "snp"),
        (b"\n".join(SNP.evidence.hex().encode()[at : at + 64] for at in range(0, 2368, 64)) + b"\r\n", "snp"),
        (TDX.evidence.hex().encode(), "tdx"),
        (json.dumps({"quote": base64.b64encode(TDX.evidence).decode(), "cc_eventlog": None}).encode(), "tdx"),
        (json.dumps({"quote": base64.b64encode(read("sgx/phala_00a067_v3.quote")).decode()}).encode(), "sgx"),
        (json.dumps(json.loads(GPUS.evidence)[0]).encode(), "nvgpu"),
        (json.dumps({"device_evidence_list": json.loads(GPUS.evidence)}).encode(), "nvgpu"),
        (json.dumps({"kind": "tpm", "nonce": "", "evidence": json.loads(TPM.evidence)}).encode(), "tpm"),
        (bytes.fromhex(read("nvgpu/hopper_580.report.hex").decode()), "nvgpu"),
        (b'{"svn": "1", "report_data": "AAAA"}', "sample"),
    ],
)
def test_evidence_is_known_in_every_form(evidence: bytes, kind: str) -> None:
    beside = [*SNP.beside, *TPM.beside, read("nvgpu/hopper_580.chain.pem")]
    found = stored.recognise(evidence, beside)
    assert (found.kind, found.refused) == (kind, None)
    verdict = stored.verdict(found, trust(), THEN)
    assert verdict.accepted == (kind != "sample"), verdict.failed


@pytest.mark.parametrize(
    "evidence",
    [
        b"",
        b" \n",
        b"\0" * 64,
        b"null",
        b"[]",
        b"[1]",
        b"{}",
        b"{",
        b'{"quote": "AAAA"}',
        b'{"quote": "no base64"}',
        b'{"quote": {}}',
        b'{"kind": "tpm", "evidence": 7}',
        b'{"tpm_quote": 7, "hermetic": 7}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"kind": 1, "evidence": ' * 5_000,
        b"<" * 1000,
        b"11e001ff",
        b"\xffTCG",
        b"\x30\x80" + bytes(60),
        bytes(1184),
        b"0" * (MAX_EVIDENCE_SIZE + 1),
    ],
)
def test_what_is_no_evidence_gets_a_verdict_that_names_a_check(evidence: bytes) -> None:
    verdict = stored.verdict(stored.recognise(evidence), trust(), THEN)
    assert verdict.failed
    assert not verdict.accepted
    assert verdict.claims is None


def test_an_unknown_form_says_what_is_known() -> None:
    found = stored.recognise(b"noise")
    assert found.refused is not None
    assert "SEV-SNP report" in found.refused.wanted
    assert "5 bytes that begin with 'noise'" in found.refused.got
    beside_it = stored.recognise(read(INTEL_2025_07[0])).refused
    assert beside_it is not None
    assert "--collateral" in beside_it.got


def test_a_file_that_is_nothing_known_is_a_failure_by_its_place() -> None:
    found = stored.recognise(SNP.evidence, [*SNP.beside, b"noise"], [b""])
    assert stored.verdict(found, trust(), THEN).failed == ("endorsement.1", "collateral.0")


def test_a_chain_with_a_damaged_certificate_is_not_taken_in_part() -> None:
    pem = read("tdx/ars_tcb_signing_chain.pem")
    at = pem.rindex(b"-----END")
    for damaged in (pem[: at + 3] + b"?" + pem[at + 4 :], pem[: at - 9] + b"?" + pem[at - 8 :], pem[:at]):
        assert not Beside().take(damaged)


def test_a_quote_vouches_for_nothing_although_a_chain_is_inside() -> None:
    with pytest.raises(ConfigurationError, match="--root"):
        stored.given([TDX.evidence])
    with pytest.raises(ConfigurationError, match="ARK"):
        stored.given([SNP.beside[0]])


def test_too_many_files_beside_are_failures() -> None:
    found = stored.recognise(SNP.evidence, [*SNP.beside] * (MAX_FILES + 1))
    assert stored.verdict(found, trust(), THEN).failed == (f"endorsement.{MAX_FILES}",)


def test_a_device_s_chain_is_found_among_other_certificates_in_any_order() -> None:
    blocks = read("nvgpu/hopper_580.chain.pem").split(b"-----END CERTIFICATE-----\n")[:-1]
    chain = [block + b"-----END CERTIFICATE-----\n" for block in blocks]
    others = [
        read(name) for name in ("nvgpu/rim_root_wrong.crt", "tdx/intel_root.der", "tdx/intel_pck_platform_ca.der")
    ]
    report = read("nvgpu/hopper_580.report.hex")
    assert failed(Case(report, (*others, *reversed(chain)))) == ()
    assert failed(Case(report, (*others, *chain[:1], *chain[2:]))) == ("nvgpu.0.chain",)


def test_a_hypervisor_s_table_of_certificates_vouches_like_the_certificate_in_it() -> None:
    vcek = SNP.beside[0]
    heads = [(VCEK.bytes_le, 48, len(vcek)), (bytes(16), 0, 0)]
    table = b"".join(guid + offset.to_bytes(4, "little") + size.to_bytes(4, "little") for guid, offset, size in heads)
    assert failed(SNP.but(beside=(table + vcek,))) == ()
    assert failed(SNP.but(beside=(table + vcek[:-1],))) == ("endorsement.0", "snp.endorsement")


def test_every_part_of_a_quote_of_tpm2_tools_is_needed() -> None:
    message, parts = read("tpm/keylime_quote.out"), list(map(read, KEYLIME))
    assert failed(Case(message, tuple(parts))) == ()
    for index in range(len(parts)):
        assert failed(Case(message, tuple(parts[:index] + parts[index + 1 :]))) == ("tpm.structure",)
    assert failed(Case(message, (*parts, *TPM.beside))) == ("tpm.structure",), "two keys"
    assert failed(Case(message, (*parts[:2], *TPM.beside))) == ("tpm.quote.signature",)
    changed = bytearray(parts[1])
    changed[150] ^= 1
    assert failed(Case(message, (parts[0], bytes(changed), parts[2]))) == ("tpm.quote.pcr_digest",)


def test_a_bundle_of_collateral_is_of_use_to_every_kind() -> None:
    found = stored.recognise(TDX.evidence, [BUNDLE])
    assert found.beside.bundled is not None
    assert "collateral.kind" not in stored.verdict(found, trust(), THEN).failed
    assert failed(SNP.but(beside=(*SNP.beside, BUNDLE))) == ()
    assert failed(SNP.but(beside=(*SNP.beside, BUNDLE[:-1]))) == ("endorsement.1",)


def test_devices_of_a_form_of_ones_own_are_one_machine_s() -> None:
    device = json.loads(GPUS.evidence)[0]
    found = stored.recognise(json.dumps([device, device]).encode())
    assert stored.verdict(found, trust(), THEN).accepted
    own = _Own.model_construct(**dict(GENUINE))
    assert "nvgpu.distinct" in stored.verdict(found, trust(), THEN, own).failed


class _Own(type(GENUINE)):  # type: ignore[misc] # the built-in's rules, under a name of one's own
    is_built_in = False


def test_a_manifest_by_itself_meets_no_policy() -> None:
    found = stored.recognise(read("nvgpu/driver_rim_550.144.03.xml"))
    own = _Own.model_construct(**dict(GENUINE))
    then = datetime(2026, 6, 1, tzinfo=UTC)
    assert stored.verdict(found, trust(), then).accepted
    assert stored.verdict(found, trust(), then, own).failed == ("policy",)


def test_json_has_no_halves_of_surrogate_pairs() -> None:
    members: dict[str, Any] = {**json.loads(GPUS.evidence)[0], "arch": "\ud800"}
    verdict = stored.verdict(stored.recognise(json.dumps([members]).encode()), trust(), THEN)
    assert json.dumps(verdict.to_json(), ensure_ascii=False).encode()
    assert dataclasses.replace(verdict).failed == ("nvgpu.structure",)


def test_every_bit_that_a_quote_of_go_tpm_tools_rests_on_is_held() -> None:
    whole = read("tpm/gce-cos-85-nonce9009.pb")
    parsed = GoTpmAttestation.parse(whole)
    good = Case(whole, report_data=bytes.fromhex("9009"))
    assert good.verdict().failed == ()
    for part, allowed in (
        (parsed.message, {"tpm.quote.signature", "tpm.quote.structure"}),
        (parsed.signature, {"tpm.quote.signature", "tpm.quote.scheme"}),
        (b"".join(parsed.pcrs[:1]), {"tpm.quote.pcr_digest", "tpm.boot_log.pcr0"}),
    ):
        at = whole.index(part)
        for bit in range(0, 8 * len(part), 3):
            flipped = bytearray(whole)
            flipped[at + bit // 8] ^= 1 << bit % 8
            assert allowed & set(good.but(evidence=bytes(flipped)).verdict().failed), (part[:4], bit)


@pytest.mark.parametrize("head", [b"", b"a", b"ab", b"abc\xff\xff"])
@pytest.mark.parametrize("size", [0, 1, 767, 768, 769, 770, 2000])
def test_a_log_with_filling_travels_as_it_is(head: bytes, size: int) -> None:
    log = read("tdx/cos113_ccel_data.dat")[:18101] + head + b"\xff" * size
    found: Any = stored.recognise(read("tdx/cos113_00806f_v4.quote"), [log]).evidence
    assert found["cc_eventlog"] == base64.b64encode(log).decode()
