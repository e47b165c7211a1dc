"""Azure's evidence: recorded machines, none of whose bits can change, and a machine of our own."""

import base64
import copy
import hashlib
import json
import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation import verifiers
from hermetic.attestation.abi.azure_hcl import AzureEvidence, HclReport
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.abi.tpm import Alg, Attest, PcrSelection, QuoteInfo
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.attestation.roots import amd as roots
from hermetic.attestation.verifiers import azure_snp
from hermetic.errors import InvalidRequestError, VerificationError
from tests.attestation import amd
from tests.attestation.abi.test_snp_json import JSON

VECTORS = Path(__file__).parents[2] / "vectors" / "snp"
MILAN = json.loads((VECTORS / "az_snp_milan_v1.json").read_text())
GENOA = json.loads((VECTORS / "az_snp_genoa.json").read_text())
TRUST = TrustRoots(snp=SnpTrust(roots.load()))
NOW = datetime(2025, 6, 1, tzinfo=UTC)
GENOA_NONCE = Attest.parse(bytes(GENOA["quote"]["message"])).extra_data


def failures(evidence: Any, nonce: bytes, trust: TrustRoots = TRUST, time: datetime = NOW) -> set[str]:
    with pytest.raises(VerificationError) as caught:
        azure_snp.verify(evidence, nonce, trust, time)
    return {check.name for check in caught.value.failures}


@pytest.mark.parametrize(("evidence", "nonce"), [(MILAN, b"challenge"), (GENOA, GENOA_NONCE)], ids=["milan", "genoa"])
def test_recorded_machines_are_genuine(evidence: Any, nonce: bytes) -> None:
    claims = azure_snp.verify(evidence, nonce, TRUST, NOW)
    assert claims.snp is not None
    assert claims.tpm is not None
    assert (claims.snp.vmpl, claims.snp.debug, claims.tpm.enrolled) == (0, False, "hardware-report")
    assert {"azure.hcl.binding", "azure.hcl.vmpl", "tpm.quote.nonce", "snp.signature"} <= set(claims.snp.checks)
    assert Claims.parse(claims.to_json()) == claims


def test_a_challenge_is_taken_whole() -> None:
    assert verifiers.verify("az-snp-vtpm", GENOA, GENOA_NONCE, TRUST, NOW).snp is not None
    assert failures(GENOA, GENOA_NONCE[:32]) == {"tpm.quote.nonce", "tpm.quote.nonce_length"}
    assert failures(MILAN, b"challenge".ljust(48, b"\0")) == {"tpm.quote.nonce", "tpm.quote.nonce_length"}


def test_stored_evidence_without_a_challenge_says_what_was_not_evaluated() -> None:
    checks = Checks()
    azure_snp.judge(checks, MILAN, None, TRUST, NOW)
    skipped = {check.name for check in checks.all if check.result == "not evaluated"}
    assert {"tpm.quote.nonce", "azure.hcl.user_data", "snp.chain.revoked"} <= skipped


def test_certificates_have_their_time() -> None:
    assert failures(MILAN, b"challenge", time=datetime(2040, 1, 1, tzinfo=UTC)) == {"snp.chain.time"}


def test_another_machine_s_key_is_refused() -> None:
    swapped = {**MILAN, "hcl_report": base64.urlsafe_b64encode(bytes(GENOA["report"])).decode()}
    assert {"tpm.quote.signature", "snp.hwid"} <= failures(swapped, b"challenge")


def test_no_bit_of_what_is_signed_can_change() -> None:
    """A sample of the bits of report, variable data and quote; `make evidence-bits` takes every one."""
    parts: list[tuple[list[int], range]] = [
        (GENOA["report"], range(32, 32 + 0x2A0)),
        (GENOA["report"], range(1236, 1236 + 1200)),
        (GENOA["quote"]["message"], range(161)),
    ]
    for values, span in parts:
        for bit in random.Random(0).sample(range(8 * len(span)), 100):
            flip(values, span, bit)
            try:
                assert failures(GENOA, GENOA_NONCE)
            finally:
                flip(values, span, bit)


