"""A vendor's root stands behind each item, or it is refused; real items, and vendors of our own."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.collateral import Item, check_items, newest, recognise, vendor_roots
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.errors import InvalidRequestError, VerificationError
from tests.attestation import amd
from tests.attestation.collateral.by_hand import VECTORS
from tests.attestation.verifiers import nvgpu_made
from tests.attestation.verifiers.nvgpu_made import NOW, Holder, Vendor, holder

ROOTS = vendor_roots()
INTEL = (
    "tdx/ars_90c06f.tcbinfo.json", "tdx/ars_td_qeidentity.json", "tdx/ars_pck_platform_crl.der",
    "tdx/ars_root_ca_crl.der", "tdx/ars_tcb_signing_chain.pem", "tdx/intel_pck_platform_ca.der",
)  # fmt: skip
GENUINE = [
    (*INTEL,),
    ("tdx/phala_b0c06f_v4.collateral.json",),
    ("sgx/phala_00a067_v3.collateral.json",),
    ("snp/milan_v2.vcek.der", "snp/milan_v2b.vcek.der", "snp/genoa_v5.vcek.der", "snp/turin.vcek.der"),
    ("snp/milan_v3_vlek.vlek.der",),
    ("nvgpu/driver_rim_550.144.03.xml",),
    ("nvgpu/hopper_535.vbios_rim_match.xml", "nvgpu/hopper_535.vbios_rim_idx9_mismatch.xml"),
    ("nvgpu/switch_vbios_rim_5612_0002_890_9610550001.xml", "nvgpu/hopper_580.chain.pem"),
]  # fmt: skip
FORGED = [
    ("snp/milan_v2b.vcek-invalid-legacy.der", "snp.chain.signature"),
    ("snp/milan_v2b.vcek-invalid-new.der", "snp.chain.signature"),
    ("snp/ask_ark_milan.pem", "chain.chain"),
    ("nvgpu/driver_rim_badsig.xml", "rim.signature"),
    ("nvgpu/driver_rim_badchain.xml", "configured roots"),
    ("nvgpu/hopper_535.driver_rim_tampered.xml", "rim.digest"),
    ("nvgpu/rim_root_wrong.crt", "chain.chain"),
    ("tdx/intel_root.der", "chain.chain"),
    ("tdx/ars_pck_platform_crl.der", "collateral.pck_crl.signature"),
    ("tdx/ars_td_qeidentity.json", "collateral.signature"),
]
"""Files, and what their refusal names. The last two are genuine, and came without the chains that say so."""


def read(*names: str, roots: TrustRoots = ROOTS) -> tuple[Item, ...]:
    return newest(item for name in names for item in recognise((VECTORS / name).read_bytes(), roots, Path(name).name))


def refusal(items: Sequence[Item], roots: TrustRoots = ROOTS) -> str:
    with pytest.raises(VerificationError) as refused:
        check_items(items, roots)
    assert {failure.name for failure in refused.value.failures} == {"item.vouched"}
    return str(refused.value)


@pytest.mark.parametrize("names", GENUINE)
def test_recorded_items_are_vouched_for_also_those_that_have_ended(names: tuple[str, ...]) -> None:
    items = read(*names)
    check_items(items, ROOTS)
    assert len(items) >= len(names)


@pytest.mark.parametrize(("name", "named"), FORGED)
def test_items_that_no_root_vouches_for_are_refused_and_named(name: str, named: str) -> None:
    (item,) = read(name)
    said = refusal([item])
    assert named in said
    assert str(item) in said


@pytest.mark.parametrize("names", GENUINE[1:])
def test_with_no_root_nothing_is_vouched_for(names: tuple[str, ...]) -> None:
    items = read(*names)
    with pytest.raises(VerificationError) as refused:
        check_items(items, TrustRoots())
    assert len(refused.value.failures) == len(items)


class Intel:
    """An Intel of our own: the same names, another root."""

    def __init__(self) -> None:
        self.root = self._holder("Intel SGX Root CA")
        self.signer = self._holder("Intel SGX TCB Signing", self.root, ca=False)
        self.pck_ca = self._holder("Intel SGX PCK Platform CA", self.root)

    def _holder(self, name: str, issuer: Holder | None = None, *, ca: bool = True) -> Holder:
        return holder(name, issuer, ca=ca, curve=ec.SECP256R1())

    def answer(self, file: str) -> bytes:
        """The same answer, signed by us."""
        text = (VECTORS / file).read_text().strip()
        name = "tcbInfo" if text.startswith('{"tcbInfo"') else "enclaveIdentity"
        body = text[len(name) + 4 : text.rindex(',"signature"')]
        r, s = decode_dss_signature(self.signer.key.sign(body.encode(), ec.ECDSA(hashes.SHA256())))
        return f'{{"{name}":{body},"signature":"{r:064x}{s:064x}"}}'.encode()

    def chain(self, *holders: Holder) -> bytes:
        return b"".join(one.pem for one in (*holders, self.root))

    def crl(self, issuer: Holder, name: x509.Name | None = None) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(name or issuer.certificate.subject)
        dated = builder.last_update(NOW).next_update(NOW + timedelta(days=30))
        return dated.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def other_intel() -> Intel:
    return Intel()


def swapped(name: str, data: bytes) -> tuple[Item, ...]:
    """Genuine collateral of Intel's with one file replaced."""
    genuine = [one for one in INTEL if one != name]
    return newest([*read(*genuine), *recognise(data, ROOTS, "swapped")])


