"""Quotes of other people's machines: each gives the verdict that its source says, and no changed one passes."""

import base64
import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation import verifiers
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.dcap_collateral import Collateral, parse_files
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, SgxClaims, TdxClaims
from hermetic.attestation.policy import GENUINE, judge
from hermetic.attestation.roots import DcapTrust, TrustRoots, intel
from hermetic.attestation.verifiers import dcap_witness, sgx, tdx
from hermetic.errors import VerificationError

from .dcap_quotes import COLLATERAL, GOOD, TIMES, VECTORS, collateral, evidence, quote, trust

ALIBI = "tdx/phala_b0c06f_v4.quote"
HEADER = 48
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def examined(name: str, raw: bytes, roots: TrustRoots, time: datetime) -> tuple[Checks, TdxClaims | SgxClaims | None]:
    checks = Checks()
    judge = tdx.judge if name.startswith("tdx") else sgx.judge
    try:
        (claims,) = judge(checks, evidence(raw), None, roots, time).kinds
    except VerificationError:
        return checks, None
    assert isinstance(claims, TdxClaims | SgxClaims)
    assert (claims.checks, claims.not_evaluated) == (checks.passed, checks.not_evaluated)
    return checks, claims


def failures(name: str, raw: bytes, roots: TrustRoots, time: datetime) -> set[str]:
    checks, _ = examined(name, raw, roots, time)
    return {check.name for check in checks.failed}


def genuine(name: str, published: str) -> TdxClaims | SgxClaims:
    checks, claims = examined(name, quote(name), trust(published), TIMES[published])
    assert not checks.failed
    assert claims is not None
    return claims


# ---------------------------------------------------------------------------------------------------------------------
# The verdicts of tests/vectors/tdx/README.md and tests/vectors/sgx/README.md.


@pytest.mark.parametrize(
    ("name", "status", "advisories"),
    [
        ("tdx/phala_b0c06f_v4.quote", "UpToDate", ()),
        ("tdx/automata_00806f_v4.quote", "OutOfDate", ("INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986")),
        ("tdx/cos113_00806f_v4.quote", "UpToDate", ()),
        ("tdx/google_90c06f_v5.quote", "UpToDate", ()),
        ("sgx/phala_00a067_v3.quote", "ConfigurationAndSWHardeningNeeded", ("INTEL-SA-00289", "INTEL-SA-00615")),
    ],
)
def test_genuine_quotes_and_how_their_platforms_stand(name: str, status: str, advisories: tuple[str, ...]) -> None:
    claims = genuine(name, GOOD[name])
    assert claims.platform.tcb is not None
    assert (claims.platform.tcb.status, claims.platform.tcb.advisories) == (status, advisories)
    assert f"{name[:3]}.witness" in claims.checks  # the library says the same of every field
    checks = Checks()
    judge(checks, Claims(kinds=(claims,)), GENUINE, TIMES[GOOD[name]])
    refused = () if status == "UpToDate" else (f"{name[:3]}.tcb.status",)
    assert tuple(check.name for check in checks.failed) == refused


def test_a_platform_below_every_listed_level_is_refused() -> None:
    found = failures("tdx", quote("tdx/phala_90c06f_v5.quote"), trust("phala-2026-02"), TIMES["phala-2026-02"])
    assert found == {"tdx.tcb.level"}
    # Its signature and chain are good.
    assert not failures("tdx", quote("tdx/phala_90c06f_v5.quote"), trust(), TIMES["phala-2026-02"])


def test_a_quote_with_words_behind_it_is_refused_for_them_alone() -> None:
    raw = quote("tdx/google_50806f_v4.quote")
    assert failures("tdx", raw, trust(), TIMES["intel-2026-03"]) == {"tdx.quote.padding"}
    bare = raw[: -len(Quote.parse(raw).padding)]
    assert not failures("tdx", bare, trust(), TIMES["intel-2026-03"])
    found = failures("tdx", bare, trust("intel-2026-03"), TIMES["intel-2026-03"])
    assert found == {"tdx.tcb.level"}


def test_collateral_of_2023_is_long_expired() -> None:
    raw = quote("tdx/google_50806f_v4.quote").partition(b"\n\nextra bytes")[0] + b"\n"
    found = failures("tdx", raw, trust("intel-2023-06"), datetime(2026, 11, 22, tzinfo=UTC))
    assert found >= {
        "tdx.collateral.tcb_info.time", "tdx.collateral.qe_identity.time",
        "tdx.collateral.root_crl.time", "tdx.collateral.pck_crl.time",
    }  # fmt: skip