def flip(values: list[int], span: range, bit: int) -> None:
    values[span[bit // 8]] ^= 1 << bit % 8


AK = rsa.generate_private_key(65537, 2048)
VENDOR = amd.Vendor(Generation.GENOA)
OWN = TrustRoots(snp=SnpTrust((VENDOR.authorities(),)))
THEN = amd.START + timedelta(days=400)
NONCE = bytes(range(48))


def url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def machine(
    *, form: int = 1, vmpl: int = 0, key: rsa.RSAPrivateKey = AK, bound: bytes | None = None, report_type: int = 2,
    user_data: bytes = bytes(64), pcrs: tuple[int, ...] = tuple(range(24)), more: tuple[Any, ...] = (),
    nonce: bytes | None = None,
) -> Any:  # fmt: skip
    """Evidence of a machine of our own: its AK is `AK`, `key` signs the quote."""
    hcl, vcek = paravisor(
        AK.public_key(), vmpl=vmpl, bound=bound, report_type=report_type, user_data=user_data, more=more
    )
    values = [bytes([index]) * 32 for index in range(24)]
    digest = hashlib.sha256(b"".join(values[index] for index in pcrs)).digest()
    info = QuoteInfo((PcrSelection(Alg.SHA256, pcrs),), digest)
    message = Attest(0xFF544347, 0x8018, b"\0\x0b" + bytes(32), nonce or NONCE, 1, 2, 3, 1, 4, info.pack()).pack()
    return {
        "version": form,
        "tpm_quote": {
            "message": message.hex(),
            "signature": key.sign(message, padding.PKCS1v15(), hashes.SHA256()).hex(),
            "pcrs": [value.hex() for value in values],
        },
        "hcl_report": url(hcl),
        "vcek": url(vcek),
    }


def paravisor(
    ak: rsa.RSAPublicKey, *, vmpl: int = 0, bound: bytes | None = None, report_type: int = 2,
    user_data: bytes = bytes(64), more: tuple[Any, ...] = (),
) -> tuple[bytes, bytes]:  # fmt: skip
    """What a paravisor of ours keeps about the key `ak`, and the certificate of its processor's key."""
    numbers = ak.public_numbers()
    jwk = {"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": url(numbers.n.to_bytes(256, "big"))}
    variable = json.dumps({"keys": [jwk, *more], "user-data": user_data.hex()}).encode()
    chip, tcb = amd.chip_id("azure"), amd.tcb_of(Generation.GENOA)
    about = hashlib.sha256(variable).digest().ljust(64, b"\0") if bound is None else bound
    unsigned = amd.report(Generation.GENOA, chip_id=chip, report_data=about, vmpl=vmpl)
    hardware = amd.sign(unsigned, amd.signing_key(chip))
    size = len(variable)
    hcl = (
        b"HCLA" + struct.pack("<III16x", 2, 1236 + size, 2) + hardware
        + struct.pack("<IIIII", 20 + size, 1, report_type, 1, size) + variable + bytes(32)
    )  # fmt: skip
    return hcl, VENDOR.vcek(chip, tcb)


def own_failures(evidence: Any) -> set[str]:
    return failures(evidence, NONCE, OWN, THEN)


def test_a_machine_of_our_own_is_genuine() -> None:
    claims = azure_snp.verify(machine(), NONCE, OWN, THEN)
    assert claims.tpm is not None
    assert claims.tpm.pcrs["7"] == "07" * 32


def test_a_report_that_the_guest_asked_for_binds_nothing() -> None:
    """The guest runs at VMPL 2: it can have any report data signed, a key of its own too."""
    assert own_failures(machine(vmpl=2)) == {"azure.hcl.vmpl"}


def test_the_report_binds_the_variable_data_and_nothing_else() -> None:
    assert own_failures(machine(bound=bytes(64))) == {"azure.hcl.binding"}
    evidence = machine()
    variable = AzureEvidence.parse(evidence, "vcek").hcl.variable_data
    assert own_failures(machine(bound=hashlib.sha256(variable).digest() + b"\1" * 32)) == {"azure.hcl.binding"}


def test_another_key_s_quote_is_refused() -> None:
    assert own_failures(machine(key=rsa.generate_private_key(65537, 2048))) == {"tpm.quote.signature"}


def test_a_quote_over_fewer_registers_is_refused() -> None:
    assert own_failures(machine(pcrs=(0, 1, 2))) == {"tpm.quote.selection", "tpm.quote.pcr_digest"}


def test_registers_in_another_order_are_refused() -> None:
    evidence = machine()
    values = evidence["tpm_quote"]["pcrs"]
    values[3], values[4] = values[4], values[3]
    assert own_failures(evidence) == {"tpm.quote.pcr_digest"}


def test_form_2_repeats_the_report_data() -> None:
    azure_snp.verify(machine(form=2, user_data=NONCE.ljust(64, b"\0")), NONCE, OWN, THEN)
    assert own_failures(machine(form=2)) == {"azure.hcl.user_data"}


def changed(change: Callable[[Any], None]) -> Any:
    evidence = copy.deepcopy(machine())
    change(evidence)
    return evidence


@pytest.mark.parametrize(
    "evidence",
    [
        None,
        [],
        machine(form=3),
        machine(report_type=4),
        machine(more=({"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": "AQAB"},)),
        changed(lambda evidence: evidence.update(more=1)),
        changed(lambda evidence: evidence.update(version=True)),
        changed(lambda evidence: evidence.pop("vcek")),
        changed(lambda evidence: evidence.update(hcl_report="!")),
        changed(lambda evidence: evidence.update(hcl_report=evidence["hcl_report"][:2000])),
        changed(lambda evidence: evidence.update(hcl_report=evidence["hcl_report"] + "AAAB")),
        changed(lambda evidence: evidence["tpm_quote"].update(pcrs=[])),
        changed(lambda evidence: evidence["tpm_quote"]["pcrs"].append("00")),
        changed(lambda evidence: evidence["tpm_quote"].update(message="0")),
        changed(lambda evidence: evidence["tpm_quote"].update(signature="zz")),
    ],
)
def test_other_forms_are_refused_by_name(evidence: Any) -> None:
    assert own_failures(evidence) == {"azure.structure"}


@given(st.binary(max_size=2700), st.integers(0, 1300))
def test_any_bytes_are_no_report_of_the_paravisor(data: bytes, offset: int) -> None:
    real = bytes(GENOA["report"])
    for wrong in (data, real[:offset], real[: 32 + offset] + data):
        with pytest.raises(InvalidRequestError):
            HclReport.parse(wrong)


@given(JSON)
def test_any_json_is_refused_by_name(value: Any) -> None:
    assert own_failures(value) == {"azure.structure"}