@pytest.mark.parametrize("name", ["tdx/ars_90c06f.tcbinfo.json", "tdx/ars_td_qeidentity.json"])
def test_answers_signed_by_another_root_are_refused(other_intel: Intel, name: str) -> None:
    data = other_intel.answer(name)
    said = refusal(swapped(name, data))
    assert "collateral.signature" in said
    # Nor does it help to bring the chain along.
    chain = recognise(other_intel.chain(other_intel.signer), TrustRoots(), "their chain")
    assert "chain.chain" in refusal([*swapped(name, data), *chain])


def test_a_good_chain_with_another_purpose_signs_no_collateral(other_intel: Intel) -> None:
    other_intel.signer, kept = other_intel.pck_ca, other_intel.signer
    try:
        answer = other_intel.answer("tdx/ars_90c06f.tcbinfo.json")
    finally:
        other_intel.signer = kept
    roots = replace(ROOTS, dcap=replace(ROOTS.dcap, roots=(other_intel.root.certificate,)))
    items = [*recognise(answer, roots, "a"), *recognise(other_intel.chain(other_intel.pck_ca), roots, "b")]
    assert "a signature by Intel SGX TCB Signing" in refusal(items, roots)
    as_leaf = recognise(
        other_intel.chain(other_intel._holder("Intel SGX PCK Certificate", other_intel.root)), roots, "c"
    )
    assert "chain.name" in refusal(as_leaf, roots)


def test_lists_of_another_issuer_are_refused(other_intel: Intel) -> None:
    for name, issuer in (
        ("tdx/ars_pck_platform_crl.der", other_intel.pck_ca),
        ("tdx/ars_root_ca_crl.der", other_intel.root),
    ):
        said = refusal(swapped(name, other_intel.crl(issuer)))
        assert "crl.signature" in said
    for file, of in (
        ("tdx/ars_pck_platform_crl.der", "intel_pck_platform_ca"),
        ("tdx/ars_root_ca_crl.der", "intel_root"),
    ):
        genuine = x509.load_der_x509_certificate((VECTORS / f"tdx/{of}.der").read_bytes())
        named_alike = other_intel.crl(other_intel.root, genuine.subject)  # name of the genuine issuer, key of another
        assert "crl.signature" in refusal(swapped(file, named_alike))
    unknown = other_intel.crl(other_intel._holder("Intel SGX PCK Processor CA", other_intel.root))
    assert "pck_crl.signature" in refusal([*read(*INTEL), *recognise(unknown, ROOTS, "unknown")])


def test_a_text_that_is_changed_after_signing_is_refused() -> None:
    name = "tdx/ars_90c06f.tcbinfo.json"
    text = (VECTORS / name).read_text()
    members = json.loads(text)
    assert members["tcbInfo"]["tcbLevels"][0]["tcbStatus"] == "UpToDate"
    assert "collateral.signature" in refusal(swapped(name, text.replace('"OutOfDate"', '"UpToDate"').encode()))


def test_amd_s_lists_are_of_an_ark_that_is_trusted() -> None:
    vendor = amd.Vendor(Generation.MILAN)
    trust = TrustRoots(snp=SnpTrust((vendor.authorities(),)))
    check_items(recognise(vendor.crl("ask"), trust, "crl"), trust)
    assert "snp.crl.signature" in refusal(recognise(vendor.crl(by="ask"), trust, "crl"), trust)
    assert "snp.crl.issuer" in refusal(recognise(amd.Vendor(Generation.GENOA).crl(), trust, "crl"), trust)
    assert "snp.crl.issuer" in refusal(recognise(vendor.crl(), ROOTS, "crl"))