def test_a_debug_domain_is_genuine_and_never_acceptable() -> None:
    name = "tdx/trustee_50806f_v4_debug.quote"
    checks, claims = examined(name, quote(name), trust("intel-2026-03"), TIMES["intel-2026-03"])
    assert not checks.failed
    assert isinstance(claims, TdxClaims)
    assert claims.debug
    assert claims.attributes == ("DEBUG", "SEPT_VE_DISABLE")
    witness = next(check for check in checks.all if check.name == "tdx.witness")
    assert witness.result == "not evaluated"
    assert "Debug mode is enabled" in witness.got
    rules = Checks()
    judge(rules, Claims(kinds=(claims,)), GENUINE, TIMES["intel-2026-03"])
    assert {check.name for check in rules.failed} == {"tdx.debug", "tdx.tcb.status"}


def azure_quote() -> bytes:
    text = json.loads((VECTORS / "tdx/az_tdx_v1.json").read_text())["td_quote"]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_azure_s_domain_without_sept_ve_disable_is_a_policy_s_choice() -> None:
    checks, claims = examined("tdx", azure_quote(), trust("intel-2025-07"), TIMES["intel-2025-07"])
    assert not checks.failed
    assert isinstance(claims, TdxClaims)
    assert not claims.sept_ve_disable
    assert [check.result for check in checks.all if check.name == "tdx.witness"] == ["not evaluated"]
    rules = Checks()
    assert GENUINE.tdx is not None
    demanding = GENUINE.tdx.model_copy(update={"sept_ve_disable": "required"})
    policy = GENUINE.model_copy(update={"tdx": demanding})
    judge(rules, Claims(kinds=(claims,)), policy, TIMES["intel-2025-07"])
    assert "tdx.sept_ve_disable" in {check.name for check in rules.failed}


# ---------------------------------------------------------------------------------------------------------------------
# Binding and time.


def test_report_data_is_all_of_its_64_bytes() -> None:
    raw = quote(ALIBI)
    body = Quote.parse(raw).body
    time = TIMES["phala-2025-06"]
    assert tdx.verify(evidence(raw), body.report_data, trust("phala-2025-06"), time).tdx is not None
    for wrong in (body.report_data[:48] + bytes(16), bytes(64), body.report_data[:-1], b""):
        with pytest.raises(VerificationError) as caught:
            tdx.verify(evidence(raw), wrong, trust("phala-2025-06"), time)
        assert [check.name for check in caught.value.failures] == ["tdx.report_data"]
    with pytest.raises(VerificationError, match=r"tdx\.report_data"):
        verifiers.verify("tdx", evidence(raw), bytes(48), trust("phala-2025-06"), time)


@pytest.mark.parametrize(("name", "published"), GOOD.items())
def test_before_issue_and_after_expiry_is_refused_by_name(name: str, published: str) -> None:
    kind, used = (
        name[:3],
        next(c for c in collateral(published) if c.tcb_info.fmspc == genuine(name, published).platform.fmspc),
    )
    periods = {
        "tcb_info.time": (used.tcb_info.issueDate, used.tcb_info.nextUpdate),
        "qe_identity.time": (used.qe_identity.issueDate, used.qe_identity.nextUpdate),
        "pck_crl.time": (used.pck_crls[0].last_update_utc, used.pck_crls[0].next_update_utc),
        "root_crl.time": (used.root_crl.last_update_utc, used.root_crl.next_update_utc),
    }
    second = timedelta(seconds=1)
    for part, (start, end) in periods.items():
        assert end is not None
        for time in (start - second, end + second):
            assert f"{kind}.collateral.{part}" in failures(name, quote(name), trust(published), time)
        for time in (start, end):
            assert f"{kind}.collateral.{part}" not in failures(name, quote(name), trust(published), time)


@pytest.mark.parametrize("name", GOOD)
def test_a_platform_s_certificate_out_of_its_time_is_refused_by_name(name: str) -> None:
    for time in (datetime(2018, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)):
        assert failures(name, quote(name), trust(), time) == {f"{name[:3]}.pck.time"}


# ---------------------------------------------------------------------------------------------------------------------
# Changed quotes.


def flipped(raw: bytes, bit: int) -> bytes:
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


@pytest.mark.parametrize("name", GOOD)
def test_no_signed_byte_can_be_changed(name: str) -> None:
    """One bit of every byte of header and body; `make evidence-bits` flips every bit of the whole quote."""
    raw, kind = quote(name), name[:3]
    for index in range(len(Quote.parse(raw).signed)):
        found = failures(name, flipped(raw, 8 * index + index % 8), trust(), TIMES[GOOD[name]])
        assert found & {f"{kind}.structure", f"{kind}.quote.signature"}, index


@pytest.mark.parametrize("name", GOOD)
def test_no_byte_of_the_signature_data_can_be_changed(name: str) -> None:
    raw = quote(name)
    signed = len(Quote.parse(raw).signed)
    size = struct.unpack_from("<I", raw, signed)[0]
    for index in range(signed, signed + 4 + size - 1, 7):
        bit = 8 * index + index % 8
        assert failures(name, flipped(raw, bit), trust(), TIMES[GOOD[name]]), index


def parts(raw: bytes) -> dict[str, tuple[int, int]]:
    """Where the parts of the signature data of a v4 or v5 quote lie: name -> (offset, size)."""
    start = len(Quote.parse(raw).signed) + 4
    auth = struct.unpack_from("<H", raw, start + 128 + 6 + 448)[0]
    chain = start + 128 + 6 + 448 + 2 + auth
    return {
        "signature": (start, 64),
        "key": (start + 64, 64),
        "qe_report": (start + 134, 384),
        "qe_signature": (start + 518, 64),
        "auth": (start + 584, auth),
        "chain": (chain + 6, struct.unpack_from("<I", raw, chain + 2)[0]),
    }


def replaced(raw: bytes, part: str, value: bytes) -> bytes:
    offset, size = parts(raw)[part]
    assert len(value) == size
    return raw[:offset] + value + raw[offset + size :]


def found_for(raw: bytes) -> set[str]:
    return failures("tdx", raw, trust(), TIMES["phala-2025-06"])


@pytest.mark.parametrize(("part", "name"), [("signature", "tdx.quote.signature"), ("qe_signature", "tdx.qe.signature")])
def test_zero_and_oversized_numbers_are_refused_before_any_arithmetic(part: str, name: str) -> None:
    raw = quote(ALIBI)
    offset, _ = parts(raw)[part]
    r, s = raw[offset : offset + 32], raw[offset + 32 : offset + 64]
    zero, order, most = bytes(32), P256_ORDER.to_bytes(32, "big"), b"\xff" * 32
    for wrong in (zero + s, r + zero, zero + zero, order + s, r + order, most + most):
        assert found_for(replaced(raw, part, wrong)) == {f"{name}.numbers"}
    assert found_for(replaced(raw, part, s + r)) == {name}


def test_a_key_that_the_quoting_enclave_did_not_name_is_refused() -> None:
    raw, other = quote(ALIBI), quote("tdx/google_90c06f_v5.quote")
    offset, size = parts(other)["key"]
    found = found_for(replaced(raw, "key", other[offset : offset + size]))
    assert found == {"tdx.qe.attestation_key", "tdx.quote.signature"}
    assert "tdx.quote.signature" in found_for(replaced(raw, "key", b"\1" * 64))  # a point off the curve
    assert found_for(replaced(raw, "auth", bytes(32))) == {"tdx.qe.attestation_key"}
    report, size = parts(raw)["qe_report"]
    assert found_for(replaced(raw, "qe_report", b"\xff" + raw[report + 1 : report + size])) == {"tdx.qe.signature"}


def with_chain(raw: bytes, chain: bytes) -> bytes:
    """The quote `raw` with another chain, all sizes made to fit."""
    signed = len(Quote.parse(raw).signed)
    offset, _ = parts(raw)["chain"]
    inner = raw[signed + 4 : offset - 6] + struct.pack("<HI", 5, len(chain)) + chain
    inner = inner[:128] + struct.pack("<HI", 6, len(inner) - 134) + inner[134:]
    return raw[:signed] + struct.pack("<I", len(inner)) + inner


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