def test_a_key_of_one_generation_is_none_of_another() -> None:
    vendor = amd.Vendor(Generation.MILAN)
    trust = TrustRoots(snp=SnpTrust((vendor.authorities(),)))
    chip, tcb = amd.chip_id("one"), amd.tcb_of(Generation.MILAN)
    check_items(recognise(vendor.vcek(chip, tcb), trust, "vcek"), trust)
    check_items(recognise(vendor.vlek(tcb), trust, "vlek"), trust)
    other = recognise(vendor.vcek(chip, tcb, product="Genoa-B1"), trust, "vcek")
    assert "snp.product" in refusal(other, trust)
    wrong = recognise(vendor.vcek(chip, tcb, issuer="asvk"), trust, "vcek")
    assert "snp.chain.signature" in refusal(wrong, trust)


def test_ocsp_answers_need_their_issuer_in_the_bundle() -> None:
    vendor = Vendor()
    trust = TrustRoots(nvgpu=vendor.trust())
    chip = vendor.chip()
    answers = [item for one in chip.answers() for item in recognise(one, trust, "ocsp")]
    chain = recognise(chip.chain, trust, "chain")
    check_items([*answers, *chain], trust)
    assert refusal(answers, trust).count("ocsp.issuer") == len(answers)
    rim = vendor.rim("580.159.03", {0: [bytes(48)]})
    of_signer = recognise(vendor.answer(vendor.rim_signer, vendor.rim_ca), trust, "ocsp")
    check_items([*of_signer, *recognise(rim, trust, "rim")], trust)
    stranger = nvgpu_made.ocsp_answer(chip.own.certificate, vendor.provisioner, signer=holder("responder"))
    assert "another's" in refusal([*recognise(stranger, trust, "ocsp"), *chain], trust)


def test_of_several_about_the_same_the_newest_is_kept() -> None:
    both = read("tdx/ars_root_ca_crl.der", "tdx/intel_root_ca_crl.der", "tdx/google_2023_root_crl.der")
    assert [item.source for item in both] == ["ars_root_ca_crl.der"]
    manifests = read("nvgpu/hopper_535.vbios_rim_match.xml", "nvgpu/hopper_535.vbios_rim_idx9_mismatch.xml")
    assert len(manifests) == 2  # of one version; a device matches one of them


def test_answers_are_taken_as_the_vendors_services_give_them() -> None:
    """A manifest in JSON, a chain in a header, a list in PEM."""
    rim = (VECTORS / "nvgpu/driver_rim_550.144.03.xml").read_bytes()
    answer = json.dumps({"id": "NV_GPU_DRIVER_GH100_550.144.03", "rim": base64.b64encode(rim).decode(), "sha256": "0"})
    assert [item.data for item in recognise(answer.encode(), ROOTS)] == [rim]
    chain = (VECTORS / "tdx/ars_tcb_signing_chain.pem").read_bytes()
    assert recognise(quote_from_bytes(chain).encode(), ROOTS) == recognise(chain, ROOTS)
    crl = (VECTORS / "tdx/ars_pck_platform_crl.der").read_bytes()
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(crl) + b"-----END X509 CRL-----\n"
    assert [item.data for item in recognise(pem, ROOTS)] == [crl]


def test_a_certificate_that_the_library_has_no_word_for_is_refused() -> None:
    der = bytearray((VECTORS / "tdx/intel_pck_platform_ca.der").read_bytes())
    der[der.index(b"\xa0\x03\x02\x01\x02") + 4] = 66  # a version that does not exist
    with pytest.raises(InvalidRequestError, match="expected collateral"):
        recognise(bytes(der), ROOTS)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"{" * 20_000, b'{"a":' * 20_000, b'{"rim":"x"}', b"[]", b"<a/>", b"\x30\x00", b"\xff" * 99,
        b"-----BEGIN CERTIFICATE-----", b"-----BEGIN%20CERTIFICATE-----", b" " * (1 << 21),
    ],
)  # fmt: skip
def test_files_that_are_no_collateral_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected (collateral|at most)"):
        recognise(data, ROOTS, "a file")


def test_a_name_that_a_terminal_would_obey_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="printable ASCII"):
        recognise((VECTORS / "snp/turin.vcek.der").read_bytes(), ROOTS, "\x1b[2J../../x")