def chain_of(name: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(Quote.parse(quote(name)).signature.certificates)


def test_chains_are_swapped_shortened_and_dressed_up_in_vain() -> None:
    raw = quote(ALIBI)
    leaf, ca, root = chain_of(ALIBI)
    other, *_ = chain_of("tdx/google_90c06f_v5.quote")
    processor = chain_of("sgx/phala_00a067_v3.quote")[1]
    whole = pem(leaf, ca, root)
    assert not found_for(with_chain(raw, whole))
    assert not found_for(with_chain(raw, whole.replace(b"\n", b"\r\n") + b"\0"))
    # The leaf of another genuine platform.
    assert found_for(with_chain(raw, pem(other, ca, root))) >= {"tdx.qe.signature"}
    # A CA of the same root that did not issue the leaf, and certificates in another order.
    for wrong in (pem(leaf, processor, root), pem(leaf, root, root)):
        assert found_for(with_chain(raw, wrong)) >= {"tdx.pck.chain"}
    assert "tdx.pck.chain" in found_for(with_chain(raw, pem(leaf, root, ca)))
    assert found_for(with_chain(raw, pem(ca, root, root))) == {
        "tdx.pck.names",
        "tdx.pck.extension",
    }  # no PCK certificate
    for wrong in (pem(leaf, ca), whole + pem(root), b"hello\n" + whole, whole + b"\n\0\0", b"", b"\0"):
        assert found_for(with_chain(raw, wrong)) == {"tdx.pck.structure"}


def test_a_root_that_nobody_trusts_is_refused() -> None:
    stranger = x509.load_der_x509_certificate((VECTORS / "tpm/gcp_ek_ak_ca_root.crt").read_bytes())
    for roots in ((), (stranger,)):
        found = failures("tdx", quote(ALIBI), TrustRoots(dcap=DcapTrust(roots)), TIMES["phala-2025-06"])
        assert found == {"tdx.pck.chain"}


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 3000])
def test_zeros_behind_a_quote_are_padding(tail: bytes) -> None:
    assert not found_for(quote(ALIBI) + tail)


@pytest.mark.parametrize("tail", [b"\1", b"\0\0\xff", b" "])
def test_anything_else_behind_a_quote_is_refused(tail: bytes) -> None:
    assert found_for(quote(ALIBI) + tail) == {"tdx.quote.padding"}


def test_a_quote_of_the_other_kind_is_refused() -> None:
    assert failures("tdx", quote("sgx/phala_00a067_v3.quote"), trust(), TIMES["sgx-2025-06"]) == {"tdx.structure"}
    assert failures("sgx", quote(ALIBI), trust(), TIMES["phala-2025-06"]) == {"sgx.structure"}


@pytest.mark.parametrize("wrong", [None, [], "x", {}, {"quote": 1}, {"quote": "!"}, {"quote": "", "more": 1}])
def test_evidence_of_another_form_is_refused(wrong: Any) -> None:
    for kind in ("tdx", "sgx"):
        with pytest.raises(VerificationError, match=rf"{kind}\.structure"):
            verifiers.verify(kind, wrong, bytes(48), trust(), TIMES["phala-2025-06"])


# ---------------------------------------------------------------------------------------------------------------------
# Changed collateral.


def bundle(**changes: str) -> tuple[Collateral, ...]:
    members = json.loads((VECTORS / COLLATERAL["phala-2025-06"][0]).read_text())
    return parse_files([json.dumps(members | changes).encode()])


def found_with(*sets: Collateral) -> set[str]:
    roots = TrustRoots(dcap=DcapTrust(intel.load().roots, sets))
    return failures("tdx", quote(ALIBI), roots, TIMES["phala-2025-06"])


def original(member: str) -> str:
    return str(json.loads((VECTORS / COLLATERAL["phala-2025-06"][0]).read_text())[member])


def test_collateral_for_another_platform_is_refused() -> None:
    assert found_with(*collateral("intel-2026-03")) == {"tdx.collateral.platform"}
    assert found_with(*collateral("sgx-2025-06")) == {"tdx.collateral.platform"}
    assert not found_with(*collateral("sgx-2025-06"), *collateral("phala-2025-06"))


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_collateral_with_a_changed_byte_has_no_signature(part: str) -> None:
    text = original(part)
    better = (
        text.replace('"OutOfDate"', '"UpToDate"', 1)
        if "OutOfDate" in text
        else text.replace('"isvsvn":4', '"isvsvn":1')
    )
    assert better != text
    assert found_with(*bundle(**{part: better})) == {f"tdx.collateral.{part}.signature"}
    assert found_with(*bundle(**{f"{part}_signature": "00" * 64})) == {f"tdx.collateral.{part}.signature.numbers"}
    other = original(f"{'qe_identity' if part == 'tcb_info' else 'tcb_info'}_signature")
    assert found_with(*bundle(**{f"{part}_signature": other})) == {f"tdx.collateral.{part}.signature"}


def test_a_platform_s_key_may_not_sign_collateral() -> None:
    found = found_with(*bundle(tcb_info_issuer_chain=pem(*chain_of(ALIBI)).decode()))
    assert found >= {"tdx.collateral.tcb_info.signer.name", "tdx.collateral.tcb_info.signature"}
    assert "tdx.collateral.tcb_info.signer.chain" not in found  # it is Intel's, too


def test_the_identity_of_the_other_quoting_enclave_is_refused() -> None:
    sgx_set = json.loads((VECTORS / COLLATERAL["sgx-2025-06"][0]).read_text())
    swapped = {name: sgx_set[name] for name in sgx_set if name.startswith("qe_identity")}
    assert found_with(*bundle(**swapped)) >= {"tdx.collateral.qe_identity.id", "tdx.qe.mr_signer", "tdx.qe.prod_id"}


def test_lists_of_another_ca_are_refused() -> None:
    sgx_set = json.loads((VECTORS / COLLATERAL["sgx-2025-06"][0]).read_text())
    assert found_with(*bundle(pck_crl=sgx_set["pck_crl"])) == {"tdx.collateral.pck_crl.signature"}
    assert found_with(*bundle(root_ca_crl=original("pck_crl"))) == {"tdx.collateral.root_crl.signature"}
    broken = original("pck_crl")[:-2] + ("00" if original("pck_crl")[-2:] != "00" else "01")
    assert found_with(*bundle(pck_crl=broken)) == {"tdx.collateral.pck_crl.signature"}


def taken_back(issuer: x509.Certificate, serial: int) -> x509.CertificateRevocationList:
    """A list in the name of `issuer` (by a key of ours) that takes `serial` back."""
    now = TIMES["phala-2025-06"]
    one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - timedelta(days=1)).build()
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - timedelta(days=1))
        .next_update(now + timedelta(days=1))
        .add_revoked_certificate(one)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )


def test_certificates_that_were_taken_back_are_refused() -> None:
    """The lists are of our making, so that their signatures are refused too."""
    (good,) = collateral("phala-2025-06")
    leaf, ca, root = chain_of(ALIBI)
    in_use = {root.serial_number, ca.serial_number, good.tcb_info_signed.chain[0].serial_number}
    short = [serial for serial in in_use if serial.bit_length() < 160]  # the builder makes no longer ones
    assert short
    for serial in short:
        found = found_with(replace(good, root_crl=taken_back(root, serial)))
        assert found == {"tdx.collateral.root_crl.signature", "tdx.collateral.revoked"}
    found = found_with(replace(good, pck_crls=(taken_back(ca, leaf.serial_number),)))
    assert found == {"tdx.collateral.pck_crl.signature", "tdx.collateral.revoked"}
    found = found_with(replace(good, pck_crls=(taken_back(ca, leaf.serial_number + 1),)))
    assert found == {"tdx.collateral.pck_crl.signature"}


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_signers_whose_chain_is_not_intel_s_are_refused(part: str) -> None:
    chain = x509.load_pem_x509_certificates(original(f"{part}_issuer_chain").encode())
    for wrong in (chain[:1], chain[::-1], [chain[0], chain_of(ALIBI)[1]]):
        found = found_with(*bundle(**{f"{part}_issuer_chain": pem(*wrong).decode()}))
        assert found == {f"tdx.collateral.{part}.signer.chain"}
    found = found_with(*bundle(**{f"{part}_issuer_chain": pem(*chain_of(ALIBI)).decode()}))
    assert found == {f"tdx.collateral.{part}.signer.name", f"tdx.collateral.{part}.signature"}


def test_a_quoting_enclave_in_debug_mode_is_refused() -> None:
    raw = quote(ALIBI)
    offset, size = parts(raw)["qe_report"]
    report = bytearray(raw[offset : offset + size])
    report[48] |= 2
    assert found_for(replaced(raw, "qe_report", bytes(report))) == {"tdx.qe.debug", "tdx.qe.signature"}


def test_a_witness_that_differs_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    name, time = "phala-2025-06", TIMES["phala-2025-06"]
    judged = dcap_witness._judged
    for path, value in (
        (("tcb", "status"), "OutOfDate"),
        (("tcb", "advisory_ids"), ["INTEL-SA-1"]),
        (("platform", "pck", "fmspc"), [0] * 6),
        (("report", "TD10", "rt_mr3"), "11" * 48),
        (("report", "TD10", "report_data"), "11" * 64),
        (("header", "user_data"), "11" * 20),
    ):

        def other(*given: Any, path: tuple[str, ...] = path, value: object = value) -> Any:
            claims = json.loads(json.dumps(judged(*given)))
            place = claims
            for step in path[:-1]:
                place = place[step]
            assert path[-1] in place
            place[path[-1]] = value
            return claims

        monkeypatch.setattr(dcap_witness, "_judged", other)
        assert failures("tdx", quote(ALIBI), trust(name), time) == {"tdx.witness"}
    forms: tuple[dict[str, Any], ...] = ({}, {"platform": 1}, {"platform": {"pck": {}}, "report": {}})
    for broken in forms:
        monkeypatch.setattr(dcap_witness, "_judged", lambda *_, broken=broken: broken)
        assert failures("tdx", quote(ALIBI), trust(name), time) == {"tdx.witness"}
